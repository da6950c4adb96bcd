"""SeqIO and this library: our data as its Tasks and Mixtures, its mixtures as our training input.

A. Roberts et al., "Scaling Up Models and Data with t5x and seqio" (2022). The extra
`musicjax[seqio]` brings SeqIO and TensorFlow, which nothing else here needs; training reads
through grain.

Out. `add_task` registers any of our entries of training data (`composer:`, folders of records or
recordings) for trainers that read SeqIO: `inputs` (T, hop) float32, samples cut into frames as
MT3's tasks have them before their spectrograms, and `targets` (L,) int32, the end included, in a
`NoteVocabulary`. On import there are `musicjax_composer_<profile>`, a piano, and
`musicjax_<profile>`, a mixture of it with bands, for the languages mt3 and ismir2021.

In. `--data.train seqio:NAME` trains on the Task or Mixture NAME; `seqio:MODULE:NAME` imports the
Python module that registers it first. It must have `inputs` that are samples, (N,) or (T, hop), at
the rate that the model hears, and `targets` that are notes in one of MT3's languages (a
`NoteVocabulary`, or any vocabulary of the same size) or text. They are read back to notes or
sentences, so that every system can learn from them, with its own labels and augmentations.
"""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int32

from musicjax.data.pipeline import Clip, ClipMaker, DataConfig, open_source
from musicjax.errors import ConfigError, DataError, MissingDependencyError
from musicjax.notes import Codec, CodecConfig, Notes, codec_config
from musicjax.notes.vocabulary import EOS, PROFILES, SPECIAL_TOKENS, UNKNOWN
from musicjax.text import Tokenizer

try:
    import grain
    import seqio
    import tensorflow as tf
except ImportError as error:
    raise MissingDependencyError(
        f"SeqIO's tasks need SeqIO and TensorFlow, which do not import here ({error}): "
        "pip install 'musicjax[seqio]'."
    ) from error

tf.config.set_visible_devices([], "GPU")  # it would take all memory of the device from jax

SPLITS = ("train", "validation")
TEMPERATURE = 10 / 3  # of MT3's mixture, section 4.1 of its paper
_LOUDEST = (
    8.0  # samples lie within 1 and -1, with room for what is not normalised; spectrograms not
)


class NoteVocabulary(seqio.Vocabulary):
    """The language of a `CodecConfig` for SeqIO.

    `encode` takes events, numbers from 0 in the order of `musicjax.notes.Vocabulary`, and gives
    ids; `decode` takes ids up to their end and gives events, -1 for the end and -2 for an id that
    is no event, as MT3's vocabulary does.
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__(extra_ids=config.extra_tokens)
        self.config = config
        self._events = Codec(config).vocabulary.num_events

    @property
    def bos_id(self) -> None:
        """There is none: a decoder starts with padding."""
        return None

    @property
    def eos_id(self) -> int:
        """What ends a segment."""
        return EOS

    @property
    def unk_id(self) -> int:
        """What stands for no event."""
        return UNKNOWN

    @property
    def _base_vocab_size(self) -> int:
        return SPECIAL_TOKENS + self._events

    def _encode(self, s: Sequence[int]) -> list[int]:
        events = [int(event) for event in s]
        wrong = [event for event in events if not 0 <= event < self._events]
        if wrong:
            raise DataError(f"events go from 0 to {self._events - 1}; got {wrong[0]}.")
        return [SPECIAL_TOKENS + event for event in events]

    def _decode(self, ids: Sequence[int]) -> list[int]:
        events = []
        for number in ids:
            known = SPECIAL_TOKENS <= number < self._base_vocab_size
            events.append(number - SPECIAL_TOKENS if known else -1 if number == EOS else -2)
        return events

    def _encode_tf(self, s: Any) -> Any:
        return tf.cast(s, tf.int32) + SPECIAL_TOKENS

    def _decode_tf(self, ids: Any) -> Any:
        known = (ids >= SPECIAL_TOKENS) & (ids < self._base_vocab_size)
        other = tf.where(tf.equal(ids, EOS), -1, -2)
        return tf.where(known, ids - SPECIAL_TOKENS, tf.cast(other, ids.dtype))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NoteVocabulary) and self.config == other.config

    def __hash__(self) -> int:
        return hash(self.config)


class TextVocabulary(seqio.Vocabulary):
    """A tokenizer of `musicjax.text` for SeqIO; `name` tells it from others.

    `eos_id` is what the model's config ends a text with: 1 in T5's form, 2 in BART's.
    """

    def __init__(self, tokenizer: Tokenizer, name: str, eos_id: int = 1) -> None:
        super().__init__()
        self.tokenizer, self.name, self._eos = tokenizer, name, eos_id

    @property
    def bos_id(self) -> None:
        """There is none."""
        return None

    @property
    def eos_id(self) -> int:
        """What ends a text."""
        return self._eos

    @property
    def unk_id(self) -> None:
        """There is none."""
        return None

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.size

    def _encode(self, s: str) -> list[int]:
        return self.tokenizer.encode(s)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i != self._eos])

    def _encode_tf(self, s: Any) -> Any:
        def encode(text: Any) -> np.ndarray:
            return np.array(self._encode(text.numpy().decode()), np.int32)

        ids = tf.py_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: Any) -> Any:
        return tf.py_function(lambda row: self._decode(row.numpy().tolist()), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        mine = (self.name, self.tokenizer.size, self._eos)
        return isinstance(other, TextVocabulary) and mine == (
            other.name,
            other.tokenizer.size,
            other._eos,
        )

    def __hash__(self) -> int:
        return hash((self.name, self._eos))


# Out: our data as tasks -------------------------------------------------------------------------


@dataclass(frozen=True)
class _Targets:
    """What a task writes of a clip's notes."""

    codec: Codec

    def __call__(
        self, notes: Notes, start_s: float, num_samples: int
    ) -> Mapping[str, Int32[np.ndarray, " L"]]:
        return {"targets": self.codec.encode_clip(notes, start_s)}


