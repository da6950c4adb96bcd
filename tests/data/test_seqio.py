"""SeqIO: our data as its tasks, its mixtures as our training data."""

from functools import partial

import numpy as np
import pytest

reason = "optional extra is absent: pip install 'musicjax[seqio]'"
seqio = pytest.importorskip("seqio", reason=reason, exc_type=ImportError)
tf = pytest.importorskip("tensorflow", reason=reason, exc_type=ImportError)

from musicjax.data import seqio_tasks  # noqa: E402
from musicjax.data.pipeline import DataConfig, examples, train_iterator  # noqa: E402
from musicjax.data.seqio_tasks import (  # noqa: E402
    NoteVocabulary,
    TextVocabulary,
    add_mixture,
    add_task,
    open_mixture,
)
from musicjax.errors import ConfigError, DataError  # noqa: E402
from musicjax.notes import Codec, Notes, codec_config  # noqa: E402
from musicjax.text import open_tokenizer  # noqa: E402

RATE = 16_000
MT3 = Codec(codec_config("mt3"))
ONE = Notes.from_arrays([0.5], [1.0], [60])


def tokens_of(codec, notes, start_s, num_samples):
    row = np.zeros(256, np.int32)
    written = codec.encode_clip(notes, start_s)
    row[: len(written)] = written
    return {"tokens": row}


@pytest.fixture(scope="module")
def spoken():
    """A task of three sounds and sentences, and one of sounds with the notes of `ONE`."""
    sounds = [np.full(8000, 0.1 * i, np.float32) for i in range(3)]
    words = TextVocabulary(open_tokenizer("bytes"), "bytes")
    note = MT3.encode_clip(ONE, 0.0)

    def dataset(split, shuffle_files, seed=None, texts=True):
        targets = ["low", "middle", "high"] if texts else [note] * 3
        return tf.data.Dataset.from_tensor_slices({"inputs": np.stack(sounds), "targets": targets})

    inputs = seqio.ContinuousFeature(dtype=tf.float32, rank=1)
    for name, texts in (("test_words", True), ("test_notes", False)):
        vocabulary = words if texts else seqio.PassThroughVocabulary(1491, eos_id=1)
        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(
                partial(dataset, texts=texts), splits=("train", "validation")
            ),
            preprocessors=[seqio.preprocessors.tokenize] if texts else [],
            output_features={
                "inputs": inputs,
                "targets": seqio.Feature(vocabulary, add_eos=False),
            },
        )
    return words


def test_the_vocabulary_is_that_of_the_original():
    words = NoteVocabulary(MT3.config)
    assert (words.vocab_size, words.eos_id, words.unk_id, words.extra_ids) == (1491, 1, 2, 100)
    assert words.encode([0, 1387]) == [3, 1390]
    assert words.decode([3, 2, 1390, 1, 5]) == [0, -2, 1387, -1]
    assert words.encode_tf(tf.constant([0, 5])).numpy().tolist() == [3, 8]
    assert words.decode_tf(tf.constant([[3, 1, 4]])).numpy().tolist() == [[0, -1, -2]]
    assert words == NoteVocabulary(codec_config("mt3"))
    assert words != NoteVocabulary(codec_config("ismir2021"))
    with pytest.raises(DataError, match="events go from 0 to 1387; got 1388"):
        words.encode([1388])


def test_text_goes_through_our_tokenizers(spoken):
    assert spoken.decode([*spoken.encode("a b"), 1, 7]) == "a b"
    assert spoken.encode_tf(tf.constant("a b")).numpy().tolist() == spoken.encode("a b")
    assert spoken.decode_tf(tf.constant(spoken.encode("a b"))).numpy() == b"a b"
    assert spoken == TextVocabulary(open_tokenizer("bytes"), "bytes") != NoteVocabulary(MT3.config)


def test_our_tasks_are_registered_and_say_what_is_heard():
    for name in ("musicjax_mt3", "musicjax_ismir2021", "musicjax_band_mt3"):
        assert seqio.get_mixture_or_task(name).output_features["inputs"].rank == 2
    task = seqio.get_mixture_or_task("musicjax_composer_mt3")
    first, second = (
        next(task.get_dataset(split="validation", shuffle=False, seed=3).as_numpy_iterator())
        for _ in range(2)
    )
    assert first["inputs"].shape == (256, 128) and first["inputs"].dtype == np.float32
    np.testing.assert_array_equal(first["inputs"], second["inputs"])
    np.testing.assert_array_equal(first["targets"], second["targets"])
    assert first["targets"][-1] == 1 and np.abs(first["inputs"]).max() > 0.01
    with pytest.raises(ConfigError, match="there is a SeqIO task 'musicjax_band_mt3' already"):
        add_task("musicjax_band_mt3")


