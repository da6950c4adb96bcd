"""Text as tokens: vocabularies that are built in, and those that came with published models.

>>> from musicjax.text import open_tokenizer
>>> bytewise = open_tokenizer("bytes")
>>> bytewise.decode(bytewise.encode("calm piano"))
'calm piano'
"""

from musicjax.text.tokenizers import Tokenizer, open_tokenizer, read_row, token_row
from musicjax.text.words import WORDS

__all__ = ["WORDS", "Tokenizer", "open_tokenizer", "read_row", "token_row"]
