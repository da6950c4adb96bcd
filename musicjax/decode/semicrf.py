"""A semi-Markov random field over intervals of frames, many sequences at once: exact, in blocks.

For each sequence (a piano key, a pedal) the field gives a probability to every way to place closed
intervals [b, e] on the frames so that no two of them overlap; they may share an end frame:

    p(intervals) = exp(sum of their scores) / Z

Frames outside intervals score zero. An interval of one frame, b = e, has a score of its own and
may stand where a longer one ends or begins, but not within it. Y. Yan, F. Cwitkowitz and Z. Duan,
"Skipping the Frame-Level: Event-Based Piano Transcription with Neural Semi-CRFs", NeurIPS 2021.

There are T (T + 1) / 2 intervals, too many to keep for 90 sequences of 700 frames and a batch. So
scores are asked for in panels, a few dozen start frames at a time, from the last frames to the
first: what comes after a panel is known, and only inside the panel, frames wait for one another.
The panels are the steps of a loop, so that one of them is held at a time; differentiating is
another loop, which makes each panel again. Memory grows with the frames, not with their square.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BLOCK = 64  # start frames in a panel
_LOOPS, _LOOP_PANELS = 4, 3  # at most, and at least: more loops leave out more of what cannot be
_NEVER = -1e30  # score of what cannot be; finite, so that gradients stay so


@runtime_checkable
class IntervalScores(Protocol):
    """Scores of all intervals of N sequences of T frames.

    `single` (N, T) scores the intervals of one frame. `panel(start, size, first)` scores those that
    start in [start, start + size) and end in [first, T): (N, T - first, size) float32, end frame
    before start frame. `start` may be traced; it is no less than `first`. Only entries whose end
    lies after their start are used.
    """

    @property
    def single(self) -> Float[Array, "N T"]: ...

    def panel(
        self, start: int | Int[Array, ""], size: int, first: int
    ) -> Float[Array, "N ends starts"]: ...


@partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=[])
@dataclass(frozen=True)
class TableScores:
    """Every interval's score in a table (N, end, start); the diagonal scores single frames."""

    table: Float[Array, "N T T"]

    @property
    def single(self) -> Float[Array, "N T"]:
        """The diagonal."""
        return jnp.diagonal(self.table, axis1=1, axis2=2)

    def panel(
        self, start: int | Int[Array, ""], size: int, first: int
    ) -> Float[Array, "N ends starts"]:
        """A part of the table."""
        return jax.lax.dynamic_slice_in_dim(self.table[:, first:], start, size, axis=2)


@partial(jax.tree_util.register_dataclass, data_fields=["end", "start", "single"], meta_fields=[])
@dataclass(frozen=True)
class ProductScores:
    """Scores from two vectors a frame: (e - b) <end[e], start[b]> / sqrt(D).

    Y. Yan and Z. Duan, "Scoring Time Intervals Using Non-Hierarchical Transformer for Automatic
    Piano Transcription", ISMIR 2024, section 3.
    """

    end: Float[Array, "N T D"]
    start: Float[Array, "N T D"]
    single: Float[Array, "N T"]

    def panel(
        self, start: int | Int[Array, ""], size: int, first: int
    ) -> Float[Array, "N ends starts"]:
        """Products of a few starts with all later ends, in full float32.

        A product is multiplied by the interval's length, hundreds of frames, and so is its error.
        """
        products = jnp.einsum(
            "ned,nbd->neb",
            self.end[:, first:].astype(jnp.float32),
            jax.lax.dynamic_slice_in_dim(self.start, start, size, axis=1).astype(jnp.float32),
            precision="highest",
        )
        ends = first + jnp.arange(products.shape[1])[:, None]
        length = ends - (start + jnp.arange(size))
        return products * (length / np.sqrt(self.end.shape[-1])).astype(jnp.float32)

    def at(
        self, row: Int[Array, "K"], start: Int[Array, "K"], end: Int[Array, "K"]
    ) -> Float[Array, "K"]:
        """Scores of single intervals: sequence, start frame and end frame of each."""
        product = jnp.einsum(
            "kd,kd->k",
            self.end[row, end].astype(jnp.float32),
            self.start[row, start].astype(jnp.float32),
            precision="highest",
        )
        long = product * (end - start) / np.sqrt(self.end.shape[-1]).astype(np.float32)
        return jnp.where(start == end, self.single[row, start], long)


