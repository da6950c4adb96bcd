"""Read, resample and write audio.

WAV, FLAC, OGG, MP3, AIFF and the other formats of libsndfile are decoded by soundfile; anything
else (M4A, AAC, WebM, the sound of a video) by the ffmpeg program where it is installed. Whatever
the source, the signal goes through one streaming road (decode, mix to mono, resample), so a file
read at once and the same file read in blocks give the same samples.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from musicjax.audio import ffmpeg
from musicjax.audio.ends import what_is_missing
from musicjax.errors import AudioError, OutputError
from musicjax.files import atomic_write

Source = str | os.PathLike[str] | BinaryIO

_READ_FRAMES = 1 << 18  # frames decoded at a time: 6 s at 44.1 kHz
_COUNTED_FRAMES = 1 << 10  # at a time, to tell where a damaged file ends
_MEND = "copy it again from its source, or save what is there with another program"
_WRITABLE = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3", ".aiff": "AIFF"}
_EXACT_LENGTH = {"WAV", "WAVEX", "FLAC", "AIFF", "OGG"}  # the header's length is a promise


@dataclass(frozen=True, eq=False)
class Audio:
    """A decoded recording: float32 samples, (N,) if mono or (C, N), and their rate in Hz."""

    samples: np.ndarray
    sample_rate: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples.shape[-1] / self.sample_rate

    def __repr__(self) -> str:
        channels = 1 if self.samples.ndim == 1 else self.samples.shape[0]
        return f"Audio({self.duration_s:.2f} s, {self.sample_rate} Hz, {channels} channel(s))"


@dataclass(frozen=True)
class AudioInfo:
    """What a file says of itself. `format` is the container's name, e.g. "FLAC" or "MOV"."""

    duration_s: float
    sample_rate: int
    channels: int
    format: str


def load_audio(source: Source, sample_rate: int | None = None, mono: bool = True) -> Audio:
    """Read a whole recording.

    Args:
      source: path or binary file object.
      sample_rate: Hz to resample to; None keeps the file's own.
      mono: average the channels; otherwise samples are (C, N).

    Returns samples as float32. Raises AudioError with a sentence for anything that is not readable,
    finite, non-empty audio.
    """
    with _open(source) as decoder:
        rate = _target_rate(sample_rate, decoder.sample_rate)
        pieces = list(_resampled(decoder, rate, mono))
    samples = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)
    samples = samples[:, 0] if mono else np.ascontiguousarray(samples.T)
    check_samples(samples, rate, name=_name(source))
    return Audio(samples, rate)


def blocks(
    source: Source, sample_rate: int, block_s: float = 60.0, *, mono: bool = True
) -> Iterator[np.ndarray]:
    """Read a recording of any length as mono float32 blocks, in bounded memory.

    Every block has round(block_s * sample_rate) samples but the last. Put together they are exactly
    what `load_audio(source, sample_rate)` gives, because resampling runs on across their borders.
    Without `mono` they are (C, N).
    Raises AudioError as `load_audio` does, at the block where the trouble is.
    """
    size = round(block_s * sample_rate)
    if size < 1:
        raise AudioError(f"block_s is {block_s} s; a block must hold at least one sample.")
    name, waiting, count, seen = _name(source), [], 0, 0
    with _open(source) as decoder:
        for piece in _resampled(decoder, _target_rate(sample_rate, decoder.sample_rate), mono):
            waiting.append(piece[:, 0] if mono else piece)
            count += len(piece)
            if count < size:
                continue
            joined = np.concatenate(waiting)
            whole = len(joined) // size * size
            for start in range(0, whole, size):
                yield _checked(joined[start : start + size].T, sample_rate, name)
            seen += whole
            waiting, count = [joined[whole:]], len(joined) - whole
    if count or not seen:
        joined = np.concatenate(waiting) if waiting else np.zeros(0)
        yield _checked(joined.T, sample_rate, name)


def probe(source: Source) -> AudioInfo:
    """Length, rate, channels and format, without decoding where the header tells.

    A file object is left where it stood.
    """
    with _open(source) as decoder:
        frames = decoder.num_frames
        if frames is None:
            frames = sum(len(piece) for piece in decoder.read())
        return AudioInfo(
            frames / decoder.sample_rate, decoder.sample_rate, decoder.channels, decoder.format
        )


