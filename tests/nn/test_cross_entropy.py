"""The token loss against T5's formulas, written out in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicjax.nn.cross_entropy import cross_entropy


def written_out(logits, targets, z_loss, smoothing):
    """Cost and gradient with the whole table of soft targets, in float64."""
    classes = logits.shape[-1]
    low = smoothing / (classes - 1)
    soft = np.full(logits.shape, low)
    np.put_along_axis(soft, targets[..., None], 1 - smoothing, axis=-1)
    log_z = np.log(np.exp(logits).sum(-1))
    log_softmax = logits - log_z[..., None]
    entropy = -(soft * np.log(np.where(soft > 0, soft, 1))).sum(-1)
    cost = -(soft * log_softmax).sum(-1) - entropy + z_loss * log_z**2
    slope = (1 + 2 * z_loss * log_z)[..., None] * np.exp(log_softmax) - soft
    return cost, slope


@pytest.mark.parametrize("z_loss", [0.0, 1e-4, 0.1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cost_and_gradient(z_loss, smoothing):
    rng = np.random.default_rng(0)
    logits, targets = 3 * rng.normal(size=(2, 5, 7)), rng.integers(0, 7, (2, 5))

    def total(x):
        cost, extra = cross_entropy(
            x, jnp.asarray(targets), z_loss=z_loss, label_smoothing=smoothing
        )
        return cost.sum(), (cost, extra)

    run = jax.jit(jax.grad(total, has_aux=True))
    slope, (cost, extra) = run(jnp.asarray(logits, jnp.float32))
    wanted, wanted_slope = written_out(logits, targets, z_loss, smoothing)
    np.testing.assert_allclose(cost, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(slope, wanted_slope, rtol=1e-5, atol=1e-6)
    log_z = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(extra, z_loss * log_z**2, rtol=1e-5, atol=1e-7)


def test_half_precision_is_summed_in_float32():
    logits = jnp.full((1, 1, 4096), 2.0, jnp.bfloat16)
    cost, _ = jax.jit(cross_entropy)(logits, jnp.zeros((1, 1), jnp.int32))
    assert cost.dtype == jnp.float32
    np.testing.assert_allclose(cost[0, 0], np.log(4096), rtol=1e-6)


def test_a_sure_and_right_model_pays_nothing():
    logits = 1e4 * jnp.eye(5)[jnp.array([[2, 0]])]
    cost, _ = jax.jit(cross_entropy)(logits, jnp.array([[2, 0]]))
    np.testing.assert_array_equal(cost, 0.0)
