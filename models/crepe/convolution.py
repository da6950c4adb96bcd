"""Exact and cheap forms of CREPE's two kinds of convolution.

Long kernels over short signals. A 64-tap convolution of n positions is, between discrete Fourier
transforms, a product at each frequency; with transforms this short the cheapest way to write them
is as small matrices, and a complex product as three real ones. So a layer is three matrix products
(`kernel_products`, `convolve`): positions to products, channels to channels, products to positions.
Signals are (positions, rows, channels), a row a frame, which all three take as it lies in memory.
For the widest layer these are 66 million multiplications in place of 1074 million.

Long kernels over frames that overlap. The first layer is linear and its frames are cut from one
signal, so what a hop's worth of samples contributes is computed once (`hop_kernel`) and added up
in each frame that holds it (`first_layer`); normalising a frame commutes with it.

All of these equal the direct convolution to rounding; `benchmarks/crepe.py` times them.

In bfloat16, for training on a CPU with matrix units, the transforms are too coarse, and the direct
sum is best: `convolve_halves` and `first_layer_halves` write it as products with a Toeplitz matrix
that gives several neighbouring positions at once, so that each sample is laid out a few times
rather than once for each tap.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from musicjax.nn.products import half_product

# SAME padding of 64 taps, of which 31 lie before a position and 32 after it.
TAPS, BEFORE = 64, 31

# The first layer: 512 taps at a stride of 4 over 1024 samples, 254 zeros on either side.
FIRST_TAPS, STRIDE, FIRST_BEFORE, FRAME = 512, 4, 254, 1024
POSITIONS = FRAME // STRIDE


# Layers of 64 taps ----------------------------------------------------------------------------


def reach(length: int) -> tuple[int, int]:
    """Taps before and after a position that can meet data in a signal of `length` positions."""
    return min(BEFORE, length - 1), min(TAPS - 1 - BEFORE, length - 1)


@functools.cache
def transforms(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The three matrices of a layer of `length` positions: (inputs, taps, outputs), float32.

    inputs (products, length), taps (products, taps in reach), outputs (length, products): for any
    signal x and kernel w, outputs @ ((inputs @ x) * (taps @ w)) is their SAME convolution. The
    circular length leaves just enough room that nothing wraps around onto a kept position.
    """
    before, after = reach(length)
    circle = length + max(before, after)
    circle += circle % 2
    time, lag = np.arange(length), np.arange(-before, after + 1)
    inputs, taps, outputs = [], [], []
    for frequency in range(circle // 2 + 1):
        turn = 2 * math.pi * frequency / circle
        # x in the phase of exp(-i), w (correlated, hence conjugate) and the way back of exp(+i).
        x_real, x_imag = np.cos(turn * time), -np.sin(turn * time)
        w_real, w_imag = np.cos(turn * lag), np.sin(turn * lag)
        y_real, y_imag = np.cos(turn * time), -np.sin(turn * time)
        if frequency in (0, circle // 2):  # real: one product
            inputs.append(x_real)
            taps.append(w_real)
            outputs.append(y_real / circle)
            continue
        # (a + ib)(c + id): k1 = c(a + b), k2 = a(d - c), k3 = b(c + d); k1 - k3, k1 + k2.
        inputs += [x_real + x_imag, x_real, x_imag]
        taps += [w_real, w_imag - w_real, w_real + w_imag]
        twice = 2 / circle  # this frequency and its mirror image
        outputs += [twice * (y_real + y_imag), twice * y_imag, -twice * y_real]
    matrices = np.stack(inputs), np.stack(taps), np.stack(outputs, axis=1)
    return tuple(np.ascontiguousarray(m, np.float32) for m in matrices)  # type: ignore[return-value]


def kernel_products(
    kernel: Float[Array, "taps C C_out"], length: int
) -> Float[Array, "products C C_out"]:
    """A kernel as `convolve` wants it, for signals of `length` positions. Computed in float32."""
    before, after = reach(length)
    used = kernel[BEFORE - before : BEFORE + after + 1].astype(jnp.float32)
    taps = transforms(length)[1]
    product = jnp.matmul(taps, used.reshape(used.shape[0], -1), precision="highest")
    return product.reshape(-1, *kernel.shape[1:])


def convolve(
    x: Float[Array, "positions R C"], products: Float[Array, "products C C_out"]
) -> Float[Array, "positions R C_out"]:
    """SAME convolution of 64 taps as three matrix products; `products` from `kernel_products`.

    Computed in float32: the transforms do not fit into eight bits.
    """
    positions, rows, channels = x.shape
    inputs, _, outputs = transforms(positions)
    seen = jnp.matmul(inputs, x.astype(jnp.float32).reshape(positions, -1))
    mixed = jnp.matmul(seen.reshape(-1, rows, channels), products)
    y = jnp.matmul(outputs, mixed.reshape(mixed.shape[0], -1))
    return y.reshape(positions, rows, -1).astype(x.dtype)


def convolve_directly(
    x: Float[Array, "positions R C"], kernel: Float[Array, "taps C C_out"], stride: int = 1
) -> Float[Array, "outputs R C_out"]:
    """The same as the backend's own convolution: the best there is on a GPU."""
    width = kernel.shape[0]
    total = max(0, (-(-x.shape[0] // stride) - 1) * stride + width - x.shape[0])
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        window_strides=(stride,),
        padding=[(total // 2, total - total // 2)],
        dimension_numbers=("HNC", "HIO", "HNC"),
    )


# The first layer ------------------------------------------------------------------------------


def shares_hops(hop: int) -> bool:
    """Whether frames at this hop lie on one grid of the stride and overlap enough to share work."""
    return hop % STRIDE == 0 and hop <= FRAME // 4


def _offsets(hop: int) -> tuple[int, int]:
    """First and last hop (counted from a position's own) whose samples its taps meet.

    A position p of a frame belongs to hop p * STRIDE // hop; its taps reach from 254 samples
    before to 257 after it.
    """
    return -(-FIRST_BEFORE // hop), (hop - STRIDE + FIRST_TAPS - FIRST_BEFORE - 1) // hop


def hop_kernel(kernel: Float[Array, "taps C"], hop: int) -> Float[Array, "hop offsets C"]:
    """What each sample of a hop contributes to each position near it, as one matrix.

    Axis `offsets` runs over hops from the earliest position that the sample meets to the latest,
    times the hop // STRIDE positions of each.
    """
    before, after = _offsets(hop)
    # Position o (in strides, relative to the hop's start) meets sample s with tap s - 4 o + 254.
    first, last = -after * (hop // STRIDE), (before + 1) * (hop // STRIDE)
    tap = np.arange(hop)[:, None] - STRIDE * np.arange(first, last)[None] + FIRST_BEFORE
    inside = (tap >= 0) & (tap < FIRST_TAPS)
    found = kernel[np.clip(tap, 0, FIRST_TAPS - 1)]
    return jnp.where(inside[..., None], found, 0)


def first_layer(
    signal: Float[Array, "B N"], kernel: Float[Array, "taps C"], hop: int, count: int
) -> Float[Array, "positions B frames C"]:
    """The first layer on `count` frames of a signal, each frame as if zeros surrounded it.

    Frame t begins at sample t * hop; the signal holds them all. Every hop of the signal goes
    through one matrix product, and so does what of a hop lies inside a frame's end when 1024
    samples are no whole number of hops; frames then only add.
    """
    per_hop, whole = hop // STRIDE, FRAME // hop
    rest = FRAME - whole * hop
    before, after = _offsets(hop)
    matrix = hop_kernel(kernel, hop).astype(signal.dtype)
    groups, channels = before + after + 1, kernel.shape[1]
    hops = count + whole - 1 + (1 if rest else 0)
    short = hops * hop - signal.shape[1]
    signal = jnp.pad(signal, ((0, 0), (0, max(short, 0))))[:, : hops * hop]
    blocks = signal.reshape(signal.shape[0], hops, hop)
    shape = (signal.shape[0], hops, groups, per_hop, channels)
    full = jnp.einsum("bts,soc->btoc", blocks, matrix).reshape(shape)
    ends = None
    if rest:
        # Only positions up to the frame's last one can ask for the beginning of a hop.
        kept = math.ceil((POSITIONS - whole * per_hop) / per_hop) + after
        part = matrix[:rest, : kept * per_hop]
        ends = jnp.einsum("bts,soc->btoc", blocks[:, whole:, :rest], part)
        ends = ends.reshape(signal.shape[0], -1, kept, per_hop, channels)
    rows = []
    for row in range(-(-POSITIONS // per_hop)):  # positions of one hop of the frame at a time
        terms = [
            full[:, i : i + count, row - i + after]
            for i in range(max(0, row - before), min(whole, row + after + 1))
        ]
        if ends is not None and 0 <= row - whole + after < ends.shape[2]:
            terms.append(ends[:, :count, row - whole + after])
        rows.append(functools.reduce(jnp.add, terms))
    return jnp.concatenate([row.transpose(2, 0, 1, 3) for row in rows])[:POSITIONS]


def tap_sums(kernel: Float[Array, "taps C"]) -> Float[Array, "positions C"]:
    """Sum of the taps that lie inside the frame at each position: the response to ones."""
    total = jnp.cumsum(jnp.pad(kernel.astype(jnp.float32), ((1, 0), (0, 0))), axis=0)
    start = STRIDE * np.arange(POSITIONS) - FIRST_BEFORE
    first = np.clip(-start, 0, FIRST_TAPS)
    last = np.clip(FRAME - start, 0, FIRST_TAPS)
    return total[last] - total[first]


def first_layer_of_frames(
    frames: Float[Array, "R samples"], kernel: Float[Array, "taps C"]
) -> Float[Array, "positions R C"]:
    """The first layer on frames that share nothing, as one matrix product over all windows."""
    padded = jnp.pad(frames, ((0, 0), (FIRST_BEFORE, FIRST_TAPS - STRIDE - FIRST_BEFORE)))
    index = STRIDE * np.arange(POSITIONS)[:, None] + np.arange(FIRST_TAPS)
    windows = padded.T[index]  # (positions, taps, R)
    return jnp.einsum("pkr,kc->prc", windows, kernel.astype(frames.dtype))


# Half precision ---------------------------------------------------------------------------------

TOGETHER, FIRST_TOGETHER = 16, 8  # positions that one product puts out; shorter layers all of them
_WHOLE = 32  # layers no longer than this are one product


def toeplitz(
    kernel: Float[Array, "taps C C_out"], starts: Sequence[int], window: int
) -> Float[Array, "inputs outputs"]:
    """The kernel as a matrix from `window` positions (times C) to one output for each of `starts`.

    starts: the position of the window that each output's first tap meets; taps outside are cut off.
    """
    taps, channels, wide = kernel.shape
    columns = []
    for start in starts:
        kept = kernel[max(0, -start) : min(taps, window - start)]
        before = max(0, start)
        rest = window - before - kept.shape[0]
        columns.append(jnp.pad(kept, ((before, rest), (0, 0), (0, 0))))
    return jnp.stack(columns, axis=2).reshape(window * channels, len(starts) * wide)


def _windows(x: Array, together: int, before: int, stride: int = 1, taps: int = TAPS) -> Array:
    """(rows * blocks, window * C) bfloat16 of (positions, rows, C): what each block's taps meet."""
    positions, channels = x.shape[0], x.shape[2]
    outputs = positions // stride
    window = stride * (together - 1) + taps
    after = stride * (outputs - 1) + taps - before - positions
    x = jnp.pad(x.astype(jnp.bfloat16), ((before, after), (0, 0), (0, 0)))
    x = x.transpose(1, 0, 2)
    step = stride * together
    found = [x[:, i * step : i * step + window] for i in range(outputs // together)]
    return jnp.stack(found, axis=1).reshape(-1, window * channels)


def _unblocked(y: Array, rows: int, together: int) -> Array:
    """(positions, rows, C) of (rows * blocks, together * C)."""
    y = y.reshape(rows, -1, y.shape[-1] // together)
    return y.transpose(1, 0, 2)


def _blocked(x: Array, together: int) -> Array:
    """(rows * blocks, together * C) bfloat16 of (positions, rows, C)."""
    x = x.astype(jnp.bfloat16).transpose(1, 0, 2)
    return x.reshape(-1, together * x.shape[-1])


def first_layer_halves(
    frames: Float[Array, "R samples"], kernel: Float[Array, "taps C"]
) -> Float[Array, "positions R C"]:
    """`first_layer_of_frames` with operands in bfloat16 and float32 sums."""
    windows = _windows(frames.T[:, :, None], FIRST_TOGETHER, FIRST_BEFORE, STRIDE, FIRST_TAPS)
    starts = [STRIDE * i for i in range(FIRST_TOGETHER)]
    matrix = toeplitz(kernel[:, None], starts, STRIDE * (FIRST_TOGETHER - 1) + FIRST_TAPS)
    return _unblocked(half_product(windows, matrix), frames.shape[0], FIRST_TOGETHER)


def convolve_halves(
    x: Float[Array, "positions R C"], kernel: Float[Array, "taps C C_out"]
) -> Float[Array, "positions R C_out"]:
    """SAME convolution of 64 taps with operands in bfloat16 and float32 sums, both ways."""
    positions, rows, _ = x.shape
    if positions > _WHOLE:
        return _convolve_long(x, kernel)
    matrix = toeplitz(kernel, [i - BEFORE for i in range(positions)], positions)
    return _unblocked(half_product(_blocked(x, positions), matrix), rows, positions)


def _long_matrix(kernel: Array) -> Array:
    return toeplitz(kernel, range(TOGETHER), TOGETHER - 1 + TAPS)


def _turned(kernel: Array) -> Array:
    """The kernel of the way back: taps reversed, channels exchanged."""
    return kernel[::-1].transpose(0, 2, 1)


def _product(x: Array, y: Array, contracted: tuple[int, int]) -> Array:
    left, right = contracted
    dimensions = (((left,), (right,)), ((), ()))
    return jax.lax.dot_general(x, y, dimensions, preferred_element_type=jnp.float32)


@jax.custom_vjp
def _convolve_long(x: Array, kernel: Array) -> Array:
    """`convolve_halves` in blocks of positions.

    The way back is written here: as it would be derived, the gradient of the laid-out windows is
    several times as large as that of what they were cut from.
    """
    matrix = _long_matrix(kernel.astype(jnp.bfloat16))
    y = _product(_windows(x, TOGETHER, BEFORE), matrix, (1, 0))
    return _unblocked(y, x.shape[1], TOGETHER)


def _convolve_long_fwd(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _convolve_long(x, kernel), (x, kernel)


def _convolve_long_bwd(residuals: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = residuals
    windows = _windows(dy, TOGETHER, TAPS - 1 - BEFORE)
    matrix, back = jax.vjp(lambda k: _long_matrix(_turned(k)), kernel)
    dx = _product(windows, matrix.astype(jnp.bfloat16), (1, 0))
    (dkernel,) = back(_product(windows, _blocked(x, TOGETHER), (0, 0)).astype(kernel.dtype))
    return _unblocked(dx, x.shape[1], TOGETHER).astype(x.dtype), dkernel


_convolve_long.defvjp(_convolve_long_fwd, _convolve_long_bwd)
