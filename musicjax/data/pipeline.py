"""Batches for training: stored or freshly composed examples, cropped, augmented, labelled.

The order of examples, the crops, the augmentation and the composer's music follow from
`DataConfig.seed` and the position in the stream alone, so an iterator restored with `set_state`
continues with the same batches, whatever the number of workers or threads.
"""

import atexit
import functools
import gc
import glob
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from musicjax.data.augment import AugmentConfig, augment
from musicjax.data.captions import SUFFIX as CAPTIONS
from musicjax.data.captions import Captioned, caption_source, describe
from musicjax.data.corpora import AUDIO_SUFFIXES, Recording, folder_source
from musicjax.data.records import SUFFIX, Example, Record, RecordSource, to_float, to_int16
from musicjax.errors import ConfigError, DataError, MissingDependencyError
from musicjax.notes import Notes

# Of notes, of a sentence, or of a contour of pitch.
Targets = Callable[[Any, float, int], Mapping[str, np.ndarray]]

_COMPOSER = "composer:"
_BAND = "band"  # behind it: pieces for several instruments, played by the built-in band
_VOICES = "voices:"
_SEQIO = "seqio:"
_DESCRIBED = "captions:"  # composed pieces with a sentence instead of their notes
_COMPOSER_EPOCH = 1024  # composed clips counted as one epoch; each epoch's clips are new
_CLIPS_A_PIANO = 512  # composed clips until the next modelled piano joins
_PIANOS = 3  # that are played at a time; a complete one takes some 200 MB
_PEAK = 0.95  # composed clips are turned down to it, never up: their dynamics are wanted
_OPEN: "weakref.WeakSet[Any]" = weakref.WeakSet()  # iterators to close before the interpreter ends
_COMPOSER_EXAMPLES = 8  # how many examples "composer:" yields for validation
_MARGIN = 0.04  # part of a clip cropped in addition, because tuning it higher shortens it