def add_task(
    name: str,
    *,
    train: tuple[str, ...] = ("composer:",),
    valid: tuple[str, ...] = ("composer:",),
    codec: CodecConfig | None = None,
    sample_rate: int = 16_000,
    seed: int = 0,
) -> Any:
    """Register a SeqIO Task of our data, and give it.

    name: of the task. train, valid: what its splits `train` and `validation` hold, entries as in
    `DataConfig.train`; each gives one clip of a segment's length from each example, as stored.
    codec: the language of `targets`, MT3's when left out.

    Raises ConfigError when there is a task of that name.
    """
    codec = codec or codec_config("mt3")
    if name in seqio.TaskRegistry.names():
        raise ConfigError(f"there is a SeqIO task {name!r} already; give another name.")
    hop = round(sample_rate / codec.frames_per_second)
    entries = dict(zip(SPLITS, (train, valid), strict=True))
    config = DataConfig(
        clip_s=codec.segment_frames / codec.frames_per_second, augment=None, seed=seed
    )
    clips = ClipMaker(config, _Targets(Codec(codec)), sample_rate)

    def dataset_fn(split: str, shuffle_files: bool, seed: int | None = seed) -> Any:
        draw = [0 if seed is None else int(seed), SPLITS.index(split)]

        def generate() -> Iterator[dict[str, np.ndarray]]:
            sources = [open_source(entry, sample_rate) for entry in entries[split]]
            places = [(source, place) for source in sources for place in range(len(source))]
            order = range(len(places))
            if shuffle_files:
                order = np.random.default_rng(draw).permutation(len(places)).tolist()
            for position in order:
                source, place = places[position]
                clip = clips((position, source[place]), np.random.default_rng([*draw, position]))
                yield {"inputs": clip["audio"].reshape(-1, hop), "targets": clip["targets"]}

        like = {
            "inputs": tf.TensorSpec((None, hop), tf.float32),
            "targets": tf.TensorSpec((None,), tf.int32),
        }
        return tf.data.Dataset.from_generator(generate, output_signature=like)

    return seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(dataset_fn, splits=SPLITS),
        preprocessors=[],
        output_features={
            "inputs": seqio.ContinuousFeature(dtype=tf.float32, rank=2),
            "targets": seqio.Feature(NoteVocabulary(codec), add_eos=False, dtype=tf.int32),
        },
        metric_fns=[],
        shuffle_buffer_size=8,  # clips come shuffled
    )


def add_mixture(name: str, sizes: Mapping[str, int], *, temperature: float = TEMPERATURE) -> Any:
    """Register a Mixture of tasks, each drawn in proportion to its size ** (1 / temperature)."""
    rates = [(task, size ** (1 / temperature)) for task, size in sizes.items()]
    return seqio.MixtureRegistry.add(name, rates)


def _add_ours() -> None:
    for profile in ("mt3", "ismir2021"):
        codec = codec_config(profile)
        piano, band = f"musicjax_composer_{profile}", f"musicjax_band_{profile}"
        add_task(piano, codec=codec)
        add_task(band, train=("composer:band",), valid=("composer:band",), codec=codec)
        add_mixture(f"musicjax_{profile}", {piano: 1, band: 1})


# In: mixtures as training data -------------------------------------------------------------------


