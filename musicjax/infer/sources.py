"""Where live sound comes from: a microphone, a pipe, a file played at its own speed, any blocks.

Each brings mono float32 blocks into a `SoundQueue` from a thread of its own and says in a sentence
why it cannot. None needs the model: rates are matched by whoever listens.
"""

import io
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from musicjax.audio import blocks as blocks_of
from musicjax.audio import probe
from musicjax.errors import AudioError, ConfigError, MissingDependencyError
from musicjax.infer.sound_queue import SoundQueue

BLOCK_S = 0.02  # of a file that is played
FORMATS = {"s16le": "<i2", "s32le": "<i4", "f32le": "<f4"}
# What tells a live stream from one that comes faster.
_LIVE_SPEED = 1.1  # at most; sound cards are exact, but blocks come a little late and early
_AHEAD_S = 0.05
_SURE_S = 1.0
_PIPE_BYTES = 1 << 16  # what a pipe holds, on Linux by default
# One who writes a WAV file into a pipe cannot come back to tell its size, and says 0 or the most:
# 0xFFFFFFFF (ffmpeg), 0x80000000 (arecord), 0x7FFFF000 (sox).
_ENDLESS_BYTES = 0x7FFFF000
_COMPRESSED = ((b"fLaC", "a FLAC", "flac"), (b"OggS", "an Ogg", "ogg"), (b"ID3", "an MP3", "mp3"))
_RATES = (8000, 11025, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 192000)
_OTHER_WAYS = (
    "or pipe sound in (ffmpeg -i … -f s16le -ac 1 -ar 16000 - | musicjax listen --stdin), or play "
    "a file (--file song.flac)."
)


@runtime_checkable
class Source(Protocol):
    """What brings sound."""

    name: str  # for people
    latency_s: float  # from the air to the queue, as far as it is known

    def start(self, queue: SoundQueue, wanted_rate: int) -> None:
        """Begin to put blocks, at the wanted rate where that costs nothing. Does not wait."""
        ...

    def alive(self) -> bool:
        """Whether sound can still come."""
        ...

    def close(self) -> None:
        """Stop and give the device back; may be called twice."""
        ...


class _Thread:
    """A source whose blocks come out of an iterator that a thread runs."""

    name = ""
    latency_s = 0.0

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def start(self, queue: SoundQueue, wanted_rate: int) -> None:
        """Begin to put blocks."""

        def run() -> None:
            try:
                self._bring(queue, wanted_rate)
            except Exception as error:  # told to the one who listens, who ends with it
                queue.end(error)
            else:
                queue.end()

        # A daemon: a read that never comes back must not keep the process.
        self._thread = threading.Thread(target=run, name=f"sound of {self.name}", daemon=True)
        self._thread.start()

    def _bring(self, queue: SoundQueue, wanted_rate: int) -> None:
        raise NotImplementedError

    def alive(self) -> bool:
        """Whether sound can still come."""
        return self._thread is not None and self._thread.is_alive()

    def close(self) -> None:
        """Wait a moment for the thread; the queue has told it to stop."""
        if self._thread is not None:
            self._thread.join(0.2)


class _Patience:
    """Puts sound into a queue, and finds out what is to be done when that is full.

    A live stream brings as much sound as time passes: what cannot be heard in time is dropped. Out
    of a file it comes faster, and is made to wait. A pipe that filled before reading began, by up
    to `held_s`, looks like a file until it has run dry; so what is ahead of its time is let in
    until it is further ahead than that. Time in which we made it wait tells nothing and does not
    count. `own_speed` says which it is, where that is known.
    """

    def __init__(self, queue: SoundQueue, held_s: float, own_speed: bool | None) -> None:
        self._queue, self._most_s, self._own_speed = queue, held_s + _SURE_S, own_speed
        self._since_s = queue.clock()
        self._came_s = self._took_s = 0.0  # sound, and the time for it, since it ran dry
        self._dried = self._faster = False

    def put(self, samples: Float[np.ndarray, " N"]) -> bool:
        """The next samples; False when nobody listens any more."""
        if self._own_speed is not None:
            return self._queue.put(samples, may_wait=not self._own_speed)
        now_s = self._queue.clock()
        self._judge(len(samples) / self._queue.sample_rate, now_s - self._since_s)
        self._since_s = now_s
        ahead = self._came_s - self._took_s > _AHEAD_S
        wanted = self._queue.put(samples, may_wait=self._faster, let_in=ahead)
        if self._faster:
            self._since_s = self._queue.clock()
        return wanted

    def _judge(self, came_s: float, took_s: float) -> None:
        self._came_s += came_s
        self._took_s += took_s
        if 0 < came_s < 2 * took_s:  # we had to wait for it: nothing more had been sent
            known = self._dried and self._took_s >= _SURE_S
            live = known and self._came_s <= _LIVE_SPEED * self._took_s
            # What is a little faster than live shows in the long run; the burst of one that is
            # live is to be forgotten.
            if live or not self._dried or (known and self._faster):
                self._came_s = self._took_s = 0.0
            self._faster, self._dried = self._faster and not live, True
        self._faster = self._faster or self._came_s - self._took_s > self._most_s


