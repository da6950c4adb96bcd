"""Gated recurrent units by `lax.scan`, in both directions, several layers side by side.

As in `recurrent`, the input is projected for all frames before the scan and the gradient is written
by hand: the backward scan carries only the gradient at the state, and that of the weights is one
product over all frames after it.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from musicjax.types import Policy


def _recur(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., K, B, H) by (K, H, G), accumulated in float32."""
    return jnp.einsum(
        "...kbh,khg->...kbg", h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32
    )


def _gates(x: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Reset gate, update gate and candidate from the two shares of their pre-activations."""
    x_r, x_z, x_n = jnp.split(x.astype(jnp.float32), 3, axis=-1)
    h_r, h_z, h_n = jnp.split(recurrent, 3, axis=-1)
    r, z = jax.nn.sigmoid(x_r + h_r), jax.nn.sigmoid(x_z + h_z)
    return r, z, jnp.tanh(x_n + r * h_n)


@jax.custom_vjp
def gru(
    gates: Float[Array, "T K B G"],
    kernel: Float[Array, "K H G"],
    bias: Float[Array, "K G"],
    keep: Bool[Array, "T K B 1"] | None,
) -> Float[Array, "T K B H"]:
    """K independent GRUs over projected inputs, from zero state.

    `gates` holds the input's share of the pre-activations, its bias included, in the order r, z, n
    (G = 3H); `bias` is the state's own, which the reset gate multiplies too (cuDNN's and PyTorch's
    form). Where `keep` is False the state passes through unchanged. The state is float32.
    """
    _, k, b, g = gates.shape

    def step(h: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        x, kept = xs
        _, z, n = _gates(x, _recur(h, kernel) + bias[:, None])
        new = n + z * (h - n)
        if kept is not None:
            new = jnp.where(kept, new, h)
        return new, new.astype(gates.dtype)

    zeros = jnp.zeros((k, b, g // 3), jnp.float32)
    return jax.lax.scan(step, zeros, (gates, keep))[1]


def _gru_fwd(
    gates: jax.Array, kernel: jax.Array, bias: jax.Array, keep: jax.Array | None
) -> tuple[jax.Array, tuple]:
    outputs = gru(gates, kernel, bias, keep)
    return outputs, (gates, outputs, kernel, bias, keep)


def _gru_bwd(residuals: tuple, d_outputs: jax.Array) -> tuple:
    gates, outputs, kernel, bias, keep = residuals
    before = jnp.concatenate([jnp.zeros_like(outputs[:1]), outputs[:-1]]).astype(jnp.float32)
    recurrent = _recur(before, kernel) + bias[:, None]
    r, z, n = _gates(gates, recurrent)
    # All three pre-activations have a gradient proportional to that of the new state.
    to_n = (1 - z) * (1 - n * n)
    to_r = to_n * jnp.split(recurrent, 3, axis=-1)[2] * r * (1 - r)
    to_z = (before - n) * z * (1 - z)
    to_recurrent = jnp.concatenate([to_r, to_z, to_n * r], axis=-1)
    kernel_t = kernel.swapaxes(1, 2)

    def step(carry: jax.Array, xs: tuple) -> tuple[jax.Array, jax.Array]:
        d_out, slope, passed, kept = xs
        dh = carry + d_out.astype(jnp.float32)
        new = dh * passed + _recur(jnp.tile(dh, 3) * slope, kernel_t)
        if kept is None:
            return new, dh
        return jnp.where(kept, new, dh), jnp.where(kept, dh, 0)

    zeros = jnp.zeros(outputs.shape[1:], jnp.float32)
    xs = (d_outputs, to_recurrent, z, keep)
    dh: jax.Array = jax.lax.scan(step, zeros, xs, reverse=True)[1]
    dh = jnp.tile(dh, 3)
    d_recurrent = dh * to_recurrent
    d_gates = dh * jnp.concatenate([to_r, to_z, to_n], axis=-1)
    d_kernel = jnp.einsum("tkbh,tkbg->khg", before, d_recurrent)
    d_bias = d_recurrent.sum((0, 2))
    return d_gates.astype(gates.dtype), d_kernel.astype(kernel.dtype), d_bias, None


gru.defvjp(_gru_fwd, _gru_bwd)


class GRUWeights(nnx.Module):
    """Weights of one direction: input_kernel (D, 3H), recurrent_kernel (H, 3H), and two biases.

    Gates in the order r, z, n. `bias` goes with the input and `recurrent_bias` with the state; they
    do not add up, because the reset gate multiplies the second one.
    """

    def __init__(self, width: int, units: int, *, policy: Policy, rngs: nnx.Rngs):
        def uniform(rows: int, columns: int) -> jax.Array:  # variance 1 / rows
            bound = (3.0 / rows) ** 0.5
            shape = (rows, columns)
            return jax.random.uniform(rngs.params(), shape, policy.param, -bound, bound)

        orthogonal = nnx.initializers.orthogonal()(rngs.params(), (units, units), policy.param)
        self.input_kernel = nnx.Param(uniform(width, 3 * units))
        recurrent = jnp.concatenate([uniform(units, 2 * units), orthogonal], axis=1)
        self.recurrent_kernel = nnx.Param(recurrent)
        self.bias = nnx.Param(jnp.zeros((3 * units,), policy.param))
        self.recurrent_bias = nnx.Param(jnp.zeros((3 * units,), policy.param))

    def project(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch G"]:
        """The input's share of the gates, its bias included."""
        return x @ self.input_kernel[...].astype(x.dtype) + self.bias[...].astype(x.dtype)


