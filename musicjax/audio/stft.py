"""Frames, windows, the short-time Fourier transform and its exact inverse.

All functions are pure, take any leading axes and hold no state, and are as fast backwards as
forwards: neither framing nor overlap-add ever scatters.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from musicjax.audio import fourier

AnyArray = Array | np.ndarray


@functools.lru_cache(maxsize=64)
def window(name: str, window_length: int, fft_length: int) -> Float[np.ndarray, "fft_length"]:
    """Periodic window "hann", "hamming" or "rectangular", centred in `fft_length` samples."""
    phase = 2 * np.pi * np.arange(window_length) / window_length
    if name == "hann":
        values = 0.5 - 0.5 * np.cos(phase)
    elif name == "hamming":
        values = 0.54 - 0.46 * np.cos(phase)
    else:
        values = np.ones(window_length)
    left = (fft_length - window_length) // 2
    padded = np.pad(values, (left, fft_length - window_length - left)).astype(np.float32)
    padded.flags.writeable = False  # shared by every caller through the cache
    return padded


def centre_window(values: Float[Array, "*K W"], fft_length: int) -> Float[Array, "*K fft_length"]:
    """Put a window in the middle of `fft_length` samples, zeros around it."""
    left = (fft_length - values.shape[-1]) // 2
    right = fft_length - values.shape[-1] - left
    return jnp.pad(values, [(0, 0)] * (values.ndim - 1) + [(left, right)])


def reflect(
    audio: Float[AnyArray, "*B N"], width: int, lengths: Int[AnyArray, "*B"] | None = None
) -> Float[Array, "*B padded"]:
    """Mirror `width` samples at both ends, not repeating the end sample.

    A clip too short for that is mirrored back and forth, as `numpy.pad` does; one sample alone is
    repeated. With `lengths`, each clip is mirrored at its own end and what follows is zero.
    """
    audio = jnp.asarray(audio)
    if lengths is None:
        edges = [(0, 0)] * (audio.ndim - 1) + [(width, width)]
        return jnp.pad(audio, edges, mode="reflect" if audio.shape[-1] > 1 else "edge")
    last = jnp.maximum(jnp.asarray(lengths)[..., None] - 1, 0)
    position = jnp.arange(-width, audio.shape[-1] + width)
    period = jnp.maximum(2 * last, 1)
    folded = position % period
    source = jnp.minimum(jnp.where(folded > last, period - folded, folded), last)
    values = jnp.take_along_axis(audio, source, axis=-1)
    return jnp.where(position <= last + width, values, 0.0)


def pad(audio: Float[AnyArray, "*B N"], left: int, right: int) -> Float[Array, "*B padded"]:
    """Zeros before and after."""
    audio = jnp.asarray(audio)
    return jnp.pad(audio, [(0, 0)] * (audio.ndim - 1) + [(left, right)])


def pad_end(audio: Float[AnyArray, "*B N"], length: int) -> Float[Array, "*B padded"]:
    """Zeros after the last sample up to `length` samples; nothing if there are that many."""
    return pad(audio, 0, max(length - audio.shape[-1], 0))


def shift(audio: Float[Array, "*B N"], width: Int[Array, "*B"]) -> Float[Array, "*B N"]:
    """Delay each clip by its own number of samples; zeros come in, the end falls off."""
    source = jnp.arange(audio.shape[-1]) - width[..., None]
    moved = jnp.take_along_axis(audio, jnp.maximum(source, 0), axis=-1)
    return jnp.where(source >= 0, moved, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def frame(
    audio: Float[Array, "*B N"], size: int, hop: int, count: int
) -> Float[Array, "*B T size"]:
    """Cut into `count` frames of `size` samples, `hop` apart; zeros past the end of the signal."""
    audio = pad_end(audio, max(count - 1, 0) * hop + size)
    starts = jnp.arange(count) * hop
    return jax.vmap(
        lambda start: jax.lax.dynamic_slice_in_dim(audio, start, size, -1), out_axes=-2
    )(starts)


@frame.defjvp
def _frame_jvp(size: int, hop: int, count: int, primals: tuple, tangents: tuple) -> tuple:
    # Forwards a gather of whole frames is fastest; backwards it would be a scatter, the slowest.
    framed = frame(primals[0], size, hop, count)
    return framed, _frame_by_columns(tangents[0], size, hop, count)


def _frame_by_columns(audio: Array, size: int, hop: int, count: int) -> Array:
    """`frame` from slices only, whose transpose is made of pads and sums.

    The signal is seen as rows of `hop` samples; frame t is row t beside row t + 1 and so on, so
    that each column block of the result is one shifted copy of the rows.
    """
    pieces = -(-size // hop)
    rows = count - 1 + pieces
    audio = pad_end(audio, rows * hop)
    blocks = audio[..., : rows * hop].reshape(*audio.shape[:-1], rows, hop)
    columns = [blocks[..., k : k + count, : min(hop, size - k * hop)] for k in range(pieces)]
    return jnp.concatenate(columns, axis=-1)


def overlap_add(frames: Float[Array, "*B T size"], hop: int) -> Float[Array, "*B N"]:
    """Add frames `hop` apart: the transpose of `frame`. N = (T - 1) * hop + size."""
    count, size = frames.shape[-2:]
    pieces = -(-size // hop)
    leading = [(0, 0)] * (frames.ndim - 2)
    shifted = []
    for k in range(pieces):
        column = frames[..., k * hop : (k + 1) * hop]
        rows = [*leading, (k, pieces - 1 - k), (0, hop - column.shape[-1])]
        shifted.append(jnp.pad(column, rows))
    flat = sum(shifted[1:], shifted[0]).reshape(*frames.shape[:-2], (count - 1 + pieces) * hop)
    return flat[..., : (count - 1) * hop + size]


def overlap_add_inverse(
    frames: Float[Array, "*B T size"], weights: Float[np.ndarray, "size"], hop: int
) -> Float[Array, "*B N"]:
    """Signal whose windowed frames are nearest to `frames`: sum(w x) / sum(w^2).

    Zero where no window reaches. Griffin and Lim 1984, equation 6.
    """
    # The barrier keeps XLA from computing the envelope, as long as the signal, while compiling.
    squared = jax.lax.optimization_barrier(jnp.asarray(weights) ** 2)
    envelope = overlap_add(jnp.broadcast_to(squared, frames.shape[-2:]), hop)
    covered = envelope > 1e-11
    return jnp.where(
        covered, overlap_add(frames * weights, hop) / jnp.where(covered, envelope, 1.0), 0.0
    )


def dft(
    frames: Float[Array, "*B T size"], weights: Float[AnyArray, "*K size"], method: str = "fft"
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Real and imaginary part of the windowed frames' DFT, (*B, T, size // 2 + 1) each.

    Method "matmul" writes the DFT as two matrix products with the cosine and sine tables: more
    arithmetic, but it runs where matrix units do, and it has no complex numbers for exporters to
    stumble over.
    """
    if method == "matmul":
        cosine, sine = _dft_tables(frames.shape[-1])
        windowed = frames * weights
        return (
            jnp.matmul(windowed, cosine, precision="highest"),
            jnp.matmul(windowed, sine, precision="highest"),
        )
    spectrum = fourier.rfft(frames * weights)
    return spectrum.real, spectrum.imag