@dataclass(frozen=True)
class DataConfig:
    """Where training and validation examples come from and how they become batches."""

    train: tuple[str, ...] = ("composer:",)
    """Folders or files of records, recordings with notes beside them (a folder, a file, a pattern),
    or `composer:` (`composer:PATH` plays through a sound font or a bank of notes, `composer:band`
    several instruments and drums). For pitch: `voices:`, one made-up voice at a time with its pitch
    known (`voices:PATH`, the same from a sound font). For captioners: `.jsonl` files of recordings
    and sentences, or `captions:`, the composer with sentences. `seqio:NAME` alone: a Task or
    Mixture of SeqIO, see `musicjax.data.seqio_tasks`."""
    valid: tuple[str, ...] = ("composer:",)
    """The same, for validation; `composer:` gives a fixed handful of pieces."""
    weights: tuple[float, ...] = ()
    """How often to draw from each entry of `train`; empty draws by their records."""
    temperature: float = 1.0
    """Without `weights`, an entry of n records is drawn in proportion to n ** (1 / temperature): 1
    draws every record as often as any other, 10 / 3 is MT3's balance of large and small corpora."""
    clip_s: float = 10.24
    """Length of a training clip in seconds."""
    batch_size: int = 8
    """Clips in a batch, over all processes together."""
    augment: AugmentConfig | None = field(default_factory=AugmentConfig)
    """Room, equaliser, noise, tuning and level; None leaves the audio as stored."""
    pedal_extended: bool = True
    """Whether a note lasts as long as the sustain pedal holds it, or until its key is released."""
    audio_dtype: Literal["float32", "int16"] = "float32"
    """Dtype of the batch's audio; int16 halves the transfer to the device."""
    workers: int = 0
    """Worker processes; 0 prepares clips in threads of this process."""
    threads: int = 2
    """Threads that prepare clips, in this process or in each worker."""
    prefetch: int = 2
    """Batches to prepare ahead."""
    seed: int = 0
    """Seed of order, crops, augmentation and composition."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ConfigError("data.train is empty: name a folder of records or 'composer:'.")
        if self.weights and len(self.weights) != len(self.train):
            raise ConfigError(
                f"data.weights has {len(self.weights)} numbers for {len(self.train)} entries of "
                "data.train: give one weight per entry, or none."
            )
        if self.temperature <= 0:
            raise ConfigError(f"data.temperature is {self.temperature}; it must be above 0.")
        if self.clip_s <= 0 or self.batch_size < 1:
            raise ConfigError(
                f"data.clip_s ({self.clip_s}) and data.batch_size ({self.batch_size}) must be "
                "positive."
            )


@dataclass(frozen=True)
class Clip:
    """A clip that comes cut from elsewhere: samples (N,) float32, and notes or a sentence."""

    id: str
    samples: np.ndarray
    notes: Notes
    text: str | None = None


@dataclass(frozen=True)
class _Blank:
    """What the composer's source yields: a place in the stream that the clip's rng fills."""

    bank: str
    described: bool = False  # its label is a sentence about it


@dataclass(frozen=True)
class _Sung:
    """A place in the stream that one voice fills, from that sound font or computed."""

    font: str


class _VoiceSource(Sequence[_Sung]):
    def __init__(self, font: str) -> None:
        self.font = font

    def __len__(self) -> int:
        return _COMPOSER_EPOCH

    def __getitem__(self, index: Any) -> Any:
        return _Sung(self.font)


class _ComposerSource(Sequence[_Blank]):
    def __init__(self, bank: str, described: bool = False) -> None:
        self.bank, self.described = bank, described

    def __len__(self) -> int:
        return _COMPOSER_EPOCH

    def __getitem__(self, index: Any) -> Any:
        return _Blank(self.bank, self.described)


@dataclass(frozen=True)
class ClipMaker:
    """Turns a stored record or a place for a composition into one labelled clip.

    Called with (position in the stream, element) and the generator of that position; returns
    `{"audio": (N,), **targets}`.
    """

    config: DataConfig
    targets: Targets
    sample_rate: int

    @property
    def num_samples(self) -> int:
        """Samples in a clip."""
        return round(self.config.clip_s * self.sample_rate)

    def __call__(
        self,
        placed: tuple[int, Record | Recording | Captioned | Clip | _Blank | _Sung],
        rng: np.random.Generator,
    ) -> dict[str, np.ndarray]:
        position, element = placed
        if isinstance(element, _Sung):
            return self._sung(element.font, rng)
        margin = round(_MARGIN * self.num_samples) if self.config.augment else 0
        sentence: str | None = None
        if isinstance(element, Captioned):
            samples, sentence = element.clip(rng, self.num_samples + margin)
            notes = Notes.empty()
        elif isinstance(element, Clip):
            samples, notes, sentence = element.samples, element.notes, element.text
        elif isinstance(element, _Blank):
            seconds = (self.num_samples + margin) / self.sample_rate
            piano = max(0, position // _CLIPS_A_PIANO - int(rng.integers(_PIANOS)))
            samples, notes = _compose_clip(element.bank, piano, rng, seconds, self.sample_rate)
            notes = self._heard(notes)
            if element.described:
                sentence = describe(notes, seconds, rng)
        else:
            samples, notes = self._crop(element, rng, self.num_samples + margin)
        if self.config.augment:
            samples, notes = augment(samples, notes, self.sample_rate, rng, self.config.augment)
        samples = _fit(samples, self.num_samples)
        audio = samples if self.config.audio_dtype == "float32" else to_int16(samples)
        truth = notes if sentence is None else sentence
        return {"audio": audio, **self.targets(truth, 0.0, self.num_samples)}

    def _sung(self, font: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One voice; its tuning, room and noise are its own, of what augments only the rest."""
        from musicjax.data.voices import sing

        samples, contour = sing(rng, self.config.clip_s, self.sample_rate, font)
        if self.config.augment:
            rest = replace(
                self.config.augment,
                tuning_cents=0.0,
                jitter_s=0.0,
                room_chance=0.0,
                noise_chance=0.0,
            )
            samples, _ = augment(samples, Notes.empty(), self.sample_rate, rng, rest)
        audio = _fit(samples, self.num_samples)
        audio = audio if self.config.audio_dtype == "float32" else to_int16(audio)
        return {"audio": audio, **self.targets(contour, 0.0, self.num_samples)}

    def _crop(
        self, element: Record | Recording, rng: np.random.Generator, count: int
    ) -> tuple[np.ndarray, Notes]:
        if element.sample_rate != self.sample_rate:
            raise DataError(
                f"example {element.id!r} is stored at {element.sample_rate} Hz and the model hears "
                f"{self.sample_rate} Hz: write the records at {self.sample_rate} Hz."
            )
        spare = round(element.duration_s * self.sample_rate) - self.num_samples
        start = int(rng.integers(0, spare + 1)) if spare > 0 else 0
        samples = to_float(element.crop(start, count))
        start_s, end_s = start / self.sample_rate, (start + count) / self.sample_rate
        # The pedal is resolved before the cut; a note begun before it keeps a negative onset.
        return samples, self._heard(element.notes).slice(start_s, end_s).shift(-start_s)

    def _heard(self, notes: Notes) -> Notes:
        return notes.sustained() if self.config.pedal_extended else notes


