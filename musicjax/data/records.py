"""Training examples on disk: audio and its notes, one record each, in ArrayRecord shards.

A record is `MJXR`, the length of a JSON header, the header, the note arrays, then the audio as
16-bit PCM or FLAC. The header tells dtype and length of each array, so a crop of PCM audio is a
view of the bytes that were read and nothing else is decoded.
"""

import io
import json
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int16

from musicjax.errors import DataError, MissingDependencyError
from musicjax.files import make_folder
from musicjax.notes import Notes, Pedal

SUFFIX = ".array_record"
_MAGIC = b"MJXR"
_NOTE_FIELDS = ("onset_s", "offset_s", "pitch", "velocity", "program", "is_drum")
_PEDAL_FIELDS = ("time_s", "number", "value", "program")
_SHARD_OPTIONS = "group_size:1,uncompressed"  # one read per example; audio does not shrink
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # the setting for random access

_INCOMPLETE = (
    "{} is not a complete ArrayRecord file ({}): delete it and run the command that wrote it again."
)

Codec = Literal["pcm16", "flac"]


@dataclass(frozen=True)
class Example:
    """One piece or excerpt with its notes.

    samples is mono int16 of shape (N,); note times are seconds from its first sample. Offsets are
    key releases; the pedal is kept in `notes.pedal`.
    """

    id: str
    sample_rate: int
    samples: Int16[np.ndarray, " N"]
    notes: Notes

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return len(self.samples) / self.sample_rate

    def crop(self, start: int, num_samples: int) -> Int16[np.ndarray, " M"]:
        """At most `num_samples` samples from `start` on; fewer at the end."""
        return self.samples[start : start + num_samples]


