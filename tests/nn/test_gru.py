"""Gated recurrent units: values and gradients against plain ones, padding, layers side by side."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.nn import BiGRU, bigrus, gru
from musicjax.types import Policy


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(a, b, tolerance=1e-5):
    def compare(x, y):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, a, b)


@nnx.jit
def run(layer, x, mask=None):
    return layer(x, mask)


def plain_gru(gates, kernel, bias, keep):
    """The equations, frame by frame, differentiated by JAX."""
    h, units = jnp.zeros((*gates.shape[1:-1], kernel.shape[1])), kernel.shape[1]
    outputs = []
    for x, kept in zip(gates, keep, strict=True):
        s = jnp.einsum("kbh,khg->kbg", h, kernel) + bias[:, None]
        r = jax.nn.sigmoid(x[..., :units] + s[..., :units])
        z = jax.nn.sigmoid(x[..., units : 2 * units] + s[..., units : 2 * units])
        n = jnp.tanh(x[..., 2 * units :] + r * s[..., 2 * units :])
        h = jnp.where(kept, (1 - z) * n + z * h, h)
        outputs.append(h)
    return jnp.stack(outputs)


@pytest.mark.parametrize("masked", [False, True])
def test_values_and_gradients(masked):
    gates, kernel, bias = normal(0, 6, 2, 3, 12), normal(1, 2, 4, 12), normal(2, 2, 12)
    keep = jnp.ones((6, 2, 3, 1), bool)
    if masked:
        keep = keep.at[2:4, 0].set(False).at[4:, 1, 1].set(False)
    weight = normal(3, 6, 2, 3, 4)

    def ours(gates, kernel, bias):
        return (gru(gates, kernel, bias, keep if masked else None) * weight).sum()

    def plain(gates, kernel, bias):
        return (plain_gru(gates, kernel, bias, keep) * weight).sum()

    both = [jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2))) for f in (ours, plain)]
    close(*(f(gates, kernel, bias) for f in both))


def test_padding_neither_changes_nor_leaks_from_a_bidirectional_gru():
    layer = BiGRU(5, 4, rngs=nnx.Rngs(0))
    x = normal(0, 2, 7, 5)
    padded = jnp.concatenate([x, 100 * normal(1, 2, 3, 5)], axis=1)
    mask = jnp.arange(10)[None] < jnp.array([7, 7])[:, None]
    y = run(layer, padded, mask)
    close(y[:, :7], run(layer, x))
    assert not y[:, 7:].any()


def test_layers_run_together_give_what_they_give_alone():
    layers = [BiGRU(5, 4, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    inputs = [normal(2, 2, 6, 5), normal(3, 2, 6, 5)]
    together = nnx.jit(bigrus)(layers, inputs)
    close(together, [run(layer, x) for layer, x in zip(layers, inputs, strict=True)])


def test_half_precision_stays_near():
    layer = BiGRU(5, 4, rngs=nnx.Rngs(0))
    half = BiGRU(5, 4, policy=Policy(dtype="bfloat16"), rngs=nnx.Rngs(0))
    x = normal(1, 2, 50, 5)
    y = run(half, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(y), run(layer, x), atol=0.03)
