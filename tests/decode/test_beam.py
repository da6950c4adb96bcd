"""Beam search and the rules, against transformers' answers and against trying everything."""

import itertools
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_decoders import (
    END,
    table_cache,
    table_step,
    toy_decode,
    toy_inputs,
    toy_prefill,
    toy_step,
    toy_weights,
)

from musicjax.decode import BeamConfig, GenerateConfig, TableGrammar, beam_search, generate
from musicjax.decode.sampling import keep_top_k, keep_top_p
from musicjax.errors import ConfigError


@pytest.fixture(scope="module")
def answers(root):
    """transformers' answers; see make_generate.py."""
    return dict(np.load(root / "tests" / "fixtures" / "decode" / "generate.npz"))


def tables_of(answers):
    return {k: jnp.asarray(answers[k]) for k in ("by_place", "after", "after_before")}


def ours(setting):
    """transformers' words in ours: (config, beams, prompt)."""
    ends = setting.get("eos_token_id", END)
    config = GenerateConfig(
        max_length=setting.get("max_length", 8) - 1,
        min_length=max(0, setting.get("min_length", 0) - 1),
        end_tokens=(ends,) if isinstance(ends, int) else tuple(ends),
        repetition_penalty=setting.get("repetition_penalty", 1.0),
        no_repeat_ngram=setting.get("no_repeat_ngram_size", 0),
        first_token=setting.get("forced_bos_token_id"),
        end_at_limit="forced_eos_token_id" in setting,
    )
    beams = BeamConfig(
        num_beams=setting.get("num_beams", 1),
        length_penalty=setting.get("length_penalty", 1.0),
        early_stopping=setting.get("early_stopping", False),
    )
    return config, beams, setting.get("prompt")


@pytest.fixture
def loops_in_python(monkeypatch):
    """Loops run step by step: compiling one for each setting would take a minute."""

    def run(go_on, body, state):
        while go_on(state):
            state = body(state)
        return state

    monkeypatch.setattr(jax.lax, "while_loop", run)


# Every rule at least once; the others are slow.
QUICK = (3, 10, 38, 41, 48, 50)