class PlayedFile(_Thread):
    """A recording, read as fast as it would be played, or as fast as it is heard.

    Raises AudioError at once when the file cannot be read, and later where it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, own_speed: bool = True) -> None:
        super().__init__()
        self.path, self.own_speed = Path(path), own_speed
        self.duration_s = probe(path).duration_s
        self.name = self.path.name

    def _bring(self, queue: SoundQueue, wanted_rate: int) -> None:
        queue.begin(wanted_rate)
        begun_s, played_s = time.monotonic(), 0.0
        for block in blocks_of(self.path, wanted_rate, BLOCK_S):
            played_s += len(block) / wanted_rate
            while self.own_speed and (ahead_s := begun_s + played_s - time.monotonic()) > 0:
                time.sleep(min(ahead_s, 0.05))
                if queue.stopped:
                    return
            if not queue.put(block, may_wait=not self.own_speed):
                return


class Blocks(_Thread):
    """Blocks of any length from an iterable: (N,) or (C, N), floats in -1..1 or int16.

    `own_speed` as `PcmStream` takes it.
    """

    def __init__(
        self,
        source: Iterable[np.ndarray],
        sample_rate: int,
        *,
        name: str = "blocks",
        own_speed: bool | None = None,
    ) -> None:
        super().__init__()
        if sample_rate < 1:
            raise AudioError(f"sample_rate is {sample_rate}; give the rate of the blocks in Hz.")
        self.name, self._source, self._rate = name, source, sample_rate
        self._own_speed = own_speed

    def _bring(self, queue: SoundQueue, wanted_rate: int) -> None:
        queue.begin(self._rate)
        patience = _Patience(queue, 0.0, self._own_speed)
        for block in self._source:
            if not patience.put(as_mono(block)):
                return


def as_mono(block: np.ndarray) -> Float[np.ndarray, " N"]:
    """One block as mono float32. Raises AudioError for what is not a block of sound."""
    block = np.asarray(block)
    if block.dtype == np.int16:
        block = block.astype(np.float32) / 32768.0
    if block.dtype.kind != "f" or block.ndim not in (1, 2) or (block.ndim == 2 and not len(block)):
        raise AudioError(
            f"a block of sound has shape {block.shape} and dtype {block.dtype}; give (samples,) or "
            "(channels, samples), floats in -1..1 or int16."
        )
    if block.ndim == 1 or len(block) == 1:
        return block.reshape(-1).astype(np.float32, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        return block.mean(axis=0, dtype=np.float32)


# Pipes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PcmFormat:
    """How samples stand in a stream of bytes: kind (`FORMATS`), Hz, and interleaved channels.

    Raises ConfigError for what cannot be.
    """

    kind: str = "s16le"
    sample_rate: int = 16000
    channels: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FORMATS:
            raise ConfigError(f"the format is {self.kind!r}; choose {', '.join(FORMATS)}.")
        if not 1000 <= self.sample_rate <= 768_000:
            raise ConfigError(f"the rate is {self.sample_rate} Hz; give one from 1000 to 768000.")
        if not 1 <= self.channels <= 256:
            raise ConfigError(f"there are {self.channels} channels; give 1 to 256.")

    @property
    def frame_bytes(self) -> int:
        """Bytes of a sample of all channels."""
        return np.dtype(FORMATS[self.kind]).itemsize * self.channels

    def decoded(self, data: bytes) -> Float[np.ndarray, " N"]:
        """Whole frames as mono float32."""
        samples = np.frombuffer(data, FORMATS[self.kind])
        scale = 1.0 if self.kind == "f32le" else 2.0 ** (8 * samples.itemsize - 1)
        with np.errstate(invalid="ignore"):  # what is no number is counted later
            return as_mono(samples.reshape(-1, self.channels).T.astype(np.float32) / scale)

    def __str__(self) -> str:
        voices = "mono" if self.channels == 1 else f"{self.channels} channels"
        return f"{self.kind}, {self.sample_rate} Hz, {voices}"


class PcmStream(_Thread):
    """Raw samples from a pipe; a WAV header at its head is understood and goes before `form`.

    Args:
      stream: a binary file; None takes stdin.
      form: how the samples stand in it.
      own_speed: whether it comes as it sounds. None finds out: what comes faster is made to wait,
        anything else is live. False always waits, and lets nothing be dropped.

    Raises AudioError when stdin is a terminal.
    """

    def __init__(
        self,
        stream: Any = None,
        form: PcmFormat = PcmFormat(),
        *,
        own_speed: bool | None = None,
    ) -> None:
        super().__init__()
        stream = sys.stdin.buffer if stream is None else stream
        if stream.isatty():
            raise AudioError(
                "stdin is a terminal, which gives no sound; pipe some in: "
                "arecord -f S16_LE -r 16000 -c 1 | musicjax listen --stdin, "
                "or ffmpeg -i song.mp3 -f s16le -ac 1 -ar 16000 - | musicjax listen --stdin."
            )
        self.form, self._stream, self._own_speed = form, stream, own_speed
        self.name = "stdin"  # until its head has told what it is

    def _bring(self, queue: SoundQueue, wanted_rate: int) -> None:
        chunks = self._samples()
        waiting = next(chunks, None)
        queue.begin(self.form.sample_rate)
        held_s = _PIPE_BYTES / (self.form.frame_bytes * self.form.sample_rate)
        patience = _Patience(queue, held_s, self._own_speed)
        while waiting is not None:
            whole = len(waiting) // self.form.frame_bytes * self.form.frame_bytes
            if whole and not patience.put(self.form.decoded(waiting[:whole])):
                return
            more = next(chunks, None)
            waiting = None if more is None else waiting[whole:] + more

    def _samples(self) -> Iterator[bytes]:
        """The bytes of samples: of a WAV file, what its data chunk holds and no more."""
        chunks = self._chunks()
        head, left = self._head(chunks)
        for data in itertools.chain([head], chunks):
            yield data[:left]
            if left is not None:
                left -= len(data)
                if left <= 0:
                    return

    def _chunks(self) -> Iterator[bytes]:
        """Bytes as soon as there are any."""
        try:
            number = self._stream.fileno()
        except (AttributeError, io.UnsupportedOperation, ValueError):
            number = None
        while True:
            # Read past the buffered reader, which a thread that is left behind would keep locked.
            data = self._stream.read(1 << 14) if number is None else os.read(number, 1 << 14)
            if not data:
                return
            yield data

    def _head(self, chunks: Iterator[bytes]) -> tuple[bytes, int | None]:
        """The first samples, after a WAV header if there is one, and how many bytes there are from
        there on, where that is known."""
        data = b""
        for chunk in chunks:
            data += chunk
            if len(data) < 4:
                continue
            _check_no_file(data)
            if not data.startswith(b"RIFF"):
                break
            found = _after_wav_header(data)
            if found is not None:
                self.form, rest, size = found
                self.name = f"stdin (WAV, {self.form})"
                return rest, size
        if data.startswith(b"RIFF"):
            raise AudioError("stdin brings a WAV file that ends within its header; send all of it.")
        if data:
            self.name = f"stdin ({self.form})"
        return data, None


def _check_no_file(data: bytes) -> None:
    """Raise AudioError for the head of a compressed file, which would be heard as noise."""
    for mark, kind, ending in _COMPRESSED:
        if data.startswith(mark):
            raise AudioError(
                f"stdin brings {kind} file, which is no stream of samples; decode it on its way: "
                f"ffmpeg -i song.{ending} -f s16le -ac 1 -ar 16000 - | musicjax listen --stdin, "
                f"or play it: musicjax listen --file song.{ending}."
            )


def _after_wav_header(data: bytes) -> tuple[PcmFormat, bytes, int | None] | None:
    """The format that a WAV header tells, what follows it, and how many bytes of samples there are
    from there on, if that is known; None when more of the header is to come."""

    def number(place: int, size: int) -> int:
        return int.from_bytes(data[place : place + size], "little")

    place, form = 12, None
    while len(data) >= place + 8:
        name, size, body = data[place : place + 4], number(place + 4, 4), place + 8
        if name == b"data":
            if form is None:
                raise AudioError("stdin brings a WAV file that is damaged; send raw samples.")
            return form, data[body:], size if 0 < size < _ENDLESS_BYTES else None
        if len(data) < body + size:
            return None
        if name == b"fmt ":
            # The extensible form has the kind at the head of its GUID.
            kind = number(body + 24, 2) if number(body, 2) == 0xFFFE else number(body, 2)
            bits = number(body + 14, 2)
            known = {(1, 16): "s16le", (1, 32): "s32le", (3, 32): "f32le"}
            if (kind, bits) not in known:
                raise AudioError(
                    f"stdin brings a WAV file of kind {kind} with {bits} bits; send 16 or 32 bits "
                    "of PCM, or 32 of floats."
                )
            form = PcmFormat(known[kind, bits], number(body + 4, 4), number(body + 2, 2))
        place = body + size + size % 2
    return None


# Microphones ----------------------------------------------------------------------------------


class Microphone:
    """An input of the sound card, through PortAudio (extra `live`).

    `device` is a number or a part of a name; None takes the system's. Its own rate is taken where
    the wanted one is refused. Raises MissingDependencyError without the extra, AudioError when
    there is no such device.
    """

    def __init__(self, device: str | int | None = None) -> None:
        self._sounddevice = _sounddevice()
        try:
            facts = self._sounddevice.query_devices(device, "input")
        except (self._sounddevice.PortAudioError, ValueError) as error:
            raise AudioError(self._no_device(device, error)) from error
        self.device, self.name = device, str(facts["name"])
        self.own_rate = round(facts["default_samplerate"])
        self.latency_s = 0.0
        self._stream: Any = None
        self._closing = False

    def _no_device(self, device: str | int | None, error: Exception) -> str:
        inputs = [name for _, name in microphones()]
        reason = str(error).strip().rstrip(".")
        if not inputs:
            return f"this computer has no microphone ({reason}); plug one in, {_OTHER_WAYS}"
        wanted = "is no default microphone" if device is None else f"is no microphone {device!r}"
        return f"there {wanted} ({reason}); choose one with --device-in: {', '.join(inputs)}."

    def rate_for(self, wanted_rate: int) -> int:
        """The wanted rate, or the nearest that the device takes: above it if there is one."""
        others = {self.own_rate, *_RATES} - {wanted_rate}
        above = sorted(rate for rate in others if rate > wanted_rate)
        below = sorted((rate for rate in others if rate < wanted_rate), reverse=True)
        refused: Exception | None = None
        for rate in (wanted_rate, *above, *below):
            try:
                self._sounddevice.check_input_settings(
                    device=self.device, channels=1, dtype="float32", samplerate=rate
                )
            except (self._sounddevice.PortAudioError, ValueError) as error:
                refused = refused or error
            else:
                return rate
        raise AudioError(
            f"{self.name} takes no rate from {_RATES[0]} to {_RATES[-1]} Hz ({refused}); is "
            "another program using it?"
        )

    def start(self, queue: SoundQueue, wanted_rate: int) -> None:
        """Open the device and begin. Raises AudioError when it cannot be opened."""
        rate = self.rate_for(wanted_rate)
        queue.begin(rate)
        before: list[tuple[float, int]] = []  # when the last block was heard, and its length

        def heard(block: np.ndarray, frames: int, times: Any, status: Any) -> None:
            lost = 0
            if status.input_overflow and before:
                then_s, length = before[-1]
                gap_s = times.inputBufferAdcTime - then_s - length / rate
                lost = max(round(gap_s * rate), 1) if gap_s < 60.0 else 1
            if status.input_underflow:
                queue.underruns += 1
            before[:] = [(times.inputBufferAdcTime, frames)]
            queue.put(block[:, 0].copy(), lost=lost)

        def ended() -> None:
            if not self._closing:
                queue.end(
                    AudioError(
                        f"{self.name} stopped giving sound (was it unplugged?); what was heard "
                        "until then is kept."
                    )
                )

        try:
            self._stream = self._sounddevice.InputStream(
                samplerate=rate,
                device=self.device,
                channels=1,
                dtype="float32",
                latency="low",
                callback=heard,
                finished_callback=ended,
            )
            self._stream.start()
        except self._sounddevice.PortAudioError as error:
            raise AudioError(
                f"{self.name} cannot be opened at {rate} Hz ({error}); is another program using it?"
            ) from error
        self.latency_s = float(self._stream.latency)

    def alive(self) -> bool:
        """Whether the device still gives sound."""
        return self._stream is not None and bool(self._stream.active)

    def close(self) -> None:
        """Give the device back."""
        self._closing = True
        if self._stream is not None:
            self._stream.close()


def microphones() -> list[tuple[int, str]]:
    """Number and name of each input of the sound card. Raises MissingDependencyError."""
    devices = enumerate(_sounddevice().query_devices())
    return [
        (number, str(facts["name"])) for number, facts in devices if facts["max_input_channels"]
    ]


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingDependencyError(
            f"a microphone needs sounddevice: pip install 'musicjax[live]'; {_OTHER_WAYS}"
        ) from error
    except OSError as error:
        raise MissingDependencyError(
            f"a microphone needs the PortAudio library of the system ({error}): on Debian and "
            f"Ubuntu apt install libportaudio2; {_OTHER_WAYS}"
        ) from error
    return sounddevice
