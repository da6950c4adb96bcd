"""Products of bfloat16 operands: rounded operands, float32 sums, gradients of the same kind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.nn.axes import linear
from musicjax.nn.products import dense_product, half_product
from musicjax.types import Policy


def rounded(x):
    return np.asarray(jnp.asarray(x).astype(jnp.bfloat16).astype(jnp.float32), np.float64)


@pytest.fixture
def operands():
    rng = np.random.default_rng(0)
    shapes = ((5, 40), (40, 7), (5, 7))
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def test_only_the_operands_are_rounded(operands):
    x, y, dz = operands
    z, pull = jax.vjp(half_product, x, y)
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, rounded(x) @ rounded(y), atol=1e-5)
    dx, dy = pull(dz)
    np.testing.assert_allclose(dx, rounded(dz) @ rounded(y).T, atol=1e-5)
    np.testing.assert_allclose(dy, rounded(x).T @ rounded(dz), atol=1e-5)
    assert np.abs(np.asarray(z - x @ y)).max() > 1e-4


def test_gradients_keep_the_type_of_their_operand(operands):
    x, y, dz = operands
    _, pull = jax.vjp(half_product, x.astype(jnp.bfloat16), y)
    dx, dy = pull(dz)
    assert (dx.dtype, dy.dtype) == (jnp.bfloat16, jnp.float32)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dense_layer_gives_its_dtype(dtype):
    policy = Policy(dtype=dtype)
    init = nnx.initializers.lecun_normal()
    layer = linear(6, 3, ("a", "b"), bias=True, init=init, policy=policy, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 4, 6), policy.compute)
    y = jax.jit(lambda x: layer(x))(x)
    assert y.dtype == policy.compute and y.shape == (2, 4, 3)
    exact = np.asarray(x, np.float64) @ np.asarray(layer.kernel[...], np.float64)
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, atol=0.02)
    plain = dense_product(Policy())
    assert plain is jax.lax.dot_general
