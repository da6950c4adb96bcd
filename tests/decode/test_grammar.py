"""Grammars: legal always, legal only when asked for, and tables that cannot work."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_decoders import (
    END,
    VOCABULARY,
    greedy_without_cache,
    toy_inputs,
    toy_prefill,
    toy_step,
    toy_weights,
)

from musicjax.decode import GenerateConfig, TableGrammar, generate
from musicjax.errors import ConfigError

# Words of a small language: times 2-5 that count upwards, loudness 6-7, then pitches 8-12. A pitch
# needs a loudness since the last time; the end comes after a pitch, or at once.
NEVER, END_CLASS, TIME, LOUDNESS, PITCH = range(5)
CLASSES = np.array([NEVER, END_CLASS] + [TIME] * 4 + [LOUDNESS] * 2 + [PITCH] * 5)
FRESH, TIMED, LOUD, SAID = range(4)
ALLOWED = np.zeros((4, 5), bool)
ALLOWED[FRESH, [END_CLASS, TIME, LOUDNESS]] = True
ALLOWED[TIMED, [LOUDNESS]] = True
ALLOWED[LOUD, [PITCH]] = True
ALLOWED[SAID, [END_CLASS, TIME, PITCH]] = True
NEXT = np.zeros((4, 5), int)
NEXT[:, TIME], NEXT[:, LOUDNESS], NEXT[:, PITCH] = TIMED, LOUD, SAID
RISING = np.where(CLASSES == TIME, np.arange(13) - 1, -1)
GRAMMAR = TableGrammar(NEXT, ALLOWED, CLASSES, start=FRESH, rising=RISING)


def is_legal(row):
    """The same language, told in Python."""
    state, time = FRESH, 1
    for token in row:
        if not ALLOWED[state, CLASSES[token]]:
            return False
        if CLASSES[token] == TIME:
            if token <= time:
                return False
            time = token
        state = NEXT[state, CLASSES[token]]
    return True


@partial(jax.jit, static_argnames=("config", "grammar"))
def decode(weights, inputs, key, config, grammar=None, prompt=None):
    cache = toy_prefill(weights, inputs, config.max_length)
    step = partial(toy_step, weights)
    return generate(step, cache, config, key=key, prompt=prompt, grammar=grammar)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_nothing_illegal_is_ever_drawn(seed):
    config = GenerateConfig(max_length=20, end_tokens=(END,), temperature=3.0)
    got = decode(toy_weights(seed % 7), toy_inputs(16), jax.random.key(seed), config, GRAMMAR)
    said = [t[:n].tolist() for t, n in zip(got.tokens, got.lengths, strict=True)]
    assert all(map(is_legal, said)), said


def test_without_a_grammar_the_network_is_free():
    """Faithful decoding: no mask, so what the network says comes out, legal or not."""
    config = GenerateConfig(max_length=20, end_tokens=(END,))
    weights, inputs = toy_weights(), toy_inputs(16)
    free = decode(weights, inputs, jax.random.key(0), config)
    said = [t[:n].tolist() for t, n in zip(free.tokens, free.lengths, strict=True)]
    assert not all(map(is_legal, said))
    expected = greedy_without_cache(weights, inputs, 20)
    assert said == expected


def test_what_is_legal_anyway_is_not_changed():
    everything = TableGrammar(
        np.zeros((1, 1), int), np.ones((1, 1), bool), np.zeros(VOCABULARY, int)
    )
    config = GenerateConfig(max_length=20, end_tokens=(END,))
    weights, inputs = toy_weights(), toy_inputs(16)
    free = decode(weights, inputs, jax.random.key(0), config)
    masked = decode(weights, inputs, None, config, everything)
    np.testing.assert_array_equal(masked.tokens, free.tokens)
    np.testing.assert_allclose(masked.scores, free.scores, atol=1e-5)


def test_a_prompt_moves_the_grammar():
    """Behind a time and a loudness only a pitch may come."""
    config = GenerateConfig(max_length=6, end_tokens=(END,))
    weights, inputs, prompt = toy_weights(), toy_inputs(8), jnp.array([[4, 6]] * 8)
    got = decode(weights, inputs, None, config, GRAMMAR, prompt)
    assert (CLASSES[np.asarray(got.tokens[:, 2])] == PITCH).all()
    assert all(is_legal(t[:n].tolist()) for t, n in zip(got.tokens, got.lengths, strict=True))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"allowed_classes": ALLOWED[:, :-1]}, "allowed_classes has shape"),
        ({"next_state": NEXT + 2}, "next_state holds"),
        ({"token_class": CLASSES + 1}, "token_class holds"),
        ({"allowed_classes": ALLOWED & (np.arange(4) != LOUD)[:, None]}, r"states \[2\]"),
        ({"rising": np.where(CLASSES == LOUDNESS, 1, -1)}, r"states \[1\]"),
    ],
)
def test_tables_that_cannot_work_are_refused(fields, said):
    tables = {"next_state": NEXT, "allowed_classes": ALLOWED, "token_class": CLASSES}
    with pytest.raises(ConfigError, match=said):
        TableGrammar(**{**tables, **fields})
