"""Listening while it sounds: a source of sound, a queue, a model, and what happens on the way.

    listening = Listening(Streamer(model), Microphone())
    for event in listening:
        ...

Sound is heard in the order and at the time of its own clock, which counts samples: what is lost is
passed over, nothing is put off. Rates are matched by a resampler that runs on from block to block,
the same one that reads files.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import soxr
from jaxtyping import Float

from musicjax.errors import AudioError, ConfigError
from musicjax.infer.sound_queue import Piece, SoundQueue
from musicjax.infer.sources import Source
from musicjax.infer.stream import Event, Streamer

_PIECE_S = 0.05  # heard at once at most, so that figures and displays keep moving
_POLL_S = 0.05  # how often one who waits for sound looks around
_LATE_S = 0.25  # after which a stream that should sound has run dry
_TELL_AGAIN_S = 5.0  # between two sentences on the same trouble
_ABSURD = 1000.0  # times full scale: garbage, not sound
_SMOOTH_S = 1.0  # over which load and latency are averaged
SILENCE_DB = -90.0


@dataclass
class Figures:
    """How the listening goes. Counts are since it began.

    time_s       of the sound that has come so far, lost sound counted
    heard_s      up to which all events have been told
    latency_s    from sound in the air until its events are told: what the device and the resampler
                 keep, the model's look-ahead, waiting and computing
    load         share of one processor's time that hearing takes; above 1 it cannot keep up
    level_db     of the loudest sample in the last piece, 0 at full scale
    overruns     times that sound was lost because it came faster than it was heard
    underruns    times that sound did not come in time
    lost_s       seconds of sound that were lost
    stalls       times that no sound came for long
    bad_samples  NaN, infinity and absurdly large ones, heard as silence
    """

    time_s: float = 0.0
    heard_s: float = 0.0
    latency_s: float = 0.0
    load: float = 0.0
    level_db: float = SILENCE_DB
    overruns: int = 0
    underruns: int = 0
    lost_s: float = 0.0
    stalls: int = 0
    bad_samples: int = 0


@dataclass(frozen=True)
class Moment:
    """A step of listening: the events that it brought, and how the listening goes then."""

    events: list[Event]
    figures: Figures = field(repr=False)


def check_times(buffer_s: float, stall_s: float = 2.0) -> None:
    """Raise ConfigError for times that no listening can have: to be asked before a model loads."""
    SoundQueue(buffer_s)  # which knows its own
    if not stall_s > 0:
        raise ConfigError(f"stall_s is {stall_s}; give seconds above 0.")


class Listening:
    """One stream from one source through one model.

    Args:
      streamer: at the beginning of a stream.
      source: not yet started.
      buffer_s: seconds of sound that may wait for the model; when more do, they are dropped, unless
        the source can wait, and hearing goes on with what sounds now.
      stall_s: seconds without sound after which sounding notes are closed and it is said.
      tell: gets sentences about trouble as it comes; they are in `notices` as well.

    Iterating gives events, `moments` gives figures with them. It ends when the sound does, or soon
    after `stop`; the last events close what sounds. When the source fails, they are given first and
    its error is raised then.
    """

    def __init__(
        self,
        streamer: Streamer,
        source: Source,
        *,
        buffer_s: float = 1.0,
        stall_s: float = 2.0,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        check_times(buffer_s, stall_s)
        self.streamer, self.source, self.stall_s = streamer, source, stall_s
        self.queue = SoundQueue(buffer_s)
        self.figures = Figures()
        self.notices: deque[str] = deque(maxlen=100)
        self.tell = tell
        self._told_s: dict[str, float] = {}  # when each kind of trouble was told
        self._resampler: Resampler | None = None
        self._place = 0  # of the next sample of the queue
        self._last_s = 0.0  # when sound came last, or listening began
        self._dries = 0  # times that no sound came in time
        self._dry = self._stalled = self._begun = False

    def __iter__(self) -> Iterator[Event]:
        for moment in self.moments():
            yield from moment.events

    def __enter__(self) -> "Listening":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def stop(self) -> None:
        """Let the iteration end soon. May be called from a signal handler or another thread."""
        self.queue.stop()

    def close(self) -> None:
        """Give the source back."""
        self.queue.stop()
        self.source.close()

    def moments(self) -> Iterator[Moment]:
        """What is heard, and how it goes: several times in a second, whether or not sound comes.

        Once only. Raises AudioError when the source cannot be opened or fails.
        """
        if self._begun:
            raise AudioError("this stream was heard already; listen anew for another one.")
        self._begun = True
        self._last_s = self.queue.clock()
        try:
            self.source.start(self.queue, self.streamer.spec.sample_rate)
            while not self.queue.finished:
                piece = self.queue.get(self._most(), _POLL_S)
                events = self._no_sound() if piece is None else self._hear(piece)
                yield Moment(events, self._counted())
            events = self._flush() + self.streamer.finish()
            yield Moment(events, self._counted())
        finally:
            self.close()
        if self.queue.error is not None:
            raise self.queue.error

    def _most(self) -> int:
        return max(round(_PIECE_S * self.queue.sample_rate), 1)

    def _hear(self, piece: Piece) -> list[Event]:
        clock, begun_s = self.queue.clock, self.queue.clock()
        events = self._across_gap(piece) if piece.start > self._place else []
        if self._stalled:
            self._say("again", f"sound comes again after {begun_s - self._last_s:.0f} s.")
        self._dry = self._stalled = False
        self._place, self._last_s = piece.end, max(piece.arrived_s, self._last_s)
        samples = self._clean(piece.samples)
        peak = float(np.max(np.abs(samples), initial=0.0))
        self.figures.level_db = 20 * math.log10(max(peak, 10 ** (SILENCE_DB / 20)))
        events += self.streamer.feed(self._at_model_rate(samples))
        now_s, rate = clock(), self.queue.sample_rate
        seconds = len(samples) / rate
        weight = 1 - math.exp(-seconds / _SMOOTH_S)
        self.figures.load += weight * ((now_s - begun_s) / seconds - self.figures.load)
        resampler_s = max(piece.end / rate - self.streamer.time_s, 0.0)
        behind_s = now_s - piece.arrived_s
        latency_s = self.source.latency_s + resampler_s + self.streamer.spec.latency_s + behind_s
        if not self.figures.latency_s:
            weight = 1.0
        self.figures.latency_s += weight * (latency_s - self.figures.latency_s)
        return events

    def _clean(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """What is no sound as silence: a NaN would stay in a resampler, or a state, for ever."""
        sound = np.abs(samples) < _ABSURD  # which NaN is not
        if sound.all():
            return samples
        bad = len(samples) - int(sound.sum())
        self.figures.bad_samples += bad
        self._say(
            "bad",
            f"{self.figures.bad_samples} samples by {self.streamer.time_s:.1f} s were no sound "
            f"(NaN, or beyond {_ABSURD:.0f} times full scale) and are heard as silence.",
        )
        return np.where(sound, samples, np.float32(0.0))

    def _at_model_rate(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
        wanted = self.streamer.spec.sample_rate
        if self.queue.sample_rate == wanted:
            return samples
        if self._resampler is None:
            self._resampler = Resampler(self.queue.sample_rate, wanted)
        return self._resampler.feed(samples)

    def _flush(self) -> list[Event]:
        """Hear what the resampler holds; the next one begins anew."""
        if self._resampler is None:
            return []
        rest, self._resampler = self._resampler.flush(), None
        return self.streamer.feed(rest)

    def _across_gap(self, piece: Piece) -> list[Event]:
        """Sound was lost before this piece: end what sounds, and go on at the piece's time."""
        lost_s = (piece.start - self._place) / self.queue.sample_rate
        self.figures.lost_s += lost_s
        self._say(
            "lost",
            f"sound comes faster than it is heard: {lost_s:.2f} s at "
            f"{self._place / self.queue.sample_rate:.1f} s were passed over to catch up "
            f"({self.figures.lost_s:.1f} s in all).",
        )
        rate = self.streamer.spec.sample_rate
        events = self._flush()
        there = round(piece.start / self.queue.sample_rate * rate)
        return events + self.streamer.skip(max(there - round(self.streamer.time_s * rate), 0))

    def _no_sound(self) -> list[Event]:
        """None has come in time: count it, say it, let no note hang."""
        dry_s = self.queue.clock() - self._last_s
        if dry_s > _LATE_S:
            self.figures.level_db = SILENCE_DB
        if not self.source.alive() and not self.queue.finished and dry_s > _LATE_S:
            self.queue.end(AudioError(f"{self.source.name} stopped giving sound."))
        if dry_s > _LATE_S and not self._dry and self._place:
            self._dry = True
            self._dries += 1
        if dry_s < self.stall_s or self._stalled:
            return []
        self._stalled = True
        self.figures.stalls += 1
        self._say("stall", f"no sound has come for {dry_s:.0f} s; waiting for it.")
        return self._flush() + self.streamer.skip(0)

    def _counted(self) -> Figures:
        figures, queue = self.figures, self.queue
        figures.time_s, figures.heard_s = self.streamer.time_s, self.streamer.heard_s
        figures.overruns, figures.underruns = queue.overruns, queue.underruns + self._dries
        return replace(figures)

    def _say(self, kind: str, sentence: str) -> None:
        now_s = self.queue.clock()
        if now_s - self._told_s.get(kind, -math.inf) < _TELL_AGAIN_S:
            return
        self._told_s[kind] = now_s
        self.notices.append(sentence)
        if self.tell is not None:
            self.tell(sentence)


class Resampler:
    """One channel from one rate to another, block by block: what soxr gives of the whole."""

    def __init__(self, rate: int, wanted_rate: int) -> None:
        self._stream: Any = soxr.ResampleStream(rate, wanted_rate, 1, "float32", quality="HQ")

    def feed(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
        """What is known after these samples; it lags by a few hundredths of a second."""
        return self._stream.resample_chunk(samples.astype(np.float32, copy=False))

    def flush(self) -> Float[np.ndarray, " M"]:
        """The rest; nothing may follow."""
        return self._stream.resample_chunk(np.zeros(0, np.float32), last=True)