@pytest.mark.parametrize("quick", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_settings_give_what_transformers_gives(answers, loops_in_python, quick):
    tables, settings = tables_of(answers), json.loads(str(answers["settings"]))
    items = len(tables["by_place"])
    step = partial(table_step, tables)
    compared = 0
    for i, setting in enumerate(settings):
        if (i in QUICK) is not quick:
            continue
        config, beams, prompt = ours(setting)
        given = None if prompt is None else jnp.asarray([prompt] * items)
        theirs = answers[f"tokens_{i}"][:, 1:]
        if beams.num_beams == 1:
            got = generate(step, table_cache(items), config, prompt=given)
            tokens, lengths, scores = got.tokens, got.lengths, None
        else:
            got = beam_search(step, table_cache(items), config, beams, prompt=given)
            tokens = got.tokens.reshape(-1, config.max_length)
            lengths, scores = got.lengths.reshape(-1), got.scores.reshape(-1)
        for row in range(len(theirs)):
            if scores is not None and answers[f"scores_{i}"][row] < -1e8:
                assert lengths[row] == 0  # a place that nobody took
                continue
            expected = theirs[row].tolist()
            found = tokens[row][: lengths[row]].tolist()
            assert found == expected[: len(found)], setting
            # transformers fills up with the end token where padding is token 0.
            assert set(expected[len(found) :]) <= {config.pad_token, END}, setting
            compared += 1
        if scores is not None:
            there = np.asarray(lengths) > 0
            np.testing.assert_allclose(
                np.asarray(scores)[there], answers[f"scores_{i}"][there], atol=1e-4
            )
    assert compared > (60 if quick else 400)


def test_filters_are_those_of_transformers(answers):
    logits = jnp.asarray(answers["by_place"].reshape(-1, answers["by_place"].shape[-1]))
    for i, setting in enumerate(json.loads(str(answers["filters"]))):
        got = logits / setting["temperature"]
        if setting["top_k"] is not None:
            got = keep_top_k(got, setting["top_k"])
        if setting["top_p"] is not None:
            got = keep_top_p(got, setting["top_p"])
        np.testing.assert_allclose(got, answers[f"filtered_{i}"], rtol=1e-6)


def all_endings(tables, item, length, vocabulary, end):
    """(tokens, summed log-probability) of everything that could be said."""

    def grow(tokens, score):
        if len(tokens) == length or (tokens and tokens[-1] == end):
            yield tokens, score
            return
        history = [0, 0, *tokens]
        logits = (
            tables["by_place"][item, len(tokens)]
            + tables["after"][history[-1]]
            + tables["after_before"][history[-2]]
        )
        gains = logits - np.log(np.exp(logits).sum())
        for token in range(vocabulary):
            yield from grow([*tokens, token], score + gains[token])

    return list(grow([], 0.0))


@pytest.mark.parametrize("length_penalty", [2.0, -0.5])
def test_wide_beams_find_the_best_of_all(length_penalty):
    items, places, vocabulary = 3, 4, 4
    rng = np.random.default_rng(2)
    tables = {
        "by_place": rng.normal(size=(items, places, vocabulary)),
        "after": rng.normal(size=(vocabulary, vocabulary)),
        "after_before": rng.normal(size=(vocabulary, vocabulary)),
    }
    config = GenerateConfig(max_length=places, end_tokens=(END,))
    beams = BeamConfig(num_beams=64, length_penalty=length_penalty, early_stopping="never")
    as_float32 = {k: jnp.asarray(v, jnp.float32) for k, v in tables.items()}
    search = jax.jit(
        lambda t: beam_search(partial(table_step, t), table_cache(items), config, beams)
    )
    got = search(as_float32)
    for item in range(items):
        every = all_endings(tables, item, places, vocabulary, END)
        score, best = max((s / len(t) ** length_penalty, t) for t, s in every)
        assert got.tokens[item, 0][: got.lengths[item, 0]].tolist() == best
        np.testing.assert_allclose(got.scores[item, 0], score, atol=1e-5)
        assert (np.diff(got.scores[item]) <= 1e-6).all()


LENGTH = 9
CONFIG = GenerateConfig(max_length=LENGTH, end_tokens=(END,))
FOUR = BeamConfig(num_beams=4, length_penalty=0.7)


@partial(jax.jit, static_argnames=("beams", "grammar"))
def search(weights, inputs, beams=FOUR, grammar=None):
    cache = toy_prefill(weights, inputs, LENGTH)
    return beam_search(partial(toy_step, weights), cache, CONFIG, beams, grammar=grammar)


def test_one_beam_is_greedy():
    weights, inputs = toy_weights(end_bias=1.5), toy_inputs(8)

    @jax.jit
    def greedily(weights, inputs):
        return generate(partial(toy_step, weights), toy_prefill(weights, inputs, LENGTH), CONFIG)

    greedy = greedily(weights, inputs)
    got = search(weights, inputs, BeamConfig(num_beams=1, length_penalty=0.0))
    np.testing.assert_array_equal(got.tokens[:, 0], greedy.tokens)
    np.testing.assert_array_equal(got.finished[:, 0], greedy.finished)
    np.testing.assert_allclose(got.scores[:, 0], greedy.scores, atol=1e-4)


def test_an_item_does_not_hang_on_its_company():
    weights, inputs, strangers = toy_weights(end_bias=1.5), toy_inputs(4), toy_inputs(4, seed=2)
    together = search(weights, inputs)
    for i in range(4):
        among = strangers.copy()
        among[i] = inputs[i]
        got = search(weights, among)
        np.testing.assert_array_equal(got.tokens[i], together.tokens[i])
        np.testing.assert_allclose(got.scores[i], together.scores[i], atol=1e-4)


def test_scores_are_those_of_the_tokens_without_a_cache():
    """Rows change places at every step; their caches must go with them."""
    weights, inputs = toy_weights(seed=5, end_bias=1.0), toy_inputs(4)
    got = search(weights, inputs)
    for item, beam in itertools.product(range(4), range(4)):
        row = got.tokens[item, beam][: got.lengths[item, beam]].tolist()
        fed = np.zeros((1, LENGTH), np.int32)
        fed[0, 1 : len(row)] = row[:-1]
        logits = toy_decode(weights, inputs[item : item + 1], fed)[0, : len(row)]
        summed = jax.nn.log_softmax(logits)[np.arange(len(row)), row].sum()
        np.testing.assert_allclose(got.scores[item, beam], summed / len(row) ** 0.7, atol=1e-4)


def test_beams_keep_to_a_grammar():
    weights, inputs = toy_weights(end_bias=1.0), toy_inputs(4)
    # Odd tokens only, each larger than the one before.
    classes = np.arange(13) % 2
    grammar = TableGrammar(
        next_state=np.zeros((1, 2), int),
        allowed_classes=np.array([[False, True]]),
        token_class=classes,
        rising=np.where(np.arange(13) > 1, np.arange(13), -1),
    )
    got = search(weights, inputs, FOUR, grammar)
    rows = np.asarray(got.tokens).reshape(-1, LENGTH), np.asarray(got.lengths).reshape(-1)
    for row, length in zip(*rows, strict=True):
        said = row[:length].tolist()
        assert all(token % 2 for token in said)
        assert said[:-1] == sorted(set(said[:-1]))


def test_what_cannot_be_searched_is_said():
    weights, inputs = toy_weights(), toy_inputs(1)
    step, cache = partial(toy_step, weights), toy_prefill(weights, inputs, 4)
    with pytest.raises(ConfigError, match="temperature"):
        beam_search(step, cache, GenerateConfig(max_length=4, temperature=1.0))
    with pytest.raises(ConfigError, match="no room"):
        full = jnp.ones((1, 4), jnp.int32)
        beam_search(step, cache, GenerateConfig(max_length=4), prompt=full)
    with pytest.raises(ConfigError, match="num_beams"):
        BeamConfig(num_beams=0)
    with pytest.raises(ConfigError, match="early_stopping"):
        BeamConfig(early_stopping="sometimes")