class Record:
    """An example as it is stored: header and notes are read at once, audio on demand."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        if data[:4] != _MAGIC:
            raise DataError(
                f"record starts with {bytes(data[:4])!r}, expected {_MAGIC!r}: "
                "this is not a record written by `musicjax data`."
            )
        try:
            (size,) = struct.unpack_from("<I", data, 4)
            header: dict[str, Any] = json.loads(data[8 : 8 + size])
            self.id: str = header["id"]
            self.sample_rate: int = header["sample_rate"]
            self.num_samples: int = header["num_samples"]
            self._codec: Codec = header["codec"]
            self._arrays, self._audio_at = self._read_arrays(header["arrays"], 8 + size)
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise DataError(
                f"the header of a record is damaged ({error}): write its shard again."
            ) from error
        if self._codec == "pcm16" and len(data) - self._audio_at != 2 * self.num_samples:
            raise DataError(f"record {self.id!r} is cut short: write its shard again.")

    def _read_arrays(
        self, table: list[list[Any]], position: int
    ) -> tuple[dict[str, np.ndarray], int]:
        arrays = {}
        for name, dtype, count in table:
            kind = np.dtype(dtype)
            if position + kind.itemsize * count > len(self._data):
                raise DataError(f"record {self.id!r} is cut short: write its shard again.")
            arrays[name] = np.frombuffer(self._data, kind, count, position)
            position += kind.itemsize * count
        return arrays, position

    @property
    def duration_s(self) -> float:
        """Length of the audio in seconds."""
        return self.num_samples / self.sample_rate

    @property
    def notes(self) -> Notes:
        """The notes of the whole record, with the pedal if it was stored."""
        pedal = None
        if "pedal.time_s" in self._arrays:
            pedal = Pedal(**{name: self._arrays[f"pedal.{name}"] for name in _PEDAL_FIELDS})
        arrays: dict[str, Any] = {name: self._arrays[name] for name in _NOTE_FIELDS}
        return Notes.from_arrays(**arrays, pedal=pedal)

    def crop(self, start: int, num_samples: int) -> Int16[np.ndarray, " M"]:
        """At most `num_samples` samples from `start` on; fewer at the end. Decodes only these."""
        count = max(0, min(num_samples, self.num_samples - start))
        if self._codec == "pcm16":
            return np.frombuffer(self._data, "<i2", count, self._audio_at + 2 * start)
        import soundfile

        with soundfile.SoundFile(io.BytesIO(self._data[self._audio_at :])) as file:
            file.seek(start)
            return file.read(count, dtype="int16")

    def example(self) -> Example:
        """Everything decoded."""
        return Example(self.id, self.sample_rate, self.crop(0, self.num_samples), self.notes)


def encode(example: Example, codec: Codec = "pcm16") -> bytes:
    """One example as the bytes of a record."""
    samples = np.ascontiguousarray(example.samples)
    if samples.dtype != np.int16 or samples.ndim != 1:
        raise DataError(
            f"samples of example {example.id!r} must be int16 of shape (N,); got {samples.dtype} "
            f"of shape {samples.shape}: mix to mono and use `musicjax.data.records.to_int16`."
        )
    notes, pedal = example.notes, example.notes.pedal
    arrays = {name: getattr(notes, name) for name in _NOTE_FIELDS}
    if pedal is not None:
        arrays |= {f"pedal.{name}": getattr(pedal, name) for name in _PEDAL_FIELDS}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    header = {
        "id": example.id,
        "sample_rate": int(example.sample_rate),
        "num_samples": len(samples),
        "codec": codec,
        "arrays": [[name, array.dtype.str, len(array)] for name, array in arrays.items()],
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    parts = [_MAGIC, struct.pack("<I", len(text)), text]
    parts += [array.tobytes() for array in arrays.values()]
    parts.append(_encode_audio(samples, example.sample_rate, codec))
    return b"".join(parts)


def _encode_audio(samples: np.ndarray, sample_rate: int, codec: Codec) -> bytes:
    if codec == "pcm16":
        return samples.astype("<i2", copy=False).tobytes()
    if codec != "flac":
        raise DataError(f"codec is {codec!r}, expected 'pcm16' or 'flac'.")
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sample_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def decode(data: bytes) -> Example:
    """The example in the bytes of a record. Raises DataError for anything else."""
    return Record(data).example()


def to_int16(samples: np.ndarray) -> Int16[np.ndarray, " N"]:
    """Float samples in [-1, 1] as 16 bit; what is louder is clipped."""
    return np.clip(np.rint(samples * 32767.0), -32768, 32767).astype(np.int16)


def to_float(samples: np.ndarray) -> np.ndarray:
    """16-bit samples as float32 in [-1, 1)."""
    return samples.astype(np.float32) * np.float32(1 / 32768)


def write_shard(
    path: str | os.PathLike[str], examples: Iterable[Example], codec: Codec = "pcm16"
) -> int:
    """Write examples to one ArrayRecord file; it appears under its name only when complete.

    Returns the number of examples. A shard that fails half-way leaves nothing behind.
    """
    array_record = _array_record()
    path = Path(path)
    make_folder(path.parent)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    count = 0
    writer = array_record.ArrayRecordWriter(str(unfinished), _SHARD_OPTIONS)
    try:
        for example in examples:
            writer.write(encode(example, codec))
            count += 1
        writer.close()
        unfinished.replace(path)
    finally:
        if writer.is_open():
            writer.close()
        unfinished.unlink(missing_ok=True)
    return count


class RecordSource(Sequence[Record]):
    """Random access to all records below some paths: files, or folders searched for shards.

    Shards are taken in the order of their names. Readers are opened on first use, so a source can
    be sent to worker processes. Raises DataError when a path holds no record.
    """

    def __init__(self, *paths: str | os.PathLike[str]) -> None:
        self.shards = [shard for path in paths for shard in find_shards(path)]
        self._readers: list[Any] = [None] * len(self.shards)
        counts = [self._reader(i).num_records() for i in range(len(self.shards))]
        for shard, count in zip(self.shards, counts, strict=True):
            if not count:  # so does the reader answer to a file that was cut short
                raise DataError(_INCOMPLETE.format(shard, "it holds no record"))
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = int(index) % len(self)
        shard = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[shard - 1]) if shard else 0
        return Record(self._reader(shard).read([index - first])[0])

    def examples(self) -> Iterator[Example]:
        """All examples in order, decoded."""
        for i in range(len(self)):
            yield self[i].example()

    def __repr__(self) -> str:
        return f"RecordSource({len(self)} records in {len(self.shards)} shards)"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": [None] * len(self.shards)}

    def _reader(self, shard: int) -> Any:
        if self._readers[shard] is None:
            path = str(self.shards[shard])
            try:
                self._readers[shard] = _array_record().ArrayRecordReader(path, _READ_OPTIONS)
            except (ValueError, RuntimeError) as error:
                raise DataError(_INCOMPLETE.format(path, error)) from error
        return self._readers[shard]


def find_shards(path: str | os.PathLike[str]) -> list[Path]:
    """The shard files at a path (a file, or a folder searched with its sub-folders), by name."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.exists():
        raise DataError(f"{path} does not exist: expected a folder of {SUFFIX} files or one file.")
    shards = sorted(p for p in path.rglob(f"*{SUFFIX}") if not p.name.startswith("."))
    if not shards:
        raise DataError(
            f"no {SUFFIX} file below {path}: write some with `musicjax data render` or "
            "`musicjax data import`."
        )
    return shards


def _array_record() -> Any:
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise MissingDependencyError(
            "reading and writing records needs the package array_record: "
            "pip install 'musicjax[train]'."
        ) from error
    return array_record_module