def _fit(samples: np.ndarray, num_samples: int) -> np.ndarray:
    samples = np.asarray(samples[:num_samples], np.float32)
    return np.pad(samples, (0, num_samples - len(samples)))


def _placed(position: int, element: Any) -> tuple[int, Any]:
    return position, element


@functools.lru_cache(maxsize=_PIANOS)
def _piano(number: int, sample_rate: int) -> Any:
    from musicjax.data.synth import modelled_piano

    return modelled_piano(np.random.default_rng([number, 0x9A]), sample_rate)


def _compose_clip(
    bank: str, piano: int, rng: np.random.Generator, duration_s: float, sample_rate: int
) -> tuple[np.ndarray, Notes]:
    if bank == _BAND:
        from musicjax.data.band import play_band

        samples, notes = play_band(rng, duration_s, sample_rate)
    else:
        from musicjax.data.compose import compose
        from musicjax.data.instruments import open_bank

        notes = compose(rng, duration_s)
        instrument = open_bank(bank, sample_rate) if bank else _piano(piano, sample_rate)
        samples = instrument.render(notes, sample_rate, rng)
    samples = _fit(samples, round(duration_s * sample_rate))
    peak = float(np.abs(samples).max())
    return samples * np.float32(min(1.0, _PEAK / max(peak, 1e-6))), notes


def open_source(entry: str, sample_rate: int = 16000) -> Sequence[Any]:
    """Random access to the examples that one entry of `DataConfig.train` or `.valid` names.

    Recordings in folders are delivered at `sample_rate` Hz; records keep the rate they have.
    """
    if entry.startswith(_COMPOSER):
        return _ComposerSource(entry.removeprefix(_COMPOSER))
    if entry.startswith(_VOICES):
        return _VoiceSource(entry.removeprefix(_VOICES))
    if entry.startswith(_DESCRIBED):
        return _ComposerSource(entry.removeprefix(_DESCRIBED), described=True)
    path = Path(entry)
    if not path.exists() and not glob.has_magic(entry):
        raise DataError(
            f"{path} does not exist: give a folder of recordings with .mid or .csv files beside "
            "them, a folder of records, or composer: for music made up on the spot."
        )
    if path.suffix == CAPTIONS:
        return caption_source(path, sample_rate)
    recordings = path.suffix.lower() in AUDIO_SUFFIXES or glob.has_magic(entry)
    if recordings or (path.is_dir() and next(path.rglob(f"*{SUFFIX}"), None) is None):
        return folder_source(path, sample_rate)
    return RecordSource(path)


