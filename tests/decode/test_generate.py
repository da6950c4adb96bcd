"""The decoding loop: same as without a cache, ends when it should, draws as it should."""

from dataclasses import replace
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
    toy_decode,
    toy_inputs,
    toy_prefill,
    toy_step,
    toy_weights,
)

from musicjax.decode import GenerateConfig, advance, generate, start
from musicjax.decode.sampling import keep_top_k, keep_top_p
from musicjax.errors import ConfigError

LENGTH = 12
GREEDY = GenerateConfig(max_length=LENGTH, end_tokens=(END,))
DRAWN = GenerateConfig(max_length=LENGTH, end_tokens=(END,), temperature=1.0)


@partial(jax.jit, static_argnames="config")
def decode(weights, inputs, config=GREEDY, **fields):
    cache = toy_prefill(weights, inputs, config.max_length)
    return generate(partial(toy_step, weights), cache, config, **fields)


def rows(generated):
    """Lists of tokens, cut at their lengths."""
    pairs = zip(np.asarray(generated.tokens), np.asarray(generated.lengths), strict=True)
    return [tokens[:length].tolist() for tokens, length in pairs]


ROWS, ROOM = 12, 3  # rows and prompt tokens of the one program that most tests share


def greedy(weights, prompts=((),) * ROWS, limits=(LENGTH,) * ROWS):
    """Greedy decoding of all rows, each with its prompt and its limit."""
    padded = np.zeros((ROWS, ROOM), np.int32)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return decode(
        weights,
        toy_inputs(ROWS),
        prompt=padded,
        prompt_lengths=np.array([len(prompt) for prompt in prompts]),
        limits=np.array(limits),
    )


@pytest.fixture(scope="module")
def weights():
    """Weights under which some rows end early and some never."""
    return toy_weights(end_bias=1.5)


@pytest.fixture(scope="module")
def expected(weights):
    """All rows from the definition."""
    return greedy_without_cache(weights, toy_inputs(ROWS), LENGTH)


def test_greedy_is_the_definition(weights, expected):
    got = greedy(weights)
    assert rows(got) == expected
    ended = [row[-1] == END for row in expected]
    assert got.finished.tolist() == ended
    assert 0 < sum(ended) < len(ended)  # the case is one with both kinds
    behind = np.arange(LENGTH) >= np.asarray(got.lengths)[:, None]
    assert (np.asarray(got.tokens)[behind] == GREEDY.pad_token).all()


def test_score_is_the_log_probability_of_the_tokens(weights):
    got = greedy(weights)
    fed = np.zeros((1, LENGTH), np.int32)
    for i, row in enumerate(rows(got)):
        fed[0, 1 : len(row)] = row[:-1]
        logits = toy_decode(weights, toy_inputs(ROWS)[i : i + 1], fed)[0, : len(row)]
        summed = jax.nn.log_softmax(logits)[np.arange(len(row)), row].sum()
        np.testing.assert_allclose(got.scores[i], summed, atol=1e-4)


def test_prompts_of_different_lengths(weights):
    """An end token in a prompt does not end it."""
    prompts = [[], [5], [3, 4, 2], [7, 7], [END, 4], [END]] * 2
    alone = greedy_without_cache(weights, toy_inputs(ROWS), LENGTH, prompts)
    assert rows(greedy(weights, prompts)) == alone


def test_a_limit_cuts_one_row_only(weights, expected):
    limits = [LENGTH, 2, 1] * 4
    cut = greedy(weights, limits=limits)
    assert rows(cut) == [row[:limit] for row, limit in zip(expected, limits, strict=True)]
    assert cut.finished.tolist() == [row[-1] == END for row in rows(cut)]


def test_stops_as_soon_as_all_rows_have_ended():
    """Counted on a network that says how often it was asked."""
    calls = []
    network = partial(toy_step, toy_weights(end_bias=100.0))

    def step(tokens, cache):
        jax.debug.callback(lambda: calls.append(1))
        return network(tokens, cache)

    cache = toy_prefill(toy_weights(), toy_inputs(3), LENGTH)
    got = jax.block_until_ready(generate(step, cache, GREEDY))
    jax.effects_barrier()
    assert rows(got) == [[END]] * 3
    assert len(calls) == 1


def test_any_of_several_end_tokens_ends(weights, expected):
    config = GenerateConfig(max_length=LENGTH, end_tokens=(END, 5))
    for row, free in zip(rows(decode(weights, toy_inputs(ROWS), config)), expected, strict=True):
        place = free.index(5) + 1 if 5 in free else len(free)
        assert row == free[:place]


def test_room_grows_while_decoding():
    """Longer than the smallest cache, so through three loops; a fourth token would do otherwise."""
    weights, inputs = toy_weights(end_bias=-9.0), toy_inputs(2)
    config = GenerateConfig(max_length=250, end_tokens=(END,))
    got = decode(weights, inputs, config)
    fed = np.concatenate([np.zeros((2, 1), np.int32), np.asarray(got.tokens)[:, :-1]], axis=1)
    assert got.lengths.tolist() == [250, 250]
    np.testing.assert_array_equal(got.tokens, toy_decode(weights, inputs, fed).argmax(-1))


