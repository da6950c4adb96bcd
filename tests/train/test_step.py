"""One update: accumulation, averaging, the rate, steps that must not count, one compilation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from little_system import Batches, Little, LittleConfig, loss

from musicjax.train.config import OptimConfig
from musicjax.train.state import (
    averaged_model,
    learning_rate,
    make_optimizer,
    new_state,
    split_definition,
)
from musicjax.train.step import average_decay, make_step
from musicjax.types import Policy

PLAIN = LittleConfig(norm=False, noise=0.0)


def prepare(model=PLAIN, **optim):
    config = dataclasses.replace(OptimConfig(lr=1e-2, warmup_steps=0), **optim)
    optimizer = make_optimizer(config, 100)

    def make():
        return Little(model, rngs=nnx.Rngs(0))

    state = new_state(make(), optimizer, config)
    graphdef = split_definition(make)
    return state, jax.jit(make_step(graphdef, loss, optimizer, config, 0)), graphdef


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_micro_batches_equal_one_batch():
    batch = next(Batches(size=8))
    state, whole, _ = prepare(accumulate=1)
    _, parts, _ = prepare(accumulate=4)
    (a, metrics_a), (b, metrics_b) = whole(state, batch), parts(state, batch)
    for x, y in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    np.testing.assert_allclose(metrics_a["loss"], metrics_b["loss"], rtol=1e-6)
    np.testing.assert_allclose(metrics_a["grad_norm"], metrics_b["grad_norm"], rtol=1e-5)


def test_batch_statistics_move_through_every_micro_batch():
    state, step, _ = prepare(LittleConfig(noise=0.0), accumulate=4)
    after, _ = step(state, next(Batches(size=8)))
    # Running variance starts at 1 and keeps 0.9 of itself at each of four updates.
    remembered = 0.9**4
    assert not same(state.model_state, after.model_state)
    assert np.all(after.model_state.norm.var[...] > remembered)


def test_average_follows_its_formula():
    state, step, graphdef = prepare(ema_decay=0.999)
    batches = Batches()
    expected = jax.tree.map(np.asarray, state.params)
    for t in range(6):
        state, _ = step(state, next(batches))
        decay = min(0.999, (1 + t) / (10 + t))
        expected = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, expected, state.params)
    for x, y in zip(jax.tree.leaves(state.ema), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7)
    used = nnx.state(averaged_model(graphdef, state), nnx.Param)
    assert same(used, state.ema)


def test_average_is_useful_early():
    assert float(average_decay(0.999, 0)) == pytest.approx(0.1)
    assert float(average_decay(0.999, 90)) == pytest.approx(0.91)
    assert float(average_decay(0.999, 10**6)) == pytest.approx(0.999)


def test_rate_warms_up_and_falls():
    config = OptimConfig(lr=1.0, warmup_steps=10, final_fraction=0.1)
    rate = learning_rate(config, 110)
    assert float(rate(0)) == pytest.approx(0.1)  # the first step moves
    assert float(rate(9)) == pytest.approx(1.0)
    assert float(rate(10)) == pytest.approx(1.0)
    assert float(rate(60)) == pytest.approx(0.55)
    assert float(rate(110)) == pytest.approx(0.1)
    constant = learning_rate(dataclasses.replace(config, schedule="constant"), 110)
    assert float(constant(109)) == 1.0


def test_weight_decay_spares_biases():
    state, step, _ = prepare(name="adamw", weight_decay=10.0, lr=1e-3)
    still = {"audio": np.zeros((8, 64), np.float32), "level": np.zeros(8, np.float32)}
    after, _ = step(state, still)
    np.testing.assert_allclose(
        after.params.first.kernel[...], 0.99 * state.params.first.kernel[...], rtol=1e-5
    )
    np.testing.assert_array_equal(after.params.first.bias[...], state.params.first.bias[...])


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_that_is_not_finite_changes_nothing(accumulate):
    state, step, _ = prepare(LittleConfig(), accumulate=accumulate)
    batches = Batches(bad_from=1, bad_to=3)
    before, _ = step(state, next(batches))
    state, metrics = step(before, next(batches))
    assert not np.isfinite(metrics["loss"])
    for name in ("params", "model_state", "opt_state", "ema"):
        assert same(getattr(before, name), getattr(state, name)), name
    assert (int(state.step), int(state.skipped), int(state.skipped_in_row)) == (2, 1, 1)
    state, _ = step(state, next(batches))
    assert int(state.skipped_in_row) == 2
    state, metrics = step(state, next(batches))
    assert np.isfinite(metrics["loss"])
    assert (int(state.skipped), int(state.skipped_in_row)) == (2, 0)
    assert not same(before.params, state.params)


def test_randomness_follows_from_the_step_number():
    state, step, _ = prepare(LittleConfig(noise=1.0), lr=1e-9)
    batch = next(Batches())
    after, first = step(state, batch)
    _, again = step(state, batch)
    _, second = step(after, batch)
    assert float(first["loss"]) == float(again["loss"]) != float(second["loss"])


def test_three_steps_compile_once():
    state, step, _ = prepare(LittleConfig())
    batches = Batches()
    for _ in range(3):
        state, _ = step(state, next(batches))
    assert step._cache_size() == 1


@pytest.mark.parametrize(
    "policy", [Policy(dtype="bfloat16"), Policy(param_dtype="bfloat16", dtype="bfloat16")]
)
def test_bfloat16_trains(policy):
    state, step, graphdef = prepare(LittleConfig(policy=policy), accumulate=2)
    batches, values = Batches(), []
    for _ in range(15):
        state, metrics = step(state, next(batches))
        values.append(float(metrics["loss"]))
    assert int(state.skipped) == 0 and np.mean(values[-5:]) < np.mean(values[:5])
    assert state.params.first.kernel.dtype == policy.param
    assert {x.dtype for x in jax.tree.leaves(state.ema)} == {jnp.dtype("float32")}
    assert averaged_model(graphdef, state).first.kernel.dtype == policy.param