def save_audio(path: str | os.PathLike[str], samples: np.ndarray, sample_rate: int) -> Path:
    """Write samples in [-1, 1], (N,) or (C, N); the path's ending says the format.

    WAV, FLAC, OGG, MP3 and AIFF; the lossless ones with 16 bits. What exceeds full scale is
    clipped. The file appears whole or not at all. Raises OutputError if it cannot be written,
    AudioError if samples are not audio.
    """
    path = Path(path)
    check_samples(samples, sample_rate)
    container = _WRITABLE.get(path.suffix.lower())
    if container is None:
        raise OutputError(
            f"{path} ends in {path.suffix!r}; audio can be written as {', '.join(_WRITABLE)}."
        )
    with atomic_write(path) as file:
        try:
            soundfile.write(file, np.asarray(samples, np.float32).T, sample_rate, format=container)
        except soundfile.LibsndfileError as error:
            raise OutputError(
                f"{path} cannot be written: {container} does not hold "
                f"{1 if samples.ndim == 1 else len(samples)} channel(s) at {sample_rate} Hz "
                f"({error.error_string.strip('. ')}); write a WAV file."
            ) from error
    return path


def check_samples(samples: np.ndarray, sample_rate: int, *, name: str = "audio") -> None:
    """Raise AudioError unless samples are finite floats, (N,) or (C, N) with N >= 1.

    The edge check of every task that takes arrays: networks answer NaN and transposed stereo with
    nonsense, not with an error.
    """
    if sample_rate < 1:
        raise AudioError(f"{name} has sample rate {sample_rate}; give the rate in Hz.")
    samples = np.asarray(samples)
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"{name} has dtype {samples.dtype}; give floats in [-1, 1] (divide 16-bit integers by "
            "32768)."
        )
    if samples.ndim not in (1, 2):
        raise AudioError(
            f"{name} has shape {samples.shape}; give (samples,) or (channels, samples)."
        )
    if samples.size == 0:
        raise AudioError(f"{name} holds no samples; give a recording that is longer than nothing.")
    if samples.ndim == 2 and samples.shape[0] > 256:
        raise AudioError(
            f"{name} has shape {samples.shape}, which reads as {samples.shape[0]} channels; the "
            "layout is (channels, samples), so transpose it."
        )
    if not np.isfinite(samples).all():
        bad = int(samples.size - np.isfinite(samples).sum())
        first = int(np.flatnonzero(~np.isfinite(samples).reshape(-1, samples.shape[-1]).all(0))[0])
        raise AudioError(
            f"{name} has {bad} sample(s) that are NaN or infinite, the first at "
            f"{first / sample_rate:.3f} s; repair the recording or replace them by 0."
        )


def _checked(block: np.ndarray, sample_rate: int, name: str) -> np.ndarray:
    check_samples(block, sample_rate, name=name)
    return block


def _target_rate(sample_rate: int | None, own: int) -> int:
    if sample_rate is not None and sample_rate < 1:
        raise AudioError(f"sample_rate is {sample_rate}; give a rate in Hz, such as 16000.")
    return int(sample_rate or own)


def _resampled(decoder, sample_rate: int, mono: bool) -> Iterator[np.ndarray]:
    """(n, C) float32 pieces at the target rate."""
    channels = 1 if mono else decoder.channels
    resampler = None
    if sample_rate != decoder.sample_rate:
        resampler = soxr.ResampleStream(
            decoder.sample_rate, sample_rate, channels, dtype="float32", quality="HQ"
        )
    for piece in decoder.read():
        if mono and piece.shape[1] > 1:
            piece = piece.mean(axis=1, keepdims=True, dtype=np.float32)
        yield piece if resampler is None else resampler.resample_chunk(piece)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros((0, channels), np.float32), last=True)