def train_iterator(
    config: DataConfig,
    targets: Targets,
    sample_rate: int,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Any:
    """Endless batches `{"audio": (B, N), **targets}`, as a grain iterator.

    Args:
      targets: `(notes, start_s, num_samples) -> dict of arrays`, with a sentence in place of notes
        where the data have sentences; must be importable when `config.workers` is not 0.
      sample_rate: rate the model hears, in Hz.
      process_index, process_count: this process's part of each batch. All processes together draw
        the same clips as one process would; B is `config.batch_size // process_count`.

    `get_state()` gives a small dict and `set_state` continues exactly there.
    """
    grain = _grain()
    if config.batch_size % process_count:
        raise ConfigError(
            f"data.batch_size is {config.batch_size}, which {process_count} processes cannot "
            "share equally: choose a multiple."
        )
    local_batch = config.batch_size // process_count
    maker = ClipMaker(config, targets, sample_rate)
    if any(entry.startswith(_SEQIO) for entry in config.train):
        clips = _mixture(config, process_index, process_count).random_map(maker, seed=config.seed)
        return _kept(iter(clips.batch(local_batch, drop_remainder=True)))
    parts = [grain.MapDataset.source(open_source(entry, sample_rate)) for entry in config.train]
    weights = config.weights
    if not weights and config.temperature != 1:
        weights = tuple(len(part) ** (1 / config.temperature) for part in parts)
    if weights:
        parts = [p.seed(config.seed + i).shuffle().repeat() for i, p in enumerate(parts)]
        stream = grain.MapDataset.mix(parts, weights=weights)
    else:
        stream = grain.MapDataset.concatenate(parts).seed(config.seed).shuffle().repeat()
    stream = stream.map_with_index(_placed)
    stream = stream.random_map(maker, seed=config.seed)
    if process_count > 1:
        stream = stream[process_index::process_count]
    ahead = max(1, config.prefetch) * local_batch
    reading = grain.ReadOptions(num_threads=config.threads, prefetch_buffer_size=ahead)
    clips = stream.to_iter_dataset(reading)
    if config.workers:
        _accept_absl_flags()
        per_worker = max(1, -(-ahead // config.workers))
        # Before batching, so that batches are the same for any number of workers.
        clips = clips.mp_prefetch(
            grain.MultiprocessingOptions(
                num_workers=config.workers, per_worker_buffer_size=per_worker
            )
        )
    return _kept(iter(clips.batch(local_batch, drop_remainder=True)))


def _kept(iterator: Any) -> Any:
    """The iterator, which is closed before the interpreter ends."""
    _OPEN.add(iterator)
    atexit.unregister(_close_all)
    atexit.register(_close_all)  # again, to come before the exit handlers of multiprocessing
    return iterator


def _mixture(config: DataConfig, process_index: int, process_count: int) -> Any:
    """The SeqIO mixture that the config names, as (position, clip) for this process."""
    from musicjax.data.seqio_tasks import MixtureDataset, open_mixture

    if len(config.train) > 1:
        raise ConfigError(
            f"data.train is {', '.join(config.train)}; a SeqIO task comes alone, because SeqIO "
            "mixes: make a Mixture of tasks (musicjax.data.seqio_tasks.add_task turns any entry "
            "into one)."
        )
    reader = open_mixture(config.train[0].removeprefix(_SEQIO))
    return MixtureDataset(reader, config.seed, process_index, process_count)


def examples(entries: Sequence[str], sample_rate: int = 16000) -> Iterator[Example]:
    """The examples that `entries` name, whole and in order, for evaluation.

    `sample_rate` is for `composer:` and folders of recordings; records keep the rate they have.
    """
    for entry in entries:
        if entry.startswith(_SEQIO):
            from musicjax.data.seqio_tasks import open_mixture

            reader = open_mixture(entry.removeprefix(_SEQIO))
            for clip in reader.clips("validation", 0, forever=False):
                yield Example(clip.id, sample_rate, to_int16(clip.samples), clip.notes)
            continue
        source = open_source(entry, sample_rate)
        if isinstance(source, _VoiceSource):
            yield from _sung_examples(source.font, sample_rate)
        elif isinstance(source, _ComposerSource):
            yield from _composed_examples(source.bank, sample_rate)
        else:
            for element in source:
                yield element.example()


def _composed_examples(bank: str, sample_rate: int, seconds: float = 12.0) -> Iterator[Example]:
    for i in range(_COMPOSER_EXAMPLES):
        rng = np.random.default_rng([i, 0x7E57])  # a stream of its own: never seen in training
        samples, notes = _compose_clip(bank, 2**20, rng, seconds, sample_rate)
        yield Example(f"composed-{i}", sample_rate, to_int16(samples), notes)


def _sung_examples(font: str, sample_rate: int, seconds: float = 12.0) -> Iterator[Example]:
    from musicjax.data.voices import sing

    for i in range(_COMPOSER_EXAMPLES):
        rng = np.random.default_rng([i, 0x7E57])  # a stream of its own: never seen in training
        samples, contour = sing(rng, seconds, sample_rate, font)
        samples *= _PEAK / max(_PEAK, float(np.abs(samples).max()))
        yield Example(f"sung-{i}", sample_rate, to_int16(samples), contour.to_notes(bends=False))


def _close_all() -> None:
    """Ends workers and frees shared memory before the interpreter goes."""
    for iterator in list(_OPEN):
        iterator.close()
        # Its parts would be closed once more while modules are being torn down, and complain.
        vars(iterator).clear()
        iterator._closed = True
    gc.collect()


def _accept_absl_flags() -> None:
    """grain's workers read absl flags, which only programs started by absl have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])


def _grain() -> Any:
    try:
        import grain
    except ImportError as error:
        raise MissingDependencyError(
            "training data needs the package grain: pip install 'musicjax[train]'."
        ) from error
    return grain