@functools.lru_cache(maxsize=8)
def _dft_tables(size: int) -> tuple[np.ndarray, np.ndarray]:
    # The product n * k is reduced modulo the size first: the angle stays small and exact.
    turns = np.outer(np.arange(size), np.arange(size // 2 + 1)) % size / size
    return np.cos(2 * np.pi * turns).astype(np.float32), -np.sin(2 * np.pi * turns).astype(
        np.float32
    )


@jax.custom_jvp
def safe_sqrt(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """Square root of what is not negative, whose gradient at zero is zero instead of infinite."""
    return jnp.sqrt(x)


@safe_sqrt.defjvp
def _safe_sqrt_jvp(primals: tuple, tangents: tuple) -> tuple:
    # A rule of its own rather than two selects around the root: those cost a sixth of a log-mel.
    root = jnp.sqrt(primals[0])
    slope = jnp.where(root > 0, 0.5 / jnp.where(root > 0, root, 1.0), 0.0)
    return root, slope * tangents[0]


def power_of_square(squared: Float[Array, "*B"], power: float) -> Float[Array, "*B"]:
    """|X|^power from |X|^2, with gradient zero where X is zero."""
    if power == 2.0:
        return squared
    if power == 1.0:
        return safe_sqrt(squared)
    positive = squared > 0
    return jnp.where(positive, jnp.where(positive, squared, 1.0) ** (power / 2), 0.0)


def highest(x: Float[Array, "*B T F"], *, of_each_clip: bool) -> Float[Array, "*b 1 1"]:
    """The largest value of each clip, or of all, with axes of one in place of those it was in.

    Its gradient goes to the first value that is as large.
    """
    ahead = x.shape[:-2] if of_each_clip else ()
    axes = (1,) * (x.ndim - len(ahead))
    return _last_axis_max(x.reshape(*ahead, -1)).reshape(*ahead, *axes)


@jax.custom_jvp
def _last_axis_max(x: Float[Array, "*B N"]) -> Float[Array, "*B"]:
    return x.max(axis=-1)


@_last_axis_max.defjvp
def _last_axis_max_jvp(primals: tuple, tangents: tuple) -> tuple:
    # JAX's own rule looks for what equals the maximum, and what XLA computes again for the way back
    # may differ from it in the last bit: then nothing does, and the gradient is no number.
    at = jnp.argmax(primals[0], axis=-1, keepdims=True)
    slope = jnp.take_along_axis(tangents[0], at, axis=-1)[..., 0]
    return _last_axis_max(primals[0]), slope
