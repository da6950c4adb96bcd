"""Convolution over spectrograms: 3x3 kernels, frequency pooling, dropout from an explicit key.

Activations are `(B, T, F, C)`: channels last, so that the matrix products inside are over
contiguous memory on every backend.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from musicjax.types import Key, Policy

_LECUN = nnx.initializers.lecun_normal()
_WIDE = 32  # input channels from which the matrix product beats XLA's weight gradient on CPU
_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, window_strides=(1, 1), padding="SAME", dimension_numbers=_DIMENSIONS
    )


@jax.custom_vjp
def _convolve_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(x, kernel)


def _convolve_cpu_fwd(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _convolve(x, kernel), (x, kernel)


def _convolve_cpu_bwd(residuals: tuple, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients as a forward convolution and one matrix product.

    XLA's own weight gradient is slow on CPU. Here the input is repeated for the shifts in
    frequency, the output gradient for the shifts in time, and one product over all positions
    gives every kernel entry.
    """
    x, kernel = residuals
    # What makes x and dy would otherwise be fused into the copies below and computed thrice.
    x, dy = jax.lax.optimization_barrier((x, dy))
    rows, columns, c_in, c_out = kernel.shape
    dx = _convolve(dy, kernel[::-1, ::-1].swapaxes(2, 3))
    before_t, before_f = (rows - 1) // 2, (columns - 1) // 2
    frames, bins = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (0, 0), (before_f, columns - 1 - before_f), (0, 0)))
    shifted_x = jnp.concatenate([padded[:, :, j : j + bins] for j in range(columns)], axis=-1)
    # y[t] reads x[t + i - before_t], so x[t] met dy[t - i + before_t].
    padded = jnp.pad(dy, ((0, 0), (rows - 1 - before_t, before_t), (0, 0), (0, 0)))
    shifted_dy = jnp.concatenate(
        [padded[:, rows - 1 - i : rows - 1 - i + frames] for i in range(rows)], axis=-1
    )
    product = jax.lax.dot_general(
        shifted_x.reshape(-1, columns * c_in),
        shifted_dy.reshape(-1, rows * c_out),
        (((0,), (0,)), ((), ())),
        preferred_element_type=jnp.float32,
    )
    dw = product.reshape(columns, c_in, rows, c_out).transpose(2, 0, 1, 3)
    return dx, dw.astype(kernel.dtype)


_convolve_cpu.defvjp(_convolve_cpu_fwd, _convolve_cpu_bwd)


def convolve(
    x: Float[Array, "B T F C"], kernel: Float[Array, "rows columns C C_out"]
) -> Float[Array, "B T F C_out"]:
    """Correlate `x` with a `kernel` of odd size, stride 1, zero padded to the same size."""
    if kernel.shape[0] % 2 == 0 or kernel.shape[1] % 2 == 0:
        raise ValueError(f"kernel must have odd height and width; got {kernel.shape[:2]}.")
    if jax.default_backend() == "cpu" and kernel.shape[2] >= _WIDE:
        return _convolve_cpu(x, kernel)
    return _convolve(x, kernel)


class Conv2D(nnx.Module):
    """Convolution over time and frequency, stride 1, zero padded to the same size.

    kernel (rows, columns, C_in, C_out), bias (C_out,) or None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int] = (3, 3),
        *,
        bias: bool = True,
        initializer: nnx.Initializer = _LECUN,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        shape = (*kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(initializer(rngs.params(), shape, policy.param))
        self.bias = nnx.Param(jnp.zeros((out_channels,), policy.param)) if bias else None
        self.dtype = policy.compute

    def __call__(
        self, x: Float[Array, "B T F C"], *, add_bias: bool = True
    ) -> Float[Array, "B T F C_out"]:
        y = convolve(x.astype(self.dtype), self.kernel[...].astype(self.dtype))
        if self.bias is None or not add_bias:
            return y
        return y + self.bias[...].astype(self.dtype)

    def next_frame(self, x: Float[Array, "B rows F C"]) -> Float[Array, "B 1 F C_out"]:
        """The one frame that as many frames as the kernel has rows give; without the bias."""
        rows, columns, *channels = self.kernel.shape
        beside = columns // 2
        padded = jnp.pad(x, ((0, 0), (0, 0), (beside, beside), (0, 0)))
        bins = x.shape[2]
        # One product, of all that a bin hears: a convolution of one frame takes twice as long.
        heard = [padded[:, i, j : j + bins] for i in range(rows) for j in range(columns)]
        kernel = self.kernel[...].astype(self.dtype).reshape(-1, channels[-1])
        y = jnp.concatenate(heard, axis=-1).astype(self.dtype) @ kernel
        return y[:, None]


def max_pool_frequency(x: Float[Array, "B T F C"], size: int) -> Float[Array, "B T F_out C"]:
    """Largest of every `size` neighbouring bins; bins left over at the top are dropped."""
    # Strided slices: the gradient of lax.reduce_window is a scatter, which is slow on CPU.
    last = x.shape[2] // size * size
    parts = [x[:, :, start:last:size] for start in range(size)]
    largest = parts[0]
    for part in parts[1:]:
        largest = jnp.maximum(largest, part)
    return largest


def mask_frames(
    x: Float[Array, "B T *rest"], mask: Bool[Array, "B T"] | None
) -> Float[Array, "B T *rest"]:
    """Zero the frames that are padding, so that a convolution sees there what it sees outside."""
    if mask is None:
        return x
    return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0)


def dropout(x: Float[Array, "*shape"], rate: float, key: Key | None) -> Float[Array, "*shape"]:
    """Zero a fraction `rate` of the entries and scale up the rest; with no key, return `x`.

    Eight random bits decide each entry (`rate` is rounded to 1/256, exact for 1/4 and 1/2): a
    quarter of the random numbers of `jax.random.bernoulli`, which on CPU cost as much as a layer.
    """
    drop = round(rate * 256)
    if key is None or drop == 0:
        return x
    words = jax.random.bits(key, (-(-x.size // 4),), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(-1)[: x.size]
    keep = octets.reshape(x.shape) >= drop
    return jnp.where(keep, x * jnp.asarray(256 / (256 - drop), x.dtype), 0)
