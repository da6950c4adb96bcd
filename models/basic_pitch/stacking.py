"""Convolutions over stacked harmonics, as matrix products.

Harmonic stacking puts copies of a spectrogram, each moved down by the distance of one harmonic,
side by side as channels. A convolution over the stack is then a sparse linear map of the one
spectrogram; and here the map is hardly sparse at all: 8 harmonics of 39 bins reach all 309 bins
three times over. Written out as one dense matrix the product has as many multiplications as the
convolution, and runs several times faster than a convolution with eight channels can.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray


def harmonic_shifts(harmonics: Sequence[float], bins_per_octave: int) -> tuple[int, ...]:
    """Bins from a fundamental to each harmonic; negative for a subharmonic."""
    return tuple(int(np.round(bins_per_octave * np.log2(h))) for h in harmonics)


def stack_harmonics(
    x: Float[AnyArray, "B T F"], shifts: tuple[int, ...], bins: int
) -> Float[Array, "B T F_out C"]:
    """Channel c, bin f holds x at bin f + shifts[c], zero beyond its ends; F_out = bins."""
    below, above = max(0, -min(shifts)), max(0, bins + max(shifts) - x.shape[-1])
    padded = jnp.pad(x, ((0, 0), (0, 0), (below, above)))
    return jnp.stack([padded[..., below + s : below + s + bins] for s in shifts], axis=-1)


def convolve_stacked(
    x: Float[AnyArray, "B T F"],
    kernel: Float[AnyArray, "rows columns C C_out"],
    shifts: tuple[int, ...],
    bins: int,
) -> Float[Array, "B T F_out C_out"]:
    """Correlate `stack_harmonics(x, shifts, bins)` with a kernel of odd size, zero padded.

    One product of (frames, rows * F) by (rows * F, F_out * C_out).
    """
    rows, channels = kernel.shape[0], kernel.shape[-1]
    frames = x.shape[1]
    padded = jnp.pad(x, ((0, 0), (rows // 2, rows // 2), (0, 0)))
    near = jnp.concatenate([padded[:, i : i + frames] for i in range(rows)], axis=-1)
    y = near @ dense_map(kernel, shifts, x.shape[-1], bins)
    return y.reshape(*x.shape[:2], bins, channels)


def dense_map(
    kernel: Float[AnyArray, "rows columns C C_out"],
    shifts: tuple[int, ...],
    bins_in: int,
    bins: int,
) -> Float[Array, "inputs outputs"]:
    """The matrix of `convolve_stacked`: rows (kernel row, input bin), columns (bin, channel).

    An input bin b reaches an output bin f through harmonic h if the kernel has a column for
    b - f - shifts[h]; so all input bins that lie in reach of the same harmonics share one row of
    numbers, only moved. Rows are slices of few such rows, and no number is written twice.
    """
    kernel = jnp.asarray(kernel)
    rows, columns, _, channels = kernel.shape
    low = min(shifts)
    # Row of numbers over b - f, from its least value: each harmonic's columns at their place.
    placed = jnp.stack(
        [
            jnp.pad(kernel[:, :, h], ((0, 0), (s - low, max(shifts) - s), (0, 0)))
            for h, s in enumerate(shifts)
        ]
    )
    stacked_bin = np.arange(bins_in)[:, None] - np.asarray(shifts)
    in_reach = (stacked_bin >= 0) & (stacked_bin < bins)  # (F, harmonics)
    groups, group_of = np.unique(in_reach, axis=0, return_inverse=True)
    table = jnp.einsum("gh,hrdo->grdo", groups.astype(kernel.dtype), placed, precision="highest")
    # Over f instead of b - f the row runs backwards; zeros around it where no column reaches.
    least, length = low - columns // 2, placed.shape[2]
    left = max(0, bins_in - length - least)
    right = max(0, bins - 1 + least)
    table = jnp.pad(table[:, :, ::-1], ((0, 0), (0, 0), (left, right), (0, 0)))
    flat = table.reshape(len(groups) * rows, -1)
    start = (length - 1 + least + left - np.arange(bins_in)) * channels
    row = group_of.reshape(-1) * rows + np.arange(rows)[:, None]
    first = np.broadcast_to(start, row.shape).reshape(-1)

    def cut(row: Array, first: Array) -> Array:
        return jax.lax.dynamic_slice(flat, (row, first), (1, bins * channels))[0]

    return jax.vmap(cut)(jnp.asarray(row.reshape(-1)), jnp.asarray(first))


def convolve_to_one(
    x: Float[AnyArray, "B T F C"], kernel: Float[AnyArray, "rows columns C 1"]
) -> Float[Array, "B T F"]:
    """Correlate with a kernel of odd size that has one output, zero padded to the same size.

    All taps of the kernel are applied to every cell in one product, then moved to where they
    belong and added up: a convolution to one channel has no product worth the name.
    """
    rows, columns, channels, _ = kernel.shape
    taps = jax.lax.dot_general(
        kernel.reshape(rows * columns, channels), x, (((1,), (3,)), ((), ()))
    )  # (taps, B, T, F)
    taps = jnp.pad(taps, ((0, 0), (0, 0), (rows // 2,) * 2, (columns // 2,) * 2))
    frames, bins = x.shape[1:3]
    moved = [
        taps[i * columns + j, :, i : i + frames, j : j + bins]
        for i in range(rows)
        for j in range(columns)
    ]
    return sum(moved[1:], moved[0])
