"""Recurrent layers by `lax.scan`: LSTM in one direction or both.

The input is projected for all frames in one matrix product before the scan; the scan holds only
the recurrent product. Its gradient is written by hand: the backward scan returns the gradient at
the gates, and the weight gradient is one product over all frames after it, where differentiating
the scan would add a whole weight matrix to the carry at every frame.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from musicjax.nn.products import dense_product
from musicjax.types import Policy


def _activate(z: jax.Array) -> jax.Array:
    """Gates i, f, g, o (PyTorch's order), side by side as their pre-activations are.

    sigmoid(x) = (1 + tanh(x / 2)) / 2, so that one tanh over the whole row gives all four.
    """
    slope = jnp.repeat(jnp.asarray([0.5, 0.5, 1.0, 0.5], z.dtype), z.shape[-1] // 4)
    return jnp.tanh(z * slope) * slope + (1 - slope)


def _recur(h: jax.Array, kernel: jax.Array) -> jax.Array:
    """(..., K, B, H) by (K, H, 4H), accumulated in float32."""
    return jnp.einsum(
        "...kbh,khg->...kbg", h.astype(kernel.dtype), kernel, preferred_element_type=jnp.float32
    )


def _run(gates: jax.Array, kernel: jax.Array, keep: jax.Array | None, save: bool) -> tuple:
    """Scan over frames. Returns outputs, and with `save` also the cells, both (T, K, B, H)."""
    _, k, b, four_h = gates.shape
    zeros = jnp.zeros((k, b, four_h // 4), jnp.float32)

    def step(carry: tuple, xs: tuple) -> tuple:
        h, c = carry
        x, kept = xs
        i, f, g, o = jnp.split(_activate(x.astype(jnp.float32) + _recur(h, kernel)), 4, axis=-1)
        new_c = f * c + i * g
        new_h = o * jnp.tanh(new_c)
        if kept is not None:
            new_c = jnp.where(kept, new_c, c)
            new_h = jnp.where(kept, new_h, h)
        return (new_h, new_c), (new_h.astype(gates.dtype), new_c if save else None)

    outputs_and_cells: tuple = jax.lax.scan(step, (zeros, zeros), (gates, keep))[1]
    return outputs_and_cells


@jax.custom_vjp
def lstm(
    gates: Float[Array, "T K B G"],
    kernel: Float[Array, "K H G"],
    keep: Bool[Array, "T K B 1"] | None,
) -> Float[Array, "T K B H"]:
    """K independent LSTMs over projected inputs, from zero state.

    `gates` holds the input's share of the pre-activations, bias included, in the order i, f, g, o
    (G = 4H). Where `keep` is False the state passes through unchanged. The state is float32.
    """
    return _run(gates, kernel, keep, save=False)[0]


def _lstm_fwd(gates: jax.Array, kernel: jax.Array, keep: jax.Array | None) -> tuple:
    outputs, cells = _run(gates, kernel, keep, save=True)
    return outputs, (gates, outputs, cells, kernel, keep)


def _lstm_bwd(residuals: tuple, d_outputs: jax.Array) -> tuple:
    gates, outputs, cells, kernel, keep = residuals

    def earlier(x: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.zeros_like(x[:1]), x[:-1]])

    # All that does not depend on later frames is computed for every frame at once.
    before = earlier(outputs)
    z = gates.astype(jnp.float32) + _recur(before, kernel)
    i, f, g, o = jnp.split(_activate(z), 4, axis=-1)
    tanh_c = jnp.tanh(cells)
    to_cell = o * (1 - tanh_c**2)
    to_gates = jnp.concatenate(
        [g * i * (1 - i), earlier(cells) * f * (1 - f), i * (1 - g**2), tanh_c * o * (1 - o)],
        axis=-1,
    )
    kernel_t = kernel.swapaxes(1, 2)

    def step(carry: tuple, xs: tuple) -> tuple:
        dh, dc = carry
        d_out, cell_slope, gate_slope, forget, kept = xs
        dh = dh + d_out.astype(jnp.float32)
        new_dc = dc + dh * cell_slope
        dz = gate_slope * jnp.concatenate([new_dc, new_dc, new_dc, dh], axis=-1)
        new_dc = new_dc * forget
        if kept is not None:
            dz = jnp.where(kept, dz, 0)
            new_dc = jnp.where(kept, new_dc, dc)
        new_dh = _recur(dz, kernel_t)
        if kept is not None:
            new_dh = jnp.where(kept, new_dh, dh)
        return (new_dh, new_dc), dz.astype(d_outputs.dtype)

    zeros = jnp.zeros(cells.shape[1:], jnp.float32)
    xs = (d_outputs, to_cell, to_gates, f, keep)
    dz: jax.Array = jax.lax.scan(step, (zeros, zeros), xs, reverse=True)[1]
    d_kernel = jnp.einsum("tkbh,tkbg->khg", before, dz, preferred_element_type=jnp.float32)
    return dz, d_kernel.astype(kernel.dtype), None


lstm.defvjp(_lstm_fwd, _lstm_bwd)


class LSTMWeights(nnx.Module):
    """Weights of one direction: input_kernel (D, 4H), recurrent_kernel (H, 4H), bias (4H,).

    PyTorch and cuDNN keep a second bias that is always added to the first; `two_biases` keeps it
    too (`recurrent_bias`), so that such checkpoints correspond one to one.
    """

    def __init__(self, width: int, units: int, *, two_biases: bool, policy: Policy, rngs: nnx.Rngs):
        def draw(*shape: int) -> nnx.Param:  # PyTorch's rule: uniform within 1 / sqrt(units)
            bound = units**-0.5
            value = jax.random.uniform(rngs.params(), shape, policy.param, -bound, bound)
            return nnx.Param(value)

        self.input_kernel = draw(width, 4 * units)
        self.recurrent_kernel = draw(units, 4 * units)
        self.bias = draw(4 * units)
        self.recurrent_bias = draw(4 * units) if two_biases else None

    def offset(self) -> Float[Array, "G"]:
        """The bias, or the sum of the two."""
        bias = self.bias[...]
        return bias if self.recurrent_bias is None else bias + self.recurrent_bias[...]

    def project(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch G"]:
        """The input's share of the gates, biases included."""
        return x @ self.input_kernel[...].astype(x.dtype) + self.offset().astype(x.dtype)


class LSTM(nnx.Module):
    """Unidirectional LSTM, over a whole recording or frame by frame with the state passed in.

    Inputs: x (B, T, D), mask (B, T) True at frames that exist. Output: (B, T, H), float32.
    """

    def __init__(
        self,
        width: int,
        units: int,
        *,
        two_biases: bool = False,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        self.forward = LSTMWeights(width, units, two_biases=two_biases, policy=policy, rngs=rngs)
        self.dtype = policy.compute
        self.multiply = dense_product(policy)

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H"]:
        return self.run(self.project(x), mask)

    def product(self, x: Float[Array, "*batch D"], kernel: Float[Array, "D G"]) -> Array:
        """x times a kernel of this layer or rows of it, in the layer's type; float32."""
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        contracted = (((x.ndim - 1,), (0,)), ((), ()))
        return self.multiply(x, kernel, contracted).astype(jnp.float32)

    def project(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch G"]:
        """The input's share of the gates, biases included. float32."""
        return self.product(x, self.forward.input_kernel[...]) + self.forward.offset()

    def run(
        self, gates: Float[Array, "B T G"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H"]:
        """Outputs for projected inputs, from zero state; a masked frame passes the state on."""
        kernel = self.forward.recurrent_kernel[...].astype(self.dtype)
        keep = None if mask is None else mask.T[:, None, :, None]
        return lstm(gates.swapaxes(0, 1)[:, None], kernel[None], keep)[:, 0].swapaxes(0, 1)

    def step(
        self, gates: Float[Array, "B G"], h: Float[Array, "B H"], c: Float[Array, "B H"]
    ) -> tuple[Float[Array, "B H"], Float[Array, "B H"]]:
        """Output and cell after one frame more, from a projected input and those before."""
        x = gates + self.product(h, self.forward.recurrent_kernel[...])
        i, f, g, o = jnp.split(_activate(x), 4, axis=-1)
        c = f * c + i * g
        return o * jnp.tanh(c), c


class BiLSTM(nnx.Module):
    """Bidirectional LSTM; both directions run side by side in one scan.

    Inputs: x (B, T, D), mask (B, T) True at frames that exist. Output: (B, T, 2H), forward then
    backward; zero at masked frames, and elsewhere the same as if the masked frames were cut off.
    """

    def __init__(
        self,
        width: int,
        units: int,
        *,
        two_biases: bool = False,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        make = partial(LSTMWeights, two_biases=two_biases, policy=policy, rngs=rngs)
        self.forward = make(width, units)
        self.backward = make(width, units)
        self.dtype = policy.compute

    def __call__(
        self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T H2"]:
        return bilstms([self], [x], mask)[0]

    def gates(self, x: Float[Array, "B T D"]) -> Float[Array, "T 2 B G"]:
        """Projected input of both directions, the second one reversed in time."""
        x = x.astype(self.dtype).swapaxes(0, 1)
        return jnp.stack([self.forward.project(x), self.backward.project(x)[::-1]], axis=1)

    def kernels(self) -> Float[Array, "2 H G"]:
        """Recurrent kernels of both directions."""
        both = [self.forward.recurrent_kernel[...], self.backward.recurrent_kernel[...]]
        return jnp.stack(both).astype(self.dtype)


def bilstms(
    layers: Sequence[BiLSTM],
    inputs: Sequence[Float[Array, "B T D"]],
    mask: Bool[Array, "B T"] | None = None,
) -> list[Float[Array, "B T H2"]]:
    """Several layers of one size, each on its own input, in a single scan.

    A scan over small matrices takes as long as its number of steps, whether a step multiplies two
    of them or eight.
    """
    gates = jnp.concatenate([layer.gates(x) for layer, x in zip(layers, inputs, strict=True)], 1)
    kernel = jnp.concatenate([layer.kernels() for layer in layers])
    keep = None
    if mask is not None:
        frames_first = mask.T[..., None]
        keep = jnp.stack([frames_first, frames_first[::-1]] * len(layers), axis=1)
    h = lstm(gates, kernel, keep)  # (T, 2 * layers, B, H)
    outputs = []
    for forward in range(0, 2 * len(layers), 2):
        y = jnp.concatenate([h[:, forward], h[::-1, forward + 1]], axis=-1).swapaxes(0, 1)
        outputs.append(y if mask is None else jnp.where(mask[..., None], y, 0))
    return outputs