class _SoundfileDecoder:
    """Decodes through libsndfile, and notices when a file ends before its header said."""

    def __init__(self, file: soundfile.SoundFile, name: str):
        self._file, self._name = file, name
        self.sample_rate: int = file.samplerate
        self.channels: int = file.channels
        self.format: str = file.format
        self.num_frames: int | None = file.frames

    def read(self) -> Iterator[np.ndarray]:
        done = 0
        while True:
            try:
                piece = self._file.read(_READ_FRAMES, dtype="float32", always_2d=True)
            except soundfile.LibsndfileError as error:
                raise AudioError(self._broken(done + self._more_after(done))) from error
            if not len(piece):
                break
            done += len(piece)
            yield piece
        if self.format in _EXACT_LENGTH and done < self._file.frames:
            raise AudioError(self._broken(done))

    def _more_after(self, done: int) -> int:
        """Frames that can be decoded of the piece whose reading failed as a whole."""
        more = 0
        with contextlib.suppress(soundfile.LibsndfileError):
            self._file.seek(done)
            while count := len(self._file.read(_COUNTED_FRAMES, dtype="float32")):
                more += count
        return more

    def _broken(self, done: int) -> str:
        return (
            f"{self._name} is damaged or cut short: its header promises "
            f"{self._file.frames / self.sample_rate:.2f} s but only "
            f"{done / self.sample_rate:.2f} s can be decoded; {_MEND}."
        )

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _open(source: Source) -> Iterator[_SoundfileDecoder | ffmpeg.Decoder]:
    """A decoder for a path or file object, or AudioError saying what is wrong with it."""
    if not isinstance(source, (str, os.PathLike)):
        with _open_file_object(source) as decoder:
            yield decoder
        return
    path, name = Path(source), _name(source)
    if not path.exists():
        raise AudioError(f"{name} does not exist; check the path.")
    if path.is_dir():
        raise AudioError(f"{name} is a folder; name an audio file inside it.")
    try:
        with path.open("rb") as file:
            _check_ends(file, name)
    except OSError as error:
        raise AudioError(f"{name} cannot be opened ({error.strerror}).") from error
    decoder = _decoder(path, name)
    try:
        yield decoder
    finally:
        decoder.close()


@contextlib.contextmanager
def _open_file_object(source: BinaryIO) -> Iterator[_SoundfileDecoder | ffmpeg.Decoder]:
    name = _name(source)
    if not hasattr(source, "read"):
        raise AudioError(
            f"audio source is a {type(source).__name__}; give a path or a binary file object."
        )
    start = source.tell()
    with contextlib.ExitStack() as stack:
        stack.callback(source.seek, start)
        _check_ends(source, name)
        source.seek(start)
        try:
            decoder: _SoundfileDecoder | ffmpeg.Decoder = _SoundfileDecoder(
                soundfile.SoundFile(source), name
            )
        except soundfile.LibsndfileError:
            # ffmpeg needs a file that it can seek in: MP4 may keep its index at the end.
            source.seek(start)
            copy = stack.enter_context(tempfile.NamedTemporaryFile(prefix="musicjax-"))
            shutil.copyfileobj(source, copy)
            copy.flush()
            decoder = ffmpeg.Decoder(Path(copy.name), name)
        stack.callback(decoder.close)
        yield decoder


def _decoder(path: Path, name: str) -> _SoundfileDecoder | ffmpeg.Decoder:
    try:
        return _SoundfileDecoder(soundfile.SoundFile(path), name)
    except soundfile.LibsndfileError:
        return ffmpeg.Decoder(path, name)


def _check_ends(file: BinaryIO, name: str) -> None:
    """Raise AudioError for what by its first bytes is no audio, or is cut before its last."""
    start = file.tell()
    head = file.read(512)
    if not isinstance(head, bytes):
        raise AudioError(f"{name} is open in text mode; open it in binary mode ('rb').")
    _check_head(head, name)
    missing = what_is_missing(file) if file.seekable() and not start else None
    if missing:
        raise AudioError(f"{name} is damaged or cut short: {missing}; {_MEND}.")


def _check_head(head: bytes, name: str) -> None:
    """Name the usual mistakes by the file's first bytes, whatever its ending claims."""
    if not head:
        raise AudioError(f"{name} is empty (0 bytes); copy it again from its source.")
    if head.startswith(b"MThd") or (head.startswith(b"RIFF") and head[8:12] == b"RMID"):
        raise AudioError(
            f"{name} is a MIDI file, which holds notes and no sound; give a recording, or render "
            "the MIDI file to audio first."
        )
    with contextlib.suppress(UnicodeDecodeError):
        text = head[:-4].decode("utf-8") if len(head) == 512 else head.decode("utf-8")
        if all(c.isprintable() or c in "\t\r\n\f\ufeff" for c in text) and not _is_audio(head):
            raise AudioError(
                f"{name} is a text file, whatever its name says; give an audio file (WAV, FLAC, "
                "OGG, MP3; M4A and video through ffmpeg)."
            )


def _is_audio(head: bytes) -> bool:
    return head.startswith((b"RIFF", b"fLaC", b"OggS", b"FORM", b"ID3", b".snd", b"RF64"))


def _name(source: Source) -> str:
    if isinstance(source, (str, os.PathLike)):
        return str(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the audio file object"
