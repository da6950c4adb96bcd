"""Recordings and sentences: the lines of a file, sentences about composed pieces, batches."""

import json
from functools import partial

import numpy as np
import pytest
import soundfile

from musicjax.data.captions import caption_examples, caption_source, describe
from musicjax.data.pipeline import DataConfig, train_iterator
from musicjax.errors import DataError
from musicjax.notes import Notes
from musicjax.text import open_tokenizer, token_row

RATE = 16_000


def row(text, start_s, num_samples, length):
    del start_s, num_samples
    return {
        "tokens": token_row(open_tokenizer("bytes"), text, length, bos_id=0, eos_id=2, pad_id=1)
    }


@pytest.fixture
def folder(tmp_path):
    """Two recordings at 8 kHz and a file of lines about them."""
    ramp = np.linspace(-0.5, 0.5, 16_000, dtype=np.float32)
    soundfile.write(tmp_path / "a.flac", ramp, 8000)
    soundfile.write(tmp_path / "b.wav", ramp[:4000], 8000)
    lines = [
        {"audio": "a.flac", "text": ["one", "two"], "start_s": 1.0, "end_s": 1.5, "id": "first"},
        {"audio": "b.wav", "text": "three"},
    ]
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def test_a_part_of_a_recording_and_one_of_its_sentences(folder):
    source = caption_source(folder, RATE)
    assert len(source) == 2
    rng = np.random.default_rng(0)
    clips = [source[0].clip(rng, 4000) for _ in range(20)]
    assert {text for _, text in clips} == {"one", "two"}
    assert all(len(samples) == 4000 for samples, _ in clips)
    # The ramp is at 0 after one second and at 0.25 after one and a half.
    assert all(samples.min() > -0.01 and samples.max() < 0.26 for samples, _ in clips)
    assert len({samples[0] for samples, _ in clips}) > 10
    samples, text = source[1].clip(rng, 16_000)
    assert (len(samples), text) == (8000, "three")
    found = list(caption_examples((str(folder),), RATE))
    assert [(i, len(s), t) for i, s, t in found] == [
        ("first", 8000, ("one", "two")),
        ("lines-2", 8000, ("three",)),
    ]


def test_batches_of_recordings_with_tokens(folder):
    config = DataConfig(train=(str(folder),), clip_s=0.4, batch_size=2, augment=None, threads=1)
    targets = partial(row, length=8)
    batches = train_iterator(config, targets, RATE)
    batch = next(batches)
    assert batch["audio"].shape == (2, 6400)
    said = {open_tokenizer("bytes").decode(r.tolist()) for r in next(batches)["tokens"]}
    assert said <= {"one", "two", "three"}
    again = train_iterator(config, targets, RATE)
    np.testing.assert_array_equal(next(again)["tokens"], batch["tokens"])
    batches.close()
    again.close()


def test_composed_pieces_with_sentences():
    config = DataConfig(train=("captions:",), clip_s=1.0, batch_size=2, augment=None, threads=1)
    batches = train_iterator(config, partial(row, length=200), RATE)
    for tokens in next(batches)["tokens"]:
        assert "piano" in open_tokenizer("bytes").decode(tokens.tolist())
    batches.close()


def test_a_sentence_says_what_is_heard():
    def said(onsets, pitches, velocity, seed=0):
        onset_s = np.array(onsets, float)
        notes = Notes.from_arrays(onset_s, onset_s + 0.4, pitches, velocity)
        return describe(notes, 10.0, np.random.default_rng(seed))

    slow = said(np.arange(6) * 1.5, [36] * 6, [30] * 6)
    assert all(word in slow for word in ("very slow", "very quiet", "low register", "single notes"))
    fast = said(np.repeat(np.arange(60) / 6, 3), [88, 92, 95] * 60, [110] * 180)
    assert all(word in fast for word in ("fast", "very loud", "very high", "dense chords"))
    assert describe(Notes.empty(), 10.0, np.random.default_rng(0)) == "almost silence."
    assert len({said([0.0, 1.0], [60, 62], [60, 60], seed) for seed in range(20)}) == 4


def test_all_words_of_sentences_are_in_the_vocabulary():
    words = open_tokenizer("words")
    rng = np.random.default_rng(0)
    for _ in range(300):
        count = int(rng.integers(1, 150))
        onset_s = np.sort(rng.uniform(0, 10, count))
        onset_s[: count // 2] = onset_s[0]
        pitch = np.clip(rng.normal(rng.uniform(30, 100), 5, count), 21, 108).astype(int)
        velocity = np.full(count, int(rng.integers(1, 128)))
        notes = Notes.from_arrays(onset_s, onset_s + 0.1, pitch, velocity)
        text = describe(notes, 10.0, rng)
        assert words.decode(words.encode(text)).lower() == text


def test_lines_that_cannot_be_used_are_all_told(folder):
    with pytest.raises(DataError, match=r"nowhere\.jsonl cannot be read"):
        caption_source(folder.with_name("nowhere.jsonl"))
    bad = folder.with_name("bad.jsonl")
    bad.write_text(
        '{"audio": "a.flac"}\n{"audio": "gone.flac", "text": "x"}\nnot json\n[1]\n'
        '{"audio": "a.flac", "text": []}\n{"audio": "a.flac", "text": "x", "end_s": "soon"}\n'
    )
    with pytest.raises(DataError, match=r"has 6 lines.*line 1: no 'text'; line 2: there is no"):
        caption_source(bad)
    bad.write_text("\n")
    with pytest.raises(DataError, match="has no lines"):
        caption_source(bad)
    bad.write_text('{"audio": "a.flac", "text": "x", "start_s": 9}')
    with pytest.raises(DataError, match="there is no sound; correct start_s"):
        caption_source(bad, RATE)[0].samples()
    with pytest.raises(DataError, match="composer: holds no sentences"):
        list(caption_examples(("composer:",), RATE))
