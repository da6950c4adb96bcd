"""Text to ids and back: what is built in, files of the two libraries, rows for a model."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from musicjax.errors import ConfigError, DataError
from musicjax.text import Tokenizer, open_tokenizer, read_row, token_row

LINES = ["a calm piano piece with soft chords", "a loud fast guitar solo", "soft piano, low voice"]
BART = {"bos_id": 0, "eos_id": 2, "pad_id": 1}


@given(st.text(max_size=40))
def test_bytes_hold_any_text(text):
    tokenizer = open_tokenizer("bytes")
    ids = tokenizer.encode(text)
    assert all(4 <= i < tokenizer.size == 260 for i in ids)
    assert tokenizer.decode(ids) == text


def test_broken_bytes_do_not_raise():
    assert open_tokenizer("bytes").decode([0, 1, 2, 4 + 0xC3, 259, 300]) == "��"


def test_words_come_back_as_sentences():
    tokenizer = open_tokenizer("words")
    ids = tokenizer.encode("A calm piano piece, with few notes. The zither is soft.")
    assert tokenizer.decode(ids) == "A calm piano piece, with few notes. The is soft."
    assert max(ids) < tokenizer.size


def test_files_of_tokenizers(tmp_path):
    library = pytest.importorskip("tokenizers")
    trained = library.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(LINES * 5, vocab_size=300, special_tokens=special)
    trained.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "pair").mkdir()
    trained.save_model(str(tmp_path / "pair"))  # vocab.json and merges.txt
    whole, pair = open_tokenizer(str(tmp_path)), open_tokenizer(str(tmp_path / "pair"))
    for tokenizer in (whole, pair):
        assert isinstance(tokenizer, Tokenizer)
        row = token_row(tokenizer, LINES[0], 40, **BART)
        assert row[0] == 0 and list(row).count(2) == 1
        assert read_row(tokenizer, row, special=(0, 1, 2)) == LINES[0]
        assert tokenizer.decode(row.tolist()) == LINES[0]  # <s>, </s> and <pad> stand for no text
    assert whole.encode(LINES[1]) == pair.encode(LINES[1])


def test_files_of_sentencepiece(tmp_path):
    library = pytest.importorskip("sentencepiece")
    lines = tmp_path / "lines.txt"
    lines.write_text("\n".join(LINES * 20))
    library.SentencePieceTrainer.train(
        input=str(lines), model_prefix=str(tmp_path / "spiece"), vocab_size=30,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    tokenizer = open_tokenizer(str(tmp_path))
    row = token_row(tokenizer, LINES[0], 60, bos_id=None, eos_id=1, pad_id=0)
    assert read_row(tokenizer, row, special=(None, 1, 0)) == LINES[0]
    assert tokenizer.size == 30


def test_a_text_that_does_not_fit_is_never_cut():
    row = token_row(open_tokenizer("bytes"), "ab", 4, **BART)
    np.testing.assert_array_equal(row, [0, 4 + ord("a"), 4 + ord("b"), 2])
    assert row.dtype == np.int32
    np.testing.assert_array_equal(token_row(open_tokenizer("bytes"), "abc", 4, **BART), [1] * 4)
    short = token_row(open_tokenizer("bytes"), "", 4, **BART)
    np.testing.assert_array_equal(short, [0, 2, 1, 1])


def test_what_is_no_tokenizer_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"'nowhere\.json', and there is no such file; give"):
        open_tokenizer("nowhere.json")
    with pytest.raises(ConfigError, match=r"holds no tokenizer; expected one of tok"):
        open_tokenizer(str(tmp_path))
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is not a tokenizer that can be read"):
        open_tokenizer(str(tmp_path / "tokenizer.json"))
    pytest.importorskip("sentencepiece")
    (tmp_path / "x.model").write_bytes(b"nothing")
    with pytest.raises(DataError, match="is not a sentencepiece model"):
        open_tokenizer(str(tmp_path / "x.model"))