def test_one_token_at_a_time_is_the_same(weights):
    """Streaming: the public step, called by hand."""
    state = start(toy_prefill(weights, toy_inputs(ROWS), LENGTH), GREEDY)
    step = jax.jit(lambda w, s: advance(partial(toy_step, w), s, GREEDY))
    while state.running.any():
        state = step(weights, state)
    whole = greedy(weights)
    np.testing.assert_array_equal(state.tokens, whole.tokens)
    np.testing.assert_allclose(state.scores, whole.scores, atol=1e-5)


def test_exported_loop_gives_the_same(weights, expected):
    inputs = toy_inputs(ROWS)
    exported = jax.export.export(jax.jit(lambda w, x: decode(w, x).tokens))(weights, inputs)
    for tokens, row in zip(exported.call(weights, inputs), expected, strict=True):
        assert tokens[: len(row)].tolist() == row


# Drawing ---------------------------------------------------------------------------------------


def test_drawing_depends_on_the_row_and_the_key_only(weights):
    inputs, key = toy_inputs(6), jax.random.key(3)
    whole = decode(weights, inputs, DRAWN, key=key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(6))
    order = np.array([4, 0, 2])
    some = decode(weights, inputs[order], DRAWN, key=keys[order])
    assert rows(some) == [rows(whole)[i] for i in order]
    assert rows(decode(weights, inputs, DRAWN, key=key)) == rows(whole)
    assert rows(decode(weights, inputs, DRAWN, key=jax.random.key(4))) != rows(whole)


def test_drawn_tokens_have_the_networks_distribution(weights):
    """First tokens of many rows against the softmax; 3 sigma of a share is under 0.03 here."""
    count = 4096
    inputs = np.repeat(toy_inputs(1), count, axis=0)
    config = GenerateConfig(max_length=1, temperature=2.0, end_tokens=())
    drawn = np.asarray(decode(weights, inputs, config, key=jax.random.key(0)).tokens)[:, 0]
    cache = toy_prefill(weights, inputs[:1], 1)
    expected = jax.nn.softmax(toy_step(weights, jnp.zeros(1, jnp.int32), cache)[0][0] / 2.0)
    share = np.bincount(drawn, minlength=VOCABULARY) / count
    np.testing.assert_allclose(share, expected, atol=0.03)


def test_one_choice_is_greedy(weights, expected):
    inputs, key = toy_inputs(ROWS), jax.random.key(0)
    config = replace(DRAWN, top_k=5, top_p=1e-6)
    assert rows(decode(weights, inputs, config, key=key)) == expected


# Of one length, so that nothing is compiled twice; rounded, so that ties occur.
logit_rows = st.lists(
    st.floats(-20, 20, width=32).map(lambda x: round(x, 1)), min_size=12, max_size=12
)
top_k, top_p = jax.jit(keep_top_k, static_argnums=1), jax.jit(keep_top_p)


@settings(deadline=None, max_examples=60)
@given(logit_rows, st.sampled_from([1, 2, 5, 12, 45]))
def test_top_k_keeps_the_k_largest(values, k):
    logits = np.array([values], np.float32)
    kept = np.isfinite(np.asarray(top_k(logits, k)))[0]
    smallest = np.sort(logits[0])[::-1][min(k, len(values)) - 1]
    np.testing.assert_array_equal(kept, logits[0] >= smallest)


@settings(deadline=None, max_examples=60)
@given(logit_rows, st.floats(0.01, 0.99))
def test_top_p_keeps_enough_and_no_more(values, p):
    logits = np.array([values], np.float32)
    kept = np.isfinite(np.asarray(top_p(logits, p)))[0]
    exact = np.exp(logits[0].astype(np.float64))
    probability = exact / exact.sum()
    assert kept[np.argmax(logits[0])]
    assert probability[kept].sum() >= p - 1e-5
    least = logits[0][kept].min()
    assert (kept == (logits[0] >= least)).all()  # what is kept is likelier than what is not
    assert probability[logits[0] > least].sum() < p + 1e-5  # and one step less is too little


# Wrong settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_length": 0}, "max_length"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0, "temperature": 1.0}, "top_k"),
        ({"top_p": 1.5, "temperature": 1.0}, "top_p"),
        ({"top_k": 3}, "temperature"),
        ({"min_length": 99}, "min_length"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
        ({"end_tokens": (), "end_at_limit": True}, "end_tokens"),
    ],
)
def test_settings_that_cannot_work_are_named(fields, named):
    with pytest.raises(ConfigError, match=named):
        GenerateConfig(**{"max_length": LENGTH, **fields})


def test_a_missing_key_and_a_long_prompt_are_said(weights):
    with pytest.raises(ConfigError, match="key"):
        decode(weights, toy_inputs(1), DRAWN)
    with pytest.raises(ConfigError, match="prompt has 13 tokens"):
        decode(weights, toy_inputs(1), prompt=np.ones((1, LENGTH + 1), np.int32))
