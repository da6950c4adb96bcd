"""Recordings as they are handed in (paths, file objects, arrays) and what was heard in each."""

import collections
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar, cast

import numpy as np
import soxr

from musicjax.audio import Audio, blocks, check_samples
from musicjax.errors import AudioError, ConfigError
from musicjax.infer.long import Runner, Window, stitch, windows
from musicjax.infer.segments import Segmentation, SegmentRunner, segments
from musicjax.infer.sequences import SequenceRunner

T = TypeVar("T")
Recording = str | os.PathLike[str] | BinaryIO | Audio
AnyRunner = Runner | SegmentRunner | SequenceRunner

BLOCK_S = 60.0  # seconds read at a time
DRAWN_S = 3600.0  # of sound under notes in a picture; beyond it the notes stand alone


@dataclass(frozen=True, eq=False)
class Heard:
    """One recording's activations, name -> (T, ...), or the error that stopped it."""

    index: int  # place among the recordings handed in
    activations: dict[str, np.ndarray]
    duration_s: float
    error: Exception | None = None


class Collector(Protocol):
    """What becomes of one recording's activations while they come in, window by window."""

    def add(self, activations: dict[str, np.ndarray]) -> None:
        """Take the next frames."""

    def done(self) -> dict[str, np.ndarray]:
        """What is kept of the whole recording, name -> (T, ...)."""


class Everything:
    """The collector that keeps all frames."""

    def __init__(self) -> None:
        self.pieces: list[dict[str, np.ndarray]] = []

    def add(self, activations: dict[str, np.ndarray]) -> None:
        """Take the next frames."""
        self.pieces.append(activations)

    def done(self) -> dict[str, np.ndarray]:
        """All frames, end to end."""
        return stitch(self.pieces)


def as_recording(
    source: Recording | np.ndarray | tuple[np.ndarray, int], sample_rate: int | None = None
) -> Recording:
    """A path, a file object or an `Audio`; arrays get their sample rate, integers become floats.

    Arrays are (N,) or (C, N). Raises AudioError for an array without a rate, NaN or Inf samples,
    no samples, or samples in another layout.
    """
    if isinstance(source, tuple) and len(source) == 2:
        source, sample_rate = source
    if isinstance(source, Audio):
        samples, sample_rate = source.samples, source.sample_rate
    elif isinstance(source, str | os.PathLike) or hasattr(source, "read"):
        return cast(Recording, source)
    else:
        samples = np.asarray(source)
    if sample_rate is None:
        raise AudioError(
            f"audio is an array of shape {samples.shape} without a sample rate; give it as "
            "sample_rate=…, in Hz."
        )
    if samples.dtype in (np.int16, np.int32):
        samples = samples / np.float32(-np.iinfo(samples.dtype).min)
    check_samples(samples, int(sample_rate))
    return Audio(samples, int(sample_rate))


def sample_blocks(
    recording: Recording, sample_rate: int, *, stereo: bool = False
) -> Iterator[np.ndarray]:
    """Mono float32 blocks of about a minute at `sample_rate`, in bounded memory.

    With `stereo` a recording of two channels gives (2, N); any other is mono all the same.
    """
    if stereo:
        for block in _all_channels(recording, sample_rate):
            yield block if len(block) == 2 else block.mean(axis=0)
        return
    if not isinstance(recording, Audio):
        yield from blocks(recording, sample_rate, BLOCK_S)
        return
    own, size = recording.sample_rate, round(BLOCK_S * recording.sample_rate)
    resampler = soxr.ResampleStream(own, sample_rate, 1, dtype="float32", quality="HQ")
    for start in range(0, recording.samples.shape[-1], size):
        block = recording.samples[..., start : start + size]
        block = block.mean(axis=0) if block.ndim == 2 else block
        last = start + size >= recording.samples.shape[-1]
        block = block.astype(np.float32)
        yield block if own == sample_rate else resampler.resample_chunk(block, last=last)


