"""The parts of Transkun's network: position embeddings, convolutions, attention over two axes."""

import math
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Shaped

from musicjax.models.transkun.config import TranskunConfig
from musicjax.types import Policy

_FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # PyTorch's default
_XAVIER = nnx.initializers.xavier_uniform()
_GROUPS = 4
_GROUP_EPSILON = 1e-5
_RMS_EPSILON = 1e-6


def dense(
    width: int, units: int, policy: Policy, *, bias: bool = True, rngs: nnx.Rngs
) -> nnx.Linear:
    """A dense layer in the policy's dtypes."""
    return nnx.Linear(
        width,
        units,
        use_bias=bias,
        kernel_init=_FAN_IN,
        dtype=policy.compute,
        param_dtype=policy.param,
        rngs=rngs,
    )


class Positions(nnx.Module):
    """An embedding of a place on a grid: cosines at learned frequencies, then two dense layers.

    Always float32: the phase of a cosine has no digits to spare.
    """

    def __init__(self, axes: int, width: int, spread: float, *, rngs: nnx.Rngs) -> None:
        policy = Policy()
        self.frequency = nnx.Param(
            nnx.initializers.normal(1 / spread)(rngs.params(), (axes, width), jnp.float32)
        )
        self.phase = nnx.Param(
            jax.random.uniform(rngs.params(), (width,), jnp.float32, -math.pi, math.pi)
        )
        self.hidden = dense(width, 4 * width, policy, rngs=rngs)
        self.out = dense(4 * width, width, policy, rngs=rngs)

    def __call__(self, *coordinates: Shaped[Array, "_"]) -> Float[Array, "*grid D"]:
        """Embeddings on the grid that the coordinates of each axis span."""
        phase = self.phase[...]
        grid = jnp.meshgrid(*coordinates, indexing="ij")
        for axis, values in enumerate(grid):
            phase = phase + values[..., None].astype(jnp.float32) * self.frequency[axis]
        waves = jnp.cos(phase) * math.sqrt(2 / phase.shape[-1])
        return self.out(jax.nn.gelu(self.hidden(waves), approximate=False))


class Conv(nnx.Module):
    """3x3 convolution with strides over time and frequency, padded with one zero at each side."""

    def __init__(
        self,
        channels: int,
        out: int,
        strides: tuple[int, int] = (1, 1),
        *,
        policy: Policy,
        rngs: nnx.Rngs,
    ) -> None:
        self.kernel = nnx.Param(_FAN_IN(rngs.params(), (3, 3, channels, out), policy.param))
        self.bias = nnx.Param(jnp.zeros((out,), policy.param))
        self.strides, self.dtype = strides, policy.compute

    def __call__(self, x: Float[Array, "B T F C"]) -> Float[Array, "B T2 F2 C_out"]:
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            window_strides=self.strides,
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias[...].astype(self.dtype)