def test_what_goes_out_comes_back(monkeypatch):
    """Clips that are read from a task of ours are those that it was made of."""
    task = seqio.get_mixture_or_task("musicjax_composer_mt3")
    there = task.get_dataset(split="validation", shuffle=False, seed=0).as_numpy_iterator()
    reader = open_mixture("musicjax.data.seqio_tasks:musicjax_composer_mt3")
    for example, clip in zip(there, reader.clips("validation", 0, forever=False), strict=False):
        np.testing.assert_array_equal(example["inputs"].reshape(-1), clip.samples)
        again = Codec(codec_config("mt3", faithful=False)).encode_clip(clip.notes, 0.0)
        exact = Codec(codec_config("mt3")).encode_clip(clip.notes, 0.0)
        assert example["targets"].tolist() in (again.tolist(), exact.tolist())
        break


def test_a_mixture_trains_and_goes_on_where_it_stopped(spoken):
    add_mixture("test_both", {"musicjax_band_mt3": 3, "musicjax_composer_mt3": 1})
    config = DataConfig(train=("seqio:test_notes",), clip_s=0.5, batch_size=2, augment=None)
    targets = partial(tokens_of, MT3)
    batches = train_iterator(config, targets, RATE)
    first = next(batches)
    assert first["audio"].shape == (2, 8000)
    written = MT3.encode_clip(ONE, 0.0)
    np.testing.assert_array_equal(first["tokens"][:, : len(written)], [written] * 2)
    state, wanted = batches.get_state(), [next(batches) for _ in range(3)]
    other = train_iterator(config, targets, RATE)
    other.set_state(state)
    for batch in wanted:
        np.testing.assert_array_equal(next(other)["audio"], batch["audio"])
    halves = [
        next(train_iterator(config, targets, RATE, process_index=i, process_count=2))
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate([h["audio"] for h in halves]), first["audio"])
    both = train_iterator(
        DataConfig(train=("seqio:test_both",), clip_s=0.5, batch_size=2), targets, RATE
    )
    assert next(both)["audio"].shape == (2, 8000)


def test_sentences_and_evaluation(spoken):
    reader = open_mixture("test_words")
    heard = [clip.text for clip in reader.clips("train", 0, forever=False)]
    assert heard == ["low", "middle", "high"]
    pieces = list(examples(["seqio:test_notes"], RATE))
    assert [p.id for p in pieces] == [f"test_notes-{i}" for i in range(3)]
    assert all(p.notes.pitch.tolist() == [60] for p in pieces)


def test_what_cannot_be_read_is_told(spoken):
    with pytest.raises(ConfigError, match=r"no task or mixture 'nothing'; it knows .*musicjax_mt3"):
        open_mixture("nothing")
    with pytest.raises(ConfigError, match=r"the module 'no\.module' of seqio:no\.module:x"):
        open_mixture("no.module:x")
    with pytest.raises(ConfigError, match="a SeqIO task comes alone"):
        train_iterator(DataConfig(train=("seqio:test_notes", "composer:")), tokens_of, RATE)

    def task(name, inputs, vocabulary):
        def dataset(split, shuffle_files, seed=None):
            return tf.data.Dataset.from_tensors({"inputs": inputs, "targets": [5, 1]})

        seqio.TaskRegistry.add(
            name,
            source=seqio.FunctionDataSource(dataset, splits=("train",)),
            preprocessors=[],
            output_features={
                "inputs": seqio.ContinuousFeature(dtype=tf.float32, rank=inputs.ndim),
                "targets": seqio.Feature(vocabulary, add_eos=False),
            },
        )

    log_mel = np.full((256, 512), -11.5129, np.float32)
    task("test_spectrogram", log_mel, NoteVocabulary(MT3.config))
    with pytest.raises(DataError, match=r"shape \(256, 512\).*values up to 11.5; samples lie"):
        next(open_mixture("test_spectrogram").clips("train", 0, forever=False))
    task("test_other", log_mel[0] * 0, seqio.PassThroughVocabulary(77))
    with pytest.raises(ConfigError, match="PassThroughVocabulary of 77 ids, which is neither"):
        open_mixture("test_other")


def test_a_gpu_is_left_to_jax():
    assert tf.config.get_visible_devices("GPU") == [] and seqio_tasks.SPLITS[0] == "train"