class BiGRU(nnx.Module):
    """Bidirectional GRU, one layer; both directions run side by side in one scan.

    Inputs: x (B, T, D), mask (B, T) True at frames that exist. Output: (B, T, 2H), forward then
    backward; zero at masked frames, and elsewhere the same as if the masked frames were cut off.
    """

    def __init__(
        self,
        width: int,
        units: int,
        *,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        make = partial(GRUWeights, policy=policy, rngs=rngs)
        self.forward = make(width, units)
        self.backward = make(width, units)
        self.dtype = policy.compute

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H2"]:
        return bigrus([self], [x], mask)[0]

    def gates(self, x: Float[Array, "B T D"]) -> Float[Array, "T 2 B G"]:
        """Projected input of both directions, the second one reversed in time."""
        x = x.astype(self.dtype).swapaxes(0, 1)
        return jnp.stack([self.forward.project(x), self.backward.project(x)[::-1]], axis=1)

    def recurrence(self) -> tuple[Float[Array, "2 H G"], Float[Array, "2 G"]]:
        """Recurrent kernels and biases of both directions."""
        both = (self.forward, self.backward)
        kernels = jnp.stack([weights.recurrent_kernel[...] for weights in both])
        biases = jnp.stack([weights.recurrent_bias[...] for weights in both])
        return kernels.astype(self.dtype), biases.astype(jnp.float32)


def bigrus(
    layers: Sequence[BiGRU],
    inputs: Sequence[Float[Array, "B T D"]],
    mask: Bool[Array, "B T"] | None = None,
) -> list[Float[Array, "B T H2"]]:
    """Several layers of one size, each on its own input, in a single scan."""
    gates = jnp.concatenate([layer.gates(x) for layer, x in zip(layers, inputs, strict=True)], 1)
    kernels, biases = zip(*(layer.recurrence() for layer in layers), strict=True)
    keep = None
    if mask is not None:
        frames_first = mask.T[..., None]
        keep = jnp.stack([frames_first, frames_first[::-1]] * len(layers), axis=1)
    h = gru(gates, jnp.concatenate(kernels), jnp.concatenate(biases), keep)  # (T, 2 layers, B, H)
    outputs = []
    for forward in range(0, 2 * len(layers), 2):
        y = jnp.concatenate([h[:, forward], h[::-1, forward + 1]], axis=-1).swapaxes(0, 1)
        outputs.append(y if mask is None else jnp.where(mask[..., None], y, 0))
    return outputs