class GroupNorm(nnx.Module):
    """Zero mean and unit variance over time, frequency and a quarter of the channels. float32."""

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones((channels,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((channels,), jnp.float32))

    def __call__(
        self, x: Float[Array, "B T F C"], mask: Bool[Array, "B T"] | None
    ) -> Float[Array, "B T F C"]:
        """Frames outside the mask do not count; they come out as anything."""
        batch, frames, bins, channels = x.shape
        cells = x.astype(jnp.float32).reshape(batch, frames, bins, _GROUPS, channels // _GROUPS)
        seen = jnp.ones((1, frames), bool) if mask is None else mask
        seen = seen[:, :, None, None, None]
        number = seen.sum((1, 2, 3, 4), keepdims=True) * (bins * channels // _GROUPS)
        mean = jnp.where(seen, cells, 0).sum((1, 2, 4), keepdims=True) / number
        centred = cells - mean
        variance = jnp.where(seen, centred**2, 0).sum((1, 2, 4), keepdims=True) / number
        normed = (centred * jax.lax.rsqrt(variance + _GROUP_EPSILON)).reshape(x.shape)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class DownsamplingConvs(nnx.Module):
    """Five convolutions that make one token of 8 frames and 4 bins."""

    FRAMES = 8
    _PADDING = ((4, 3), (2, 1))  # zeros before and after, in frames and in bins

    def __init__(
        self, inputs: int, channels: int, spread: float, policy: Policy, *, rngs: nnx.Rngs
    ) -> None:
        c = channels
        self.positions = Positions(1, c, spread, rngs=rngs)
        self.conv_in = Conv(inputs, c, policy=policy, rngs=rngs)
        self.conv1 = Conv(c, 2 * c, (2, 1), policy=policy, rngs=rngs)
        self.norm1 = GroupNorm(2 * c)
        self.conv2 = Conv(2 * c, 4 * c, (2, 2), policy=policy, rngs=rngs)
        self.norm2 = GroupNorm(4 * c)
        self.conv3 = Conv(4 * c, 4 * c, (2, 2), policy=policy, rngs=rngs)
        self.norm3 = GroupNorm(4 * c)
        self.conv4 = Conv(4 * c, 4 * c, policy=policy, rngs=rngs)
        self.norm4 = GroupNorm(4 * c)

    def __call__(
        self, features: Float[Array, "B T F K"], mask: Bool[Array, "B T"] | None
    ) -> tuple[Float[Array, "B T2 F2 D"], Bool[Array, "B T2"] | None]:
        """Tokens (B, T2, F2, D), T2 = ceil(T / 8), and which of them hear a frame that exists.

        Frames behind the mask are made zero wherever a convolution would see them.
        """
        (before, after), bins = self._PADDING
        x = self.conv_in(_masked(features, mask))
        x = x + self.positions(jnp.arange(features.shape[2])).astype(x.dtype)
        x = jnp.pad(_masked(x, mask), ((0, 0), (before, after), bins, (0, 0)))
        lengths = None if mask is None else mask.sum(axis=1) + before + after
        blocks = (
            (self.conv1, self.norm1, 2),
            (self.conv2, self.norm2, 2),
            (self.conv3, self.norm3, 2),
            (self.conv4, self.norm4, 1),
        )
        for conv, norm, stride in blocks:
            x = conv(x)
            mask = None
            if lengths is not None:
                lengths = -(-lengths // stride)
                mask = jnp.arange(x.shape[1]) < lengths[:, None]
            x = norm(x, mask)
            if conv is not self.conv4:
                x = jax.nn.gelu(x, approximate=False)
            x = _masked(x, mask)
        return x, mask


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask[:, :, None, None], x, 0)


def rms_norm(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Divide by the root of the mean square, computed in float32."""
    wide = x.astype(jnp.float32)
    mean = (wide * wide).mean(axis=-1, keepdims=True)
    return (wide * jax.lax.rsqrt(mean + _RMS_EPSILON)).astype(x.dtype)


def gelu(x: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Exact GELU by the error function, which is a third cheaper than by its complement."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def product(x: Float[Array, "*B D"], kernel: nnx.Param, policy: Policy) -> Float[Array, "*B C"]:
    """x times a matrix, both in the policy's dtype, added up in float32."""
    return jnp.dot(
        x.astype(policy.compute),
        kernel[...].astype(policy.compute),
        preferred_element_type=jnp.float32,
    )


def affine(x: Float[Array, "*B D"], layer: nnx.Linear, policy: Policy) -> Float[Array, "*B C"]:
    """A dense layer whose product is added up in float32."""
    y = product(x, layer.kernel, policy)
    return y if layer.bias is None else y + layer.bias[...]


class Attention(nnx.Module):
    """Multi-head attention over the middle axis of (N, L, D): tokens x ask, `memory` answers."""

    def __init__(self, width: int, num_heads: int, policy: Policy, *, rngs: nnx.Rngs) -> None:
        self.query, self.key, self.value, self.kernel = (
            nnx.Param(_XAVIER(rngs.params(), (width, width), policy.param)) for _ in range(4)
        )
        self.bias = nnx.Param(jnp.zeros((width,), policy.param))
        self.num_heads, self.policy = num_heads, policy

    def __call__(
        self,
        x: Float[Array, "N Q D"],
        memory: Float[Array, "N L D"],
        mask: Bool[Array, "N L"] | None = None,
    ) -> Float[Array, "N Q D"]:
        """float32; only what the mask has True is heard."""
        heads = (self.num_heads, x.shape[-1] // self.num_heads)
        query, key, value = (
            product(y, kernel, self.policy).reshape(*y.shape[:-1], *heads)
            for y, kernel in ((x, self.query), (memory, self.key), (memory, self.value))
        )
        logits = self._einsum("nqhk,nchk->nhqc", query / math.sqrt(heads[1]), key)
        if mask is not None:
            logits = jnp.where(mask[:, None, None, :], logits, -1e30)
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        heard = self._einsum("nhqc,nchk->nqhk", weights, value)
        # Divided after the product with values, which is shorter than the weights.
        heard = heard / weights.sum(axis=-1).swapaxes(1, 2)[..., None]
        return product(heard.reshape(x.shape), self.kernel, self.policy) + self.bias[...]

    def _einsum(self, axes: str, a: Array, b: Array) -> Array:
        a, b = a.astype(self.policy.compute), b.astype(self.policy.compute)
        return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)


class Mlp(nnx.Module):
    """Dense, GELU, dense."""

    def __init__(self, width: int, factor: int, policy: Policy, *, rngs: nnx.Rngs) -> None:
        self.hidden = dense(width, factor * width, policy, rngs=rngs)
        self.out = dense(factor * width, width, policy, rngs=rngs)
        self.policy = policy

    def __call__(self, x: Float[Array, "*B D"], rounded: bool = False) -> Float[Array, "*B D"]:
        """`rounded`: products of bfloat16, added up in float32, whatever the policy."""
        policy = replace(self.policy, dtype="bfloat16") if rounded else self.policy
        return affine(gelu(affine(x, self.hidden, policy)), self.out, policy)


class TimeFrequencyLayer(nnx.Module):
    """Attention over frequency and symbols, then over time, each followed by an MLP.

    Each of the four reads the normalised stream and adds to it, times a learned scale a channel
    that begins at 0.01. What attention hears, in both places, is the layer's input as it came in,
    not normalised. The stream is float32.
    """

    def __init__(self, config: TranskunConfig, *, rngs: nnx.Rngs) -> None:
        width, num_heads, policy = config.width, config.num_heads, config.policy
        mlp_factor = config.mlp_factor
        self.rounded_on_cpu = config.mlp_rounded_on_cpu
        self.attend_frequency = Attention(width, num_heads, policy, rngs=rngs)
        self.mlp_frequency = Mlp(width, mlp_factor, policy, rngs=rngs)
        self.attend_time = Attention(width, num_heads, policy, rngs=rngs)
        self.mlp_time = Mlp(width, mlp_factor, policy, rngs=rngs)
        self.attend_frequency_scale, self.mlp_frequency_scale = _small(width), _small(width)
        self.attend_time_scale, self.mlp_time_scale = _small(width), _small(width)

    def __call__(
        self,
        x: Float[Array, "B T F D"],
        mask: Bool[Array, "B T"] | None,
        *,
        first: int = 0,
        train: bool = False,
    ) -> Float[Array, "B T F2 D"]:
        """mask: times that exist. Only the tokens from `first` on of each time are computed.

        Without `train` a CPU takes a few slices at a time.
        """

        def over_frequency(x: Array, memory: Array, rounded: bool = False) -> Array:
            asked, told = (y.reshape(-1, *y.shape[2:]) for y in (rms_norm(x), memory))
            heard = self.attend_frequency(asked, told).reshape(x.shape)
            x = x + heard * self.attend_frequency_scale[...]
            return x + self.mlp_frequency(rms_norm(x), rounded) * self.mlp_frequency_scale[...]

        def over_time(x: Array, memory: Array, rounded: bool = False) -> Array:
            asked, told = (y.swapaxes(1, 2) for y in (rms_norm(x), memory))
            rows = (-1, *asked.shape[2:])
            seen = None if mask is None else jnp.repeat(mask, x.shape[2], axis=0)
            heard = self.attend_time(asked.reshape(rows), told.reshape(rows), seen)
            heard = heard.reshape(asked.shape).swapaxes(1, 2)
            x = x + heard * self.attend_time_scale[...]
            return x + self.mlp_time(rms_norm(x), rounded) * self.mlp_time_scale[...]

        asking = x[:, :, first:]
        if train:
            return over_time(over_frequency(asking, x), asking)
        x = _in_slices(over_frequency, asking, x, axis=1, on_cpu=self.rounded_on_cpu)
        return _in_slices(over_time, x, asking, axis=2, on_cpu=self.rounded_on_cpu)


_SLICE = 3  # times or frequencies worked off together on a CPU, so that what they need stays near


def _in_slices(
    function: Callable[..., Array], x: Array, memory: Array, *, axis: int, on_cpu: bool
) -> Array:
    """`function(x, memory)`, which acts on each slice along an axis by itself, slice by slice.

    On a CPU arrays of the size of all hidden units cost more in memory traffic than in arithmetic.
    There the function is given `on_cpu` as well.
    """

    def by_slices(x: Array, memory: Array) -> Array:
        def step(index: Array, out: Array) -> Array:
            start = index * _SLICE  # the last slice is shifted back to fit: some are done twice
            parts = (jax.lax.dynamic_slice_in_dim(y, start, size, axis) for y in (x, memory))
            return jax.lax.dynamic_update_slice_in_dim(out, function(*parts, on_cpu), start, axis)

        size = min(_SLICE, x.shape[axis])
        return jax.lax.fori_loop(0, -(-x.shape[axis] // size), step, jnp.zeros_like(x))

    return jax.lax.platform_dependent(x, memory, cpu=by_slices, default=function)


def _small(width: int) -> nnx.Param:
    return nnx.Param(jnp.full((width,), 1e-2, jnp.float32))
