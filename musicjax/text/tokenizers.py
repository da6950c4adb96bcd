"""Tokenizers behind one protocol: two that are built in, and files of published models.

Ids below `RESERVED` belong to the model in the built-in ones (BART's <s>, <pad>, </s>, <unk>, or
T5's <pad>, </s>, <unk> and one more), so one vocabulary serves either form. What begins and ends a
text is not the tokenizer's business: `token_row` adds it as the model's config names it.
"""

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from musicjax.errors import ConfigError, DataError, MissingDependencyError
from musicjax.text.words import WORDS

RESERVED = 4
FILES = ("tokenizer.json", "vocab.json", "tokenizer.model", "spiece.model")


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, without ids that begin, end or fill a text."""

    @property
    def size(self) -> int:
        """How many ids there are."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; those that stand for no text are left out."""
        ...


class ByteTokenizer:
    """The bytes of UTF-8, each after `RESERVED` ids: any text, nothing to fetch (ByT5's way)."""

    size = RESERVED + 256

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        return [RESERVED + byte for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; broken UTF-8 gives replacement characters."""
        known = bytes(i - RESERVED for i in ids if RESERVED <= i < self.size)
        return known.decode(errors="replace")


class WordTokenizer:
    """Whole words and signs of a fixed list, in lower case; a word beyond it is left out."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)
        self._ids = {word: RESERVED + i for i, word in enumerate(self._words)}

    @property
    def size(self) -> int:
        """How many ids there are."""
        return RESERVED + len(self._words)

    def encode(self, text: str) -> list[int]:
        """The ids of a text."""
        found = re.findall(r"[a-z0-9'-]+|[.,]", text.lower())
        return [self._ids[word] for word in found if word in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, with a capital where a sentence begins."""
        said = [self._words[i - RESERVED] for i in ids if RESERVED <= i < self.size]
        text = re.sub(r" ([.,])", r"\1", " ".join(said))
        return re.sub(r"(^|\. )([a-z])", lambda m: m[1] + m[2].upper(), text)


class _HuggingFace:
    """A tokenizer of the library `tokenizers`."""

    def __init__(self, tokenizer: object) -> None:
        self._tokenizer: object = tokenizer

    @property
    def size(self) -> int:
        return self._tokenizer.get_vocab_size()  # type: ignore[attr-defined]

    def encode(self, text: str) -> list[int]:
        found = self._tokenizer.encode(text, add_special_tokens=False)  # type: ignore[attr-defined]
        return list(found.ids)

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(i) for i in ids if 0 <= i < self.size]
        return self._tokenizer.decode(known, skip_special_tokens=True).strip()  # type: ignore[attr-defined]


class _SentencePiece:
    """A model of the library `sentencepiece`."""

    def __init__(self, processor: object) -> None:
        self._processor: object = processor

    @property
    def size(self) -> int:
        return self._processor.get_piece_size()  # type: ignore[attr-defined]

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))  # type: ignore[attr-defined]

    def decode(self, ids: Sequence[int]) -> str:
        known = [int(i) for i in ids if 0 <= i < self.size]
        return self._processor.decode(known)  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=8)
def open_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name or by file.

    "bytes": the bytes of a text. "words": the words of the built-in sentences. Anything else is a
    file or a folder that holds one: `tokenizer.json`, `vocab.json` with `merges.txt` beside it
    (byte-level BPE, as BART's), or a sentencepiece model (`.model`).

    Raises ConfigError when nothing is there, DataError when it cannot be read, and
    MissingDependencyError without the library that reads it.
    """
    if name == "bytes":
        return ByteTokenizer()
    if name == "words":
        return WordTokenizer(WORDS)
    path = Path(name).expanduser()
    if path.is_dir():
        found = [path / file for file in FILES if (path / file).is_file()]
        if not found:
            raise ConfigError(
                f"the folder {path} holds no tokenizer; expected one of {', '.join(FILES)}."
            )
        path = found[0]
    if not path.is_file():
        raise ConfigError(
            f"tokenizer is {name!r}, and there is no such file; give a {', '.join(FILES)}, the "
            "folder of one, or bytes or words for what is built in."
        )
    return _sentencepiece(path) if path.suffix == ".model" else _huggingface(path)


def _huggingface(path: Path) -> Tokenizer:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} is read by the package tokenizers: pip install 'musicjax[text]'."
        ) from error
    try:
        if path.name != "vocab.json":
            return _HuggingFace(tokenizers.Tokenizer.from_file(os.fspath(path)))
        merges = path.with_name("merges.txt")
        model = tokenizers.models.BPE.from_file(os.fspath(path), os.fspath(merges))
        whole = tokenizers.Tokenizer(model)
        whole.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        whole.decoder = tokenizers.decoders.ByteLevel()
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # those of BART and RoBERTa
        whole.add_special_tokens([t for t in special if whole.token_to_id(t) is not None])
        return _HuggingFace(whole)
    except Exception as error:  # the library raises bare Exceptions
        raise DataError(f"{path} is not a tokenizer that can be read ({error}).") from error


def _sentencepiece(path: Path) -> Tokenizer:
    try:
        import sentencepiece
    except ImportError as error:
        raise MissingDependencyError(
            f"{path.name} is read by the package sentencepiece: pip install 'musicjax[text]'."
        ) from error
    try:
        return _SentencePiece(sentencepiece.SentencePieceProcessor(model_file=os.fspath(path)))
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path} is not a sentencepiece model ({error}).") from error


def token_row(
    tokenizer: Tokenizer,
    text: str,
    length: int,
    *,
    bos_id: int | None,
    eos_id: int,
    pad_id: int,
) -> Int[np.ndarray, "L"]:
    """One text as a row of `length` ids: `bos_id` where there is one, the text, `eos_id`, padding.

    A text that does not fit is never cut: its row is padding alone, which costs a loss nothing.
    int32.
    """
    ids = [*([] if bos_id is None else [bos_id]), *tokenizer.encode(text), eos_id]
    row = np.full(length, pad_id, np.int32)
    if len(ids) <= length:
        row[: len(ids)] = ids
    return row


def read_row(
    tokenizer: Tokenizer, row: Sequence[int] | np.ndarray, *, special: Sequence[int | None]
) -> str:
    """The text of a row of ids; the ids in `special` are left out."""
    without = {i for i in special if i is not None}
    return tokenizer.decode([int(i) for i in row if int(i) not in without])
