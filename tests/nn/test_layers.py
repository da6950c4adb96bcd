"""Layers against plain formulas: values, gradients, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.nn import (
    BatchNormReLU,
    BiLSTM,
    bilstms,
    convolve,
    dropout,
    lstm,
    max_pool_frequency,
)
from musicjax.nn import conv as conv_room


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


def plain_lstm(gates, kernel, keep):
    """The recurrence written out, differentiated by JAX."""
    h = c = jnp.zeros((*gates.shape[1:3], kernel.shape[1]))
    outputs = []
    for t in range(len(gates)):
        z = gates[t] + jnp.einsum("kbh,khg->kbg", h, kernel)
        i, f, g, o = jnp.split(z, 4, axis=-1)
        new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        new_h = jax.nn.sigmoid(o) * jnp.tanh(new_c)
        h, c = jnp.where(keep[t], new_h, h), jnp.where(keep[t], new_c, c)
        outputs.append(h)
    return jnp.stack(outputs)


@pytest.mark.parametrize("masked", [False, True])
def test_lstm_and_its_gradient(masked):
    gates, kernel = normal(0, 6, 2, 3, 16), normal(1, 2, 4, 16)
    keep = jnp.ones((6, 2, 3, 1), bool)
    if masked:
        keep = keep.at[2:4, 0].set(False).at[4:, 1, 1].set(False)
    weight = normal(2, 6, 2, 3, 4)
    ours = jax.value_and_grad(
        lambda g, k: (lstm(g, k, keep if masked else None) * weight).sum(), argnums=(0, 1)
    )
    plain = jax.value_and_grad(lambda g, k: (plain_lstm(g, k, keep) * weight).sum(), argnums=(0, 1))
    close(jax.jit(ours)(gates, kernel), jax.jit(plain)(gates, kernel))


def test_padding_neither_changes_nor_leaks_from_a_bidirectional_lstm():
    layer = BiLSTM(5, 4, rngs=nnx.Rngs(0))
    x = normal(0, 2, 7, 5)
    padded = jnp.concatenate([x, 100 * normal(1, 2, 3, 5)], axis=1)
    mask = jnp.arange(10)[None] < jnp.array([7, 7])[:, None]
    y = layer(padded, mask)
    close(y[:, :7], layer(x))
    assert not y[:, 7:].any()


def test_layers_run_together_give_what_they_give_alone():
    layers = [BiLSTM(5, 4, two_biases=True, rngs=nnx.Rngs(seed)) for seed in (0, 1)]
    inputs = [normal(2, 2, 6, 5), normal(3, 2, 6, 5)]
    together = bilstms(layers, inputs)
    close(together, [layer(x) for layer, x in zip(layers, inputs, strict=True)])


@pytest.mark.parametrize("kernel_size", [(3, 3), (1, 5), (5, 1), (2, 4)])
def test_gradient_of_the_wide_convolution(kernel_size):
    x, kernel, dy = normal(0, 2, 5, 7, 3), normal(1, *kernel_size, 3, 4), normal(2, 2, 5, 7, 4)
    expected = jax.vjp(conv_room._convolve, x, kernel)[1](dy)
    if kernel_size == (2, 4):  # even kernels are padded unevenly: only odd ones are offered
        with pytest.raises(ValueError, match="odd"):
            convolve(x, kernel)
        return
    close(jax.vjp(conv_room._convolve_cpu, x, kernel)[1](dy), expected, 1e-4)


def plain_norm_relu(x, scale, bias, mask, epsilon=1e-3):
    seen = jnp.broadcast_to(mask, x.shape)
    count = seen[..., :1].sum()
    mean = jnp.where(seen, x, 0).sum((0, 1, 2)) / count
    variance = (jnp.where(seen, x - mean, 0) ** 2).sum((0, 1, 2)) / count
    y = (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias
    return jnp.where(seen, jax.nn.relu(y), 0)


@pytest.mark.parametrize("masked", [False, True])
def test_norm_relu_and_its_gradient(masked):
    x, scale, bias = normal(0, 2, 5, 3, 4), 1 + 0.1 * normal(1, 4), normal(2, 4)
    mask = jnp.ones((2, 5), bool)
    if masked:
        mask = mask.at[1, 3:].set(False)
    weight = normal(3, 2, 5, 3, 4)
    layer = BatchNormReLU(4, momentum=0.9, epsilon=1e-3, use_scale=True, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)

    def ours(x, scale, bias):
        model = nnx.merge(graph, state, copy=True)
        model.scale[...], model.bias[...] = scale, bias
        return (model(x, train=True, mask=mask if masked else None) * weight).sum()

    def plain(x, scale, bias):
        return (plain_norm_relu(x, scale, bias, mask[:, :, None, None]) * weight).sum()

    both = [
        jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))(x, scale, bias) for f in (ours, plain)
    ]
    close(*both, 1e-4)


def test_running_statistics_follow_the_batch_and_its_offset():
    layer = BatchNormReLU(2, momentum=0.0, epsilon=1e-5, use_scale=False, rngs=nnx.Rngs(0))
    x, offset = normal(0, 2, 5, 3, 2), jnp.array([1.0, -2.0])
    trained = layer(x, train=True, offset=offset)
    close(layer.mean[...], (x + offset).mean((0, 1, 2)))
    close(layer.var[...], x.var((0, 1, 2)))
    close(layer(x, train=False, offset=offset), trained, 1e-4)


def test_max_pool_drops_the_bins_left_over():
    x = jnp.arange(7.0)[None, None, :, None]
    np.testing.assert_array_equal(max_pool_frequency(x, 2).ravel(), [1, 3, 5])
    np.testing.assert_array_equal(max_pool_frequency(x, 3).ravel(), [2, 5])


def test_dropout_keeps_the_mean_and_does_nothing_without_a_key():
    x = jnp.ones((101, 103))
    assert dropout(x, 0.25, None) is x
    dropped = dropout(x, 0.25, jax.random.key(0))
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(4 / 3)}
    assert abs(float(dropped.mean()) - 1) < 0.02