def _all_channels(recording: Recording, sample_rate: int) -> Iterator[np.ndarray]:
    """Blocks (C, N) of a recording of any number of channels."""
    if not isinstance(recording, Audio):
        yield from blocks(recording, sample_rate, BLOCK_S, mono=False)
        return
    channels = recording.samples if recording.samples.ndim == 2 else recording.samples[None]
    single = (
        sample_blocks(Audio(channel, recording.sample_rate), sample_rate) for channel in channels
    )
    for pieces in zip(*single, strict=True):
        yield np.stack(pieces)


def part_of(recording: Recording, start_s: float, end_s: float) -> Audio | None:
    """A part of a recording, mono at 16 kHz, to be drawn; None where it cannot be read (again)."""
    rate, there = 16000, 0
    pieces: list[np.ndarray] = []
    try:
        for block in sample_blocks(recording, rate):
            low, high = round(start_s * rate) - there, round(end_s * rate) - there
            pieces.append(block[max(low, 0) : max(high, 0)])
            there += len(block)
            if there >= end_s * rate:
                break
    except AudioError:
        return None
    return Audio(np.concatenate(pieces), rate) if pieces else None


def attempt(work: Callable[[], T]) -> T | Exception:
    """What `work` on one recording gives, or its error: it must not end the work on the others.

    ConfigError is raised: what was asked for is wrong, of whatever recording.
    """
    try:
        return work()
    except ConfigError:
        raise
    except Exception as error:
        return error


class _Reading:
    """Reads recordings one after the other, and remembers how long each was or why it failed."""

    def __init__(
        self, recordings: Iterable[Recording], sample_rate: int, runner: AnyRunner
    ) -> None:
        self.recordings = recordings
        self.sample_rate = sample_rate
        self.layout = runner.layout
        self.samples: dict[int, int] = collections.defaultdict(int)
        self.failures: dict[int, Exception] = {}

    def windows(self) -> Iterator[tuple[int, Window]]:
        """The windows of all recordings; one that cannot be read (on) stops giving windows."""
        cut: Callable = segments if isinstance(self.layout, Segmentation) else windows
        for index, recording in enumerate(self.recordings):
            try:
                for window in cut(self._counted(index, recording), self.layout):
                    yield index, window
            except Exception as error:  # one bad file must not stop the others: it is reported
                self.failures[index] = error

    def _counted(self, index: int, recording: Recording) -> Iterator[np.ndarray]:
        stereo = getattr(self.layout, "stereo", False)
        for block in sample_blocks(recording, self.sample_rate, stereo=stereo):
            self.samples[index] += block.shape[-1]
            yield block
        if not self.samples[index]:
            raise AudioError(f"recording {index + 1} holds no samples; give a longer one.")


def hear(
    runner: AnyRunner,
    recordings: Iterable[Recording],
    sample_rate: int,
    progress: Callable[[int, float], None] | None = None,
    collect: Callable[[], Collector] = Everything,
) -> Iterator[Heard]:
    """What a model hears in each recording, in their order and as soon as each is complete.

    Windows of several recordings share batches, so short ones are as fast as one long one. A
    recording that cannot be read or collected gives a `Heard` with its error, and the others go on.
    `progress` is called with the recording's place and the seconds of it that are done. `collect`
    makes what gathers a recording's activations; one that keeps less than all of them bounds the
    memory of long recordings.
    """
    reading = _Reading(recordings, sample_rate, runner)
    pieces: dict[int, Collector] = collections.defaultdict(collect)
    turn = 0  # the recording whose result comes next

    def failed() -> Iterator[Heard]:
        nonlocal turn
        while turn in reading.failures:
            pieces.pop(turn, None)
            yield Heard(turn, {}, reading.samples[turn] / sample_rate, reading.failures[turn])
            turn += 1

    for index, window, found in runner.run(reading.windows()):
        yield from failed()
        if index in reading.failures:
            continue
        error = attempt(functools.partial(pieces[index].add, found))
        if error is not None:
            reading.failures[index] = error
            continue
        duration_s = reading.samples[index] / sample_rate
        if progress is not None:
            done_s = (window.first_frame + window.keep.stop) * runner.layout.hop / sample_rate
            progress(index, min(done_s, duration_s))
        if window.is_last:
            kept = attempt(pieces.pop(index).done)
            if isinstance(kept, Exception):
                reading.failures[index] = kept
                continue
            yield Heard(index, kept, duration_s)
            turn += 1
    yield from failed()
