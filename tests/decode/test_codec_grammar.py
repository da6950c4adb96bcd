"""The codec's grammar in the decoding loop: whatever is drawn under it, the codec can read."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoders import table_cache

from musicjax.decode import GenerateConfig, TableGrammar, generate
from musicjax.notes import Codec, codec_config
from musicjax.notes.vocabulary import EOS, TokenClass

ROWS = 32
DRAWN = GenerateConfig(max_length=24, end_tokens=(EOS,), temperature=1.0)


@partial(jax.jit, static_argnames="grammar")
def draw(logits, key, grammar=None):
    """Rows of a network that says the same at every place."""

    def step(tokens, cache):
        return logits[cache.item], replace(cache, position=cache.position + 1)

    return generate(step, table_cache(ROWS), DRAWN, key=key, grammar=grammar)


@pytest.mark.parametrize("profile", ["mt3", "ismir2021"])
def test_nothing_is_drawn_that_the_codec_calls_an_error(profile):
    tables = Codec(codec_config(profile)).grammar()
    grammar = TableGrammar(
        tables.next_state, tables.allowed, tables.token_class, rising=tables.shift_step
    )
    # All classes about as likely, the end a little less.
    likely = -np.log(np.bincount(tables.token_class)[tables.token_class])
    likely[EOS] -= 2
    noise = np.random.default_rng(0).normal(size=(ROWS, len(likely)))
    logits = jnp.asarray(likely + noise, jnp.float32)

    def errors(drawn):
        rows = zip(np.asarray(drawn.tokens), np.asarray(drawn.lengths), strict=True)
        return [tables.first_error(row[:length]) for row, length in rows]

    drawn = draw(logits, jax.random.key(1), grammar)
    assert errors(drawn) == [None] * ROWS
    assert 0 < drawn.finished.sum() < ROWS
    said = {TokenClass(tables.token_class[token]) for token in np.unique(drawn.tokens)}
    assert said >= {TokenClass.SHIFT, TokenClass.ON, TokenClass.PITCH, TokenClass.EOS}
    assert errors(draw(logits, jax.random.key(1))) != [None] * ROWS