@dataclass(frozen=True)
class MixtureReader:
    """A SeqIO Task or Mixture whose examples are read back to samples and notes or sentences."""

    name: str
    read: Callable[[Sequence[int]], Notes | str]
    provider: Any

    def clips(self, split: str, seed: int, *, forever: bool, skip: int = 0) -> Iterator[Clip]:
        """Its examples in SeqIO's order, without the first `skip`."""
        dataset = self.provider.get_dataset(
            sequence_length=None,
            split=split,
            shuffle=forever,
            seed=seed,
            num_epochs=None if forever else 1,
        )
        for number, example in enumerate(dataset.skip(skip).as_numpy_iterator(), start=skip):
            yield self._clip(example, f"{self.name}-{number}")

    def _clip(self, example: Mapping[str, np.ndarray], name: str) -> Clip:
        inputs = np.asarray(example["inputs"])
        loudest = float(np.abs(inputs).max(initial=0.0)) if inputs.dtype.kind == "f" else np.inf
        if inputs.ndim > 2 or loudest > _LOUDEST:
            raise DataError(
                f"inputs of {name} have shape {inputs.shape}, dtype {inputs.dtype} and values up "
                f"to {loudest:.3g}; samples lie within -1 and 1. Models make their own "
                "spectrograms: leave that preprocessor out of the task."
            )
        told = self.read(np.asarray(example["targets"]).tolist())
        notes, text = (told, None) if isinstance(told, Notes) else (Notes.empty(), told)
        return Clip(name, inputs.reshape(-1).astype(np.float32), notes, text)


def open_mixture(entry: str) -> MixtureReader:
    """The Task or Mixture that `NAME` or `MODULE:NAME` means.

    Raises ConfigError when there is none, or when its targets are in no language that is known.
    """
    module, _, name = entry.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(
                f"the module {module!r} of seqio:{entry} does not import ({error}); give "
                "seqio:MODULE:NAME with a module that registers the mixture."
            ) from error
    known = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if name not in known:
        raise ConfigError(
            f"SeqIO knows no task or mixture {name!r}; it knows {', '.join(known)}. Name the "
            "module that registers it: seqio:MODULE:NAME."
        )
    provider = seqio.get_mixture_or_task(name)
    features = provider.output_features
    if not {"inputs", "targets"} <= set(features):
        raise ConfigError(
            f"seqio:{entry} has {', '.join(features)}; inputs and targets are needed."
        )
    return MixtureReader(name, _reader(features["targets"].vocabulary, entry), provider)


def _reader(vocabulary: Any, entry: str) -> Callable[[Sequence[int]], Notes | str]:
    """How the ids of a vocabulary are read."""
    config = getattr(vocabulary, "config", None)
    if not isinstance(config, CodecConfig):
        profiles = (p for p in PROFILES.values() if Codec(p).vocabulary.size == _size(vocabulary))
        config = next(profiles, None)
    if config is not None:
        # A clip is read alone: what it says of before and after is kept as it says it.
        codec = Codec(replace(config, quirks=replace(config.quirks, start_rounding="exact")))
        return lambda ids: codec.decode_clip(np.asarray(ids, np.int64))
    if isinstance(vocabulary.decode([]), str):
        return lambda ids: str(vocabulary.decode([i for i in ids if i != vocabulary.pad_id]))
    raise ConfigError(
        f"targets of seqio:{entry} are in {type(vocabulary).__name__} of {_size(vocabulary)} ids, "
        "which is neither text nor one of MT3's languages; give the feature a NoteVocabulary."
    )


def _size(vocabulary: Any) -> int:
    return int(vocabulary.vocab_size)


class MixtureDataset(grain.IterDataset):
    """A mixture as grain reads it: (place in the stream, clip), endless, part `index` of `count`.

    An iterator's state is how many examples were read; going on from it reads over them, because
    SeqIO keeps no place of its own.
    """

    def __init__(self, reader: MixtureReader, seed: int, index: int = 0, count: int = 1) -> None:
        super().__init__()
        self._reader, self._data_seed, self._index, self._count = reader, seed, index, count

    def __iter__(self) -> "_MixtureIterator":
        return _MixtureIterator(self._reader, self._data_seed, self._index, self._count)


class _MixtureIterator(grain.DatasetIterator):
    def __init__(self, reader: MixtureReader, seed: int, index: int, count: int) -> None:
        super().__init__()
        self._reader, self._data_seed, self._index, self._count = reader, seed, index, count
        self._taken = 0
        self._clips: Iterator[Clip] | None = None

    def __next__(self) -> tuple[int, Clip]:
        if self._clips is None:
            skip = self._taken * self._count
            self._clips = self._reader.clips("train", self._data_seed, forever=True, skip=skip)
        place = self._taken * self._count + self._index
        clips = list(itertools.islice(self._clips, self._count))
        self._taken += 1
        return place, clips[self._index]

    def get_state(self) -> dict[str, Any]:
        """How many examples were read."""
        return {"taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on behind so many examples."""
        self._taken, self._clips = int(state["taken"]), None


_add_ours()
