"""Muon on tensors of every kind, against singular vectors from NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec
from little_system import Batches, Little, LittleConfig, loss

from musicjax.train.config import MeshConfig, OptimConfig
from musicjax.train.mesh import make_mesh, on_mesh
from musicjax.train.rules import state_shardings
from musicjax.train.state import make_optimizer, new_state, split_definition
from musicjax.train.step import make_step

CONFIG = OptimConfig(name="muon", schedule="constant", lr=1e-2, warmup_steps=0, clip_norm=0.0)
SHAPES = {"dense": (6, 4), "wide": (4, 9), "conv": (3, 3, 2, 5)}


@pytest.fixture(scope="module")
def moved():
    """Gradients and the first updates of three matrices and a bias."""
    rng = np.random.default_rng(0)
    grads = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    grads["bias"] = rng.normal(size=7)
    grads = {name: jnp.asarray(x, jnp.float32) for name, x in grads.items()}
    optimizer = make_optimizer(CONFIG, 100)
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return grads, updates


@pytest.mark.parametrize("name", SHAPES)
def test_an_update_has_the_gradients_directions_and_one_strength(moved, name):
    """Its singular vectors are the gradient's; its singular values lie around one number."""
    grad, update = (np.asarray(x[name], np.float64).reshape(-1, SHAPES[name][-1]) for x in moved)
    left, _, right = np.linalg.svd(grad, full_matrices=False)
    strengths = left.T @ update @ right.T
    size = 0.2 * np.sqrt(max(grad.shape)) * CONFIG.lr
    np.testing.assert_allclose(np.diag(strengths), -size, rtol=0.35)  # five rounds are not exact
    off = strengths - np.diag(np.diag(strengths))
    assert np.abs(off).max() < 1e-3 * size


def test_biases_move_as_with_nesterovs_adam(moved):
    grads, updates = moved
    adam = optax.nadam(CONFIG.lr, b1=CONFIG.b1, b2=CONFIG.b2, eps=CONFIG.eps)
    bias = {"bias": grads["bias"]}
    expected, _ = adam.update(bias, adam.init(bias), bias)
    np.testing.assert_allclose(updates["bias"], expected["bias"], rtol=1e-5)


def test_it_trains():
    model, optimizer = LittleConfig(), make_optimizer(CONFIG, 100)
    make = lambda: Little(model, rngs=nnx.Rngs(0))  # noqa: E731
    state = new_state(make(), optimizer, CONFIG)
    step = jax.jit(make_step(split_definition(make), loss, optimizer, CONFIG, 0))
    batches, losses = Batches(16), []
    for _ in range(30):
        state, metrics = step(state, next(batches))
        losses.append(float(metrics["loss"]))
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])
    assert step._cache_size() == 1


def test_momentum_is_cut_as_the_parameters_are():
    optimizer = make_optimizer(CONFIG, 100)
    with on_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        abstract = jax.eval_shape(
            lambda: new_state(
                Little(LittleConfig(annotated=True), rngs=nnx.Rngs(0)), optimizer, CONFIG
            )
        )
    mesh = AbstractMesh((2, 2, 2), ("data", "fsdp", "tensor"))
    shardings = state_shardings(abstract, mesh, whole_below_bytes=1024)
    moments = jax.tree.leaves(shardings.opt_state)
    specs = {x.spec for x in jax.tree.leaves(shardings.params)} - {PartitionSpec()}
    assert specs
    assert specs <= {x.spec for x in moments}