class BestIntervals(NamedTuple):
    """What is best from each frame on.

    value      (N,) score of the best intervals of all frames
    next_end   (N, T) int32: the end of the interval that starts here, if the best way on from this
               frame starts one; -1 where it goes on to the next frame
    single     (N, T) bool: an interval of this one frame is worth its while
    """

    value: Float[Array, "N"]
    next_end: Int[Array, "N T"]
    single: Bool[Array, "N T"]


def _panels(count: int, block: int) -> list[tuple[int, np.ndarray, int]]:
    """Loops over panels, from the last frames to the first: (first, starts descending, size).

    Panels of one loop are equally wide: their ends lie in [first, count), of which those before a
    panel are for nothing. The frames that fill no panel make one at the end, where it is narrow.
    """
    whole = count - count % block
    loops = [(whole, np.array([whole]), count - whole)] if whole < count else []
    starts = np.arange(0, whole, block)
    parts = np.array_split(starts, min(_LOOPS, max(len(starts) // _LOOP_PANELS, 1)))
    return loops + [(int(p[0]), p[::-1], block) for p in reversed(parts) if len(p)]


def best_intervals(
    scores: IntervalScores, lengths: Int[Array, "N"] | None = None, *, block: int = BLOCK
) -> BestIntervals:
    """The highest-scoring intervals from every frame on (Viterbi, from the last frame back).

    lengths: frames of each sequence that exist, all if None. Because the answer is kept for every
    frame, `follow` can start anywhere, such as where the previous segment of a recording ended.
    """
    single = _existing(scores.single.astype(jnp.float32), lengths)
    rows, count = single.shape
    worth = single > 0
    gain = jnp.where(worth, single, 0.0)
    values = jnp.full((rows, count), _NEVER)  # of the frames not done yet: nothing ends there
    ends = jnp.full((rows, count), -1, jnp.int32)
    after = jnp.zeros(rows, jnp.float32)
    for first, starts, size in _panels(count, block):

        def step(carry: tuple, start: Array, first: int = first, size: int = size) -> tuple:
            values, ends, after = carry
            panel = _panel(scores, start, size, first, lengths)
            total = panel + values[:, first:, None]
            beyond = total.max(axis=1)
            frames = jnp.arange(first, count, dtype=jnp.int32)[:, None]
            # Not argmax, which no processor does many at a time: the first that is the maximum.
            found = jnp.where(total == beyond[:, None], frames, count).min(axis=1)
            near = jax.lax.dynamic_slice_in_dim(panel, start - first, size, axis=1)
            steps = (
                near.transpose(2, 1, 0),
                beyond.T,
                found.T,
                jax.lax.dynamic_slice_in_dim(gain, start, size, axis=1).T,
                jnp.arange(size),
            )
            own = (jnp.full((size, rows), _NEVER), after)
            (inside, after), inside_end = jax.lax.scan(
                partial(_best_step, start), own, steps, reverse=True
            )
            values = jax.lax.dynamic_update_slice_in_dim(values, inside.T, start, axis=1)
            ends = jax.lax.dynamic_update_slice_in_dim(ends, inside_end.T, start, axis=1)
            return (values, ends, after), None

        (values, ends, after), _ = jax.lax.scan(step, (values, ends, after), jnp.asarray(starts))
    return BestIntervals(after, ends, worth)


def _best_step(start: Array, carry: tuple, step: tuple) -> tuple[tuple, Array]:
    """One frame back inside a panel. Ties go to the frame after, then to the shortest interval."""
    values, after = carry
    row, beyond, beyond_end, gain, index = step
    total = row + values
    near = total.max(axis=0)
    near_end = start + jnp.argmax(total, axis=0).astype(jnp.int32)
    best = jnp.where(near >= beyond, near, beyond)
    end = jnp.where(near >= beyond, near_end, beyond_end)
    end = jnp.where(best > after, end, -1)
    value = jnp.maximum(best, after) + gain
    return (values.at[index].set(value), value), end


def log_partition(
    scores: IntervalScores, lengths: Int[Array, "N"] | None = None, *, block: int = BLOCK
) -> Float[Array, "N"]:
    """log Z of each sequence. Differentiable; its gradient is the probability of each interval.

    lengths: frames of each sequence that exist, all if None.
    """
    return _log_partition(scores, lengths, None, block)


def _log_partition(
    scores: IntervalScores,
    lengths: Array | None,
    bonus: tuple[Array, Array] | None,
    block: int,
) -> Array:
    """`bonus`: (N, T) added to the score of each interval for its start, and for its end."""
    gain = jax.nn.softplus(_existing(scores.single.astype(jnp.float32), lengths))
    return _from_first((scores, bonus, gain), lengths, block)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _from_first(given: tuple, lengths: Array | None, block: int) -> Array:
    return _log_values(given, lengths, block)[:, 0]


def _log_values(given: tuple, lengths: Array | None, block: int) -> Array:
    """(N, T + 1): log Z of the frames from each one on, and of none."""
    rows, count = given[2].shape
    values = jnp.full((rows, count + 1), _NEVER).at[:, -1].set(0.0)
    for first, starts, size in _panels(count, block):

        def step(
            values: Array, start: Array, first: int = first, size: int = size
        ) -> tuple[Array, None]:
            after = jax.lax.dynamic_index_in_dim(values, start + size, axis=1, keepdims=False)
            inside = _log_panel(given, values[:, first:-1], after, start, size, first, lengths)
            return jax.lax.dynamic_update_slice_in_dim(values, inside, start, axis=1), None

        values, _ = jax.lax.scan(step, values, jnp.asarray(starts))
    return values


def _forward(given: tuple, lengths: Array | None, block: int) -> tuple[Array, tuple]:
    values = _log_values(given, lengths, block)
    return values[:, 0], (given, lengths, values)


def _backward(block: int, kept: tuple, cotangent: Array) -> tuple[tuple, None]:
    """Panel by panel from the first frames on, each made again from the values behind it."""
    given, lengths, values = kept
    count = values.shape[1] - 1
    totals = jax.tree.map(jnp.zeros_like, given)
    d_values = jnp.zeros_like(values).at[:, 0].set(cotangent)
    for first, starts, size in reversed(_panels(count, block)):

        def step(carry: tuple, start: Array, first: int = first, size: int = size) -> tuple:
            d_values, totals = carry
            done = jnp.arange(first, count) >= start + size
            later = jnp.where(done, values[:, first:-1], _NEVER)
            after = jax.lax.dynamic_index_in_dim(values, start + size, axis=1, keepdims=False)

            def inside(given: tuple, later: Array, after: Array) -> Array:
                return _log_panel(given, later, after, start, size, first, lengths)

            own = jax.lax.dynamic_slice_in_dim(d_values, start, size, axis=1)
            d_given, d_later, d_after = jax.vjp(inside, given, later, after)[1](own)
            d_values = d_values.at[:, first:-1].add(jnp.where(done, d_later, 0.0))
            d_values = d_values.at[:, start + size].add(d_after)
            return (d_values, jax.tree.map(jnp.add, totals, d_given)), None

        (d_values, totals), _ = jax.lax.scan(step, (d_values, totals), jnp.asarray(starts[::-1]))
    return totals, None


_from_first.defvjp(_forward, _backward)


def _log_panel(
    given: tuple,
    later: Array,
    after: Array,
    start: Array,
    size: int,
    first: int,
    lengths: Array | None,
) -> Array:
    """Values (N, size) of a panel's frames, from those of all frames behind it."""
    scores, bonus, gain = given
    panel = _panel(scores, start, size, first, lengths)
    if bonus is not None:
        starts = jax.lax.dynamic_slice_in_dim(bonus[0], start, size, axis=1)
        panel = panel + starts[:, None] + bonus[1][:, first:, None]
    beyond = jax.nn.logsumexp(panel + later[:, :, None], axis=1)

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        values, after = carry
        row, beyond, gain, index = inputs
        near = jax.nn.logsumexp(row + values, axis=0)
        value = jnp.logaddexp(after, jnp.logaddexp(near, beyond)) + gain
        return (values.at[index].set(value), value), None

    near = jax.lax.dynamic_slice_in_dim(panel, start - first, size, axis=1)
    gain = jax.lax.dynamic_slice_in_dim(gain, start, size, axis=1)
    steps = (near.transpose(2, 1, 0), beyond.T, gain.T, jnp.arange(size))
    own = (jnp.full((size, len(after)), _NEVER), after)
    (inside, _), _ = jax.lax.scan(step, own, steps, reverse=True)
    return inside.T


class Marginals(NamedTuple):
    """Probabilities of what happens at each frame, (N, T) each, float32 in 0..1.

    start: an interval of two frames or more starts here. end: it ends here. single: an interval of
    this one frame stands here. inside: expected number of longer intervals that cover this frame,
    which is above 1 only where one ends and the next starts.
    """

    start: Float[Array, "N T"]
    end: Float[Array, "N T"]
    single: Float[Array, "N T"]
    inside: Float[Array, "N T"]


def marginals(
    scores: IntervalScores, lengths: Int[Array, "N"] | None = None, *, block: int = BLOCK
) -> Marginals:
    """Posterior probabilities of starts and ends (forward-backward)."""
    shape = scores.single.shape
    zeros = jnp.zeros(shape, jnp.float32)

    def total(start: Array, end: Array, single: Array) -> Array:
        changed = _Shifted(scores, single)
        return _log_partition(changed, lengths, (start, end), block).sum()

    start, end, single = jax.grad(total, argnums=(0, 1, 2))(zeros, zeros, zeros)
    inside = jnp.cumsum(start, axis=1) - jnp.cumsum(end, axis=1) + end
    return Marginals(start, end, single, inside)


@partial(jax.tree_util.register_dataclass, data_fields=["scores", "bonus"], meta_fields=[])
@dataclass(frozen=True)
class _Shifted:
    """Scores with something added to those of single frames."""

    scores: IntervalScores
    bonus: Float[Array, "N T"]

    @property
    def single(self) -> Float[Array, "N T"]:
        return self.scores.single + self.bonus

    def panel(
        self, start: int | Int[Array, ""], size: int, first: int
    ) -> Float[Array, "N ends starts"]:
        return self.scores.panel(start, size, first)


def _existing(single: Array, lengths: Array | None) -> Array:
    if lengths is None:
        return single
    return jnp.where(jnp.arange(single.shape[1]) < lengths[:, None], single, _NEVER)


def _panel(
    scores: IntervalScores, start: Array, size: int, first: int, lengths: Array | None
) -> Array:
    panel = scores.panel(start, size, first).astype(jnp.float32)
    if lengths is None:
        return panel
    exists = first + jnp.arange(panel.shape[1]) < lengths[:, None]
    return jnp.where(exists[:, :, None], panel, _NEVER)


def follow(
    next_end: Int[np.ndarray, "N T"],
    single: Bool[np.ndarray, "N T"],
    start: Int[np.ndarray, "N"] | None = None,
) -> list[list[tuple[int, int]]]:
    """The intervals of each sequence, in order, from `best_intervals` as numpy arrays.

    start: frame of each sequence from which on to read, 0 if None; what lies before it is left
    out. At one frame a single comes before the interval that starts there.
    """
    found: list[list[tuple[int, int]]] = []
    events = (next_end >= 0) | single
    for row in range(len(next_end)):
        intervals: list[tuple[int, int]] = []
        here = 0 if start is None else int(start[row])
        for frame in np.flatnonzero(events[row]).tolist():
            if frame < here:
                continue
            if single[row, frame]:
                intervals.append((frame, frame))
            end = int(next_end[row, frame])
            if end >= 0:
                intervals.append((frame, end))
                here = end
        found.append(intervals)
    return found
