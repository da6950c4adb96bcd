"""Adafactor as T5X has it, against its formulas written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from musicjax.errors import ConfigError
from musicjax.train.config import OptimConfig
from musicjax.train.rules import state_shardings
from musicjax.train.state import make_optimizer

SHAPES = {"tall": (6, 4), "wide": (3, 5), "square": (4, 4), "small": (2, 9), "scale": (7,)}
CONFIG = OptimConfig(
    name="adafactor", schedule="constant", lr=1e-2, warmup_steps=0, clip_norm=0.0, factored_from=3
)


class Written:
    """One tensor and its slots, moved by the rule of t5x/adafactor.py."""

    def __init__(self, param, factored_from):
        self.param, self.step = param, 0
        shape, order = param.shape, np.argsort(param.shape)
        self.axes = None
        if len(shape) > 1 and shape[order[-2]] >= factored_from:
            self.axes = int(order[-2]), int(order[-1])  # the second longest, the longest
            self.v_row = np.zeros(np.delete(shape, self.axes[1]))
            self.v_col = np.zeros(np.delete(shape, self.axes[0]))
        else:
            self.v = np.zeros(shape)

    def move(self, grad, lr):
        keep = 1.0 - (self.step + 1.0) ** -0.8
        square = grad**2 + 1e-30
        if self.axes is None:
            self.v = keep * self.v + (1 - keep) * square
            update = grad / np.sqrt(self.v)
        else:
            second, longest = self.axes
            self.v_row = keep * self.v_row + (1 - keep) * square.mean(longest)
            self.v_col = keep * self.v_col + (1 - keep) * square.mean(second)
            row = np.expand_dims(self.v_row / self.v_row.mean(), longest)
            update = grad / np.sqrt(row) / np.sqrt(np.expand_dims(self.v_col, second))
        update = update / max(1.0, np.sqrt(np.mean(update**2)))
        size = max(np.sqrt(np.mean(self.param**2)), 1e-3)
        self.param = self.param - lr * size * update
        self.step += 1


def test_five_steps_on_tensors_of_every_kind():
    rng = np.random.default_rng(0)
    start = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    start["scale"] *= 1e-5  # smaller than any scale that counts
    written = {name: Written(param, CONFIG.factored_from) for name, param in start.items()}
    optimizer = make_optimizer(CONFIG, 100)
    params = {name: jnp.asarray(value, jnp.float32) for name, value in start.items()}
    state = jax.jit(optimizer.init)(params)

    @jax.jit
    def move(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(5):
        grads = {
            name: rng.normal(size=shape) * 10.0 ** (step - 2) for name, shape in SHAPES.items()
        }
        for name, grad in grads.items():
            written[name].move(grad, CONFIG.lr)
        given = {name: jnp.asarray(grad, jnp.float32) for name, grad in grads.items()}
        params, state = move(params, state, given)
    slots = next(s for s in jax.tree.leaves(state, is_leaf=is_slots) if is_slots(s))
    assert int(slots.count) == 5
    for name, mine in written.items():
        np.testing.assert_allclose(params[name], mine.param, rtol=2e-5, atol=1e-7)
        kinds = ("v",) if mine.axes is None else ("v_row", "v_col")
        for kind in ("v", "v_row", "v_col"):
            slot = getattr(slots, kind)[name]
            if kind in kinds:
                np.testing.assert_allclose(slot, getattr(mine, kind), rtol=2e-5)
            else:
                np.testing.assert_array_equal(slot, np.zeros(1))  # as T5X leaves an unused slot


def is_slots(node):
    return isinstance(node, optax.FactoredState)


def test_factors_begin_at_128_unless_told_otherwise():
    optimizer = make_optimizer(OptimConfig(name="adafactor"), 100)
    params = {"small": jnp.zeros((127, 500)), "large": jnp.zeros((128, 500))}
    state = jax.eval_shape(optimizer.init, params)
    slots = next(s for s in jax.tree.leaves(state, is_leaf=is_slots) if is_slots(s))
    assert slots.v["small"].shape == (127, 500) and slots.v["large"].shape == (1,)
    assert slots.v_row["large"].shape == (128,) and slots.v_col["large"].shape == (500,)


@pytest.mark.parametrize("wrong", [{"decay_exponent": 0.0}, {"factored_from": 0}])
def test_settings_that_cannot_work(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimConfig(name="adafactor", **wrong)


def test_factors_stay_whole_where_parameters_are_cut():
    """On a mesh: a factor has an axis less than the names of its parameter."""

    class Wide(nnx.Module):
        def __init__(self):
            metadata = {"out_sharding": ("embed", "mlp"), "eager_sharding": False}
            self.kernel = nnx.Param(jnp.zeros((128, 256)), **metadata)

    optimizer = make_optimizer(OptimConfig(name="adafactor"), 100)
    state = jax.eval_shape(lambda: optimizer.init(nnx.state(Wide(), nnx.Param)))
    mesh = AbstractMesh((1, 2, 2), ("data", "fsdp", "tensor"))
    slots = jax.tree.leaves(state, is_leaf=is_slots)
    place = jax.tree.leaves(state_shardings(state, mesh, whole_below_bytes=0), is_leaf=is_slots)
    found = next(s for s in place if is_slots(s))
    assert next(s for s in slots if is_slots(s)).v_row["kernel"].get_value().shape == (128,)
    assert found.v_row["kernel"].get_value().spec == PartitionSpec()
    params = nnx.state(nnx.eval_shape(Wide), nnx.Param)
    cut = state_shardings(params, mesh, whole_below_bytes=0)
    assert cut["kernel"].get_value().spec == PartitionSpec("fsdp", "tensor")
