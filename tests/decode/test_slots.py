"""Slot refilling: the same as one by one, in order, in bounded memory, compiled once."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from toy_decoders import (
    END,
    SOURCE,
    WIDTH,
    greedy_without_cache,
    toy_inputs,
    toy_prefill,
    toy_step,
    toy_weights,
)

from musicjax.decode import GenerateConfig, Segment, SlotDecoder, TableGrammar
from musicjax.errors import ConfigError, DataError

LENGTH = 20
GREEDY = GenerateConfig(max_length=LENGTH, end_tokens=(END,))
DRAWN = GenerateConfig(max_length=LENGTH, end_tokens=(END,), temperature=1.2, top_k=9)
COUNT = 37


@pytest.fixture(scope="module")
def weights():
    """Weights whose rows have lengths from 1 to the limit."""
    return toy_weights(end_bias=2.0)


@pytest.fixture(scope="module")
def expected(weights):
    """Every segment decoded from the definition."""
    rows = greedy_without_cache(weights, toy_inputs(COUNT), LENGTH)
    lengths = [len(row) for row in rows]
    assert min(lengths) < 4 and max(lengths) == LENGTH and len(set(lengths)) > 5
    return rows


def segments(count=COUNT, **fields):
    return [Segment(inputs, **fields) for inputs in toy_inputs(count)]


@functools.cache
def decoder(config=GREEDY, **fields):
    """One for each setting, so that tests share what was compiled."""
    return SlotDecoder(toy_prefill, toy_step, config, **fields)


@pytest.fixture(scope="module")
def drawn(weights):
    """The same drawn at random in three slots."""
    run = decoder(DRAWN, slots=3).decode(weights, segments(), key=jax.random.key(7))
    return [d.tokens.tolist() for d in run]


def test_refilled_slots_give_what_one_by_one_gives(weights, expected):
    run = decoder(slots=4, queue=16, release=2).decode(weights, segments())
    out = list(run)
    assert [d.index for d in out] == list(range(COUNT))
    assert [d.tokens.tolist() for d in out] == expected
    assert [d.truncated for d in out] == [row[-1] != END for row in expected]
    assert run.tally.segments == COUNT
    assert run.tally.tokens == sum(map(len, expected))
    assert run.tally.truncated == sum(row[-1] != END for row in expected) > 0
    assert run.tally.slot_steps >= run.tally.tokens
    assert 0 < run.tally.occupancy <= 1


def test_slots_are_kept_busy(weights, expected):
    """Many more segments than slots: hardly a slot step is wasted before the last ones."""
    count = 10 * COUNT
    many = (Segment(x) for _ in range(10) for x in toy_inputs(COUNT))
    run = decoder(slots=4, queue=16).decode(weights, many)
    assert len(list(run)) == count
    batches = [sorted(map(len, expected))[-1]] * (count // 4)  # each batch waits for its longest
    assert run.tally.occupancy > 0.9
    assert run.tally.slot_steps < 0.7 * 4 * sum(batches)


def test_drawing_does_not_depend_on_slots(weights, drawn):
    """Segment i draws from the key folded with i, wherever and beside whomever it runs."""
    many = decoder(DRAWN, slots=64, queue=5, release=8)
    first, other = (many.decode(weights, segments(), key=jax.random.key(k)) for k in (7, 8))
    assert [d.tokens.tolist() for d in first] == drawn
    assert [d.tokens.tolist() for d in other] != drawn


def test_nothing_is_compiled_for_another_number_of_segments(weights):
    slots = decoder(slots=4, queue=16, release=2)
    for count in (9, 1, 4, COUNT):
        assert len(list(slots.decode(weights, segments(count)))) == count
        assert slots.compiled == 3  # a queue, empty slots, a round
    assert list(slots.decode(weights, [])) == []


def test_an_endless_source_is_read_only_as_far_as_needed(weights):
    read = []

    def endless():
        for i in range(10**9):
            read.append(i)
            yield Segment(toy_inputs(COUNT)[i % COUNT])

    run = decoder(slots=4, queue=16, release=2).decode(weights, endless())
    assert read == []
    first = [next(run).index for _ in range(10)]
    assert first == list(range(10))
    # 10 are out, 4 run, 2 queues of 16 are ahead; in one round a whole queue comes in.
    assert len(read) <= 10 + 4 + 3 * 16


def test_prompts_and_limits_of_single_segments(weights, expected):
    inputs = toy_inputs(COUNT)
    prompts = [None if i % 3 else np.array([2 + i % 5, 4]) for i in range(COUNT)]
    limits = [5 if i % 4 == 0 else None for i in range(COUNT)]
    given = [Segment(*each) for each in zip(inputs, prompts, limits, strict=True)]
    alone = greedy_without_cache(
        weights, inputs, LENGTH, [() if p is None else p.tolist() for p in prompts]
    )
    slots = decoder(slots=4, queue=16, release=2)
    for got, row, limit in zip(slots.decode(weights, given), alone, limits, strict=True):
        assert got.tokens.tolist() == row[: limit or LENGTH]
        assert got.truncated == (got.tokens[-1] != END)


def test_a_cache_grows_and_shrinks_with_its_rows():
    """Rows of 200 tokens among rows of 3: two sizes of cache, the same tokens as ever."""
    weights = toy_weights(end_bias=-9.0)
    limits = [3, 200, 3, 3, 3, 140, 3, 3, 3, 3, 3, 200] + [3] * 8
    given = [Segment(x, max_length=n) for x, n in zip(toy_inputs(20), limits, strict=True)]
    config = GenerateConfig(max_length=200, end_tokens=(END,))
    slots = decoder(config, slots=2, queue=4)
    out = list(slots.decode(weights, given))
    assert [len(d.tokens) for d in out] == limits
    assert slots.compiled == 4  # a queue, empty slots, rounds with room for 128 and for 200
    longest = greedy_without_cache(weights, toy_inputs(20)[1:2], 200)[0]
    assert out[1].tokens.tolist() == longest


def test_slots_keep_to_a_grammar_and_inputs_may_be_a_tree(weights):
    """Odd tokens only, each larger than the one before, in every slot from the beginning."""

    def prefill(weights, inputs, max_length):
        return toy_prefill(weights, inputs["sound"] + inputs["more"], max_length)

    tokens = np.arange(13)
    grammar = TableGrammar(
        np.zeros((1, 2), int),
        np.array([[False, True]]),
        tokens % 2,
        rising=np.where(tokens > 1, tokens, -1),
    )
    given = [Segment({"sound": x - 1, "more": np.ones_like(x)}) for x in toy_inputs(COUNT)]
    slots = SlotDecoder(prefill, toy_step, GREEDY, slots=3, grammar=grammar)
    out = [d.tokens.tolist() for d in slots.decode(weights, given)]
    for said in out:
        assert all(token % 2 for token in said)
        assert said[:-1] == sorted(set(said[:-1]))
    assert len({tuple(said) for said in out}) > 1  # the inputs are heard


def test_eight_devices_give_what_one_gives(drawn, root):
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, str(here / "slots_on_devices.py")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(here)]),
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout.strip().splitlines()[-1])
    assert (got["devices"], got["compiled"], got["compiled_anew"]) == (8, 3, 0)
    assert (got["drawn"], got["fewer"]) == (drawn, drawn[:21])


def test_a_bias_makes_tokens_likelier(weights, expected):
    """Its segment alone is changed, and its score stays the network's own."""
    bias = np.zeros(13, np.float32)
    bias[4] = 100.0
    given = [Segment(x, bias=bias if i == 2 else None) for i, x in enumerate(toy_inputs(5))]
    slots = decoder(slots=4, queue=16, release=2, biased=13)
    out = list(slots.decode(weights, given))
    assert out[2].tokens.tolist() == [4] * LENGTH
    others = [d.tokens.tolist() for d in out if d.index != 2]
    assert others == [row for i, row in enumerate(expected[:5]) if i != 2]
    assert out[2].score < 0
    with pytest.raises(DataError, match=r"a bias of shape \(13,\).*biased=None"):
        list(decoder(slots=4, queue=16, release=2).decode(weights, given))


@pytest.mark.parametrize(
    ("segment", "said"),
    [
        (Segment(toy_inputs(1)[0], prompt=np.ones(LENGTH, np.int32)), "segment 1 has 20 tokens"),
        (Segment(toy_inputs(1)[0], np.ones(4, np.int32), 4), "within its max_length of 4"),
        (Segment(toy_inputs(1)[0], max_length=LENGTH + 1), "segment 1 has max_length=21"),
        (Segment(np.zeros((SOURCE + 1, WIDTH), np.float32)), "inputs of segment 1"),
    ],
)
def test_a_segment_that_cannot_work_is_named(weights, segment, said):
    with pytest.raises(DataError, match=said):
        list(decoder(slots=4, queue=16, release=2).decode(weights, [*segments(1), segment]))


def test_settings_that_cannot_work_are_named(weights):
    for fields in ({"slots": 0}, {"queue": 0}, {"release": 0}, {"slots": 2, "release": 3}):
        with pytest.raises(ConfigError, match=list(fields)[-1]):
            decoder(**fields)
    with pytest.raises(ConfigError, match="key"):
        decoder(DRAWN, slots=3).decode(weights, segments())
