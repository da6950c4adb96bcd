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
Differentiating makes the panels again. How many are held at a time is left to the compiler.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

BLOCK = 64  # start frames in a panel
_NEVER = -1e30  # score of what cannot be; finite, so that gradients stay so


@runtime_checkable
class IntervalScores(Protocol):
    """Scores of all intervals of N sequences of T frames.

    `single` (N, T) scores the intervals of one frame. `panel(start, size)` scores those that start
    in [start, start + size): (N, T - start, size) float32, end frame before start frame, counted
    from `start`; only entries whose end lies after their start are used.
    """

    @property
    def single(self) -> Float[Array, "N T"]: ...

    def panel(self, start: int, size: int) -> Float[Array, "N ends starts"]: ...


@partial(jax.tree_util.register_dataclass, data_fields=["table"], meta_fields=[])
@dataclass(frozen=True)
class TableScores:
    """Every interval's score in a table (N, end, start); the diagonal scores single frames."""

    table: Float[Array, "N T T"]

    @property
    def single(self) -> Float[Array, "N T"]:
        """The diagonal."""
        return jnp.diagonal(self.table, axis1=1, axis2=2)

    def panel(self, start: int, size: int) -> Float[Array, "N ends starts"]:
        """A part of the table."""
        return self.table[:, start:, start : start + size]


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

    def panel(self, start: int, size: int) -> Float[Array, "N ends starts"]:
        """Products of a few starts with all later ends, in full float32.

        A product is multiplied by the interval's length, hundreds of frames, and so is its error.
        """
        products = jnp.einsum(
            "ned,nbd->neb",
            self.end[:, start:].astype(jnp.float32),
            self.start[:, start : start + size].astype(jnp.float32),
            precision="highest",
        )
        ends, starts = jnp.arange(products.shape[1])[:, None], jnp.arange(size)
        return products * ((ends - starts) / np.sqrt(self.end.shape[-1])).astype(jnp.float32)

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


def best_intervals(
    scores: IntervalScores, lengths: Int[Array, "N"] | None = None, *, block: int = BLOCK
) -> BestIntervals:
    """The highest-scoring intervals from every frame on (Viterbi, from the last frame back).

    lengths: frames of each sequence that exist, all if None. Because the answer is kept for every
    frame, `follow` can start anywhere, such as where the previous segment of a recording ended.
    """
    single = _existing(scores.single.astype(jnp.float32), lengths)
    count = single.shape[1]
    worth = single > 0
    gain = jnp.where(worth, single, 0.0)
    after = jnp.zeros(single.shape[0], jnp.float32)
    values = jnp.zeros((single.shape[0], 0), jnp.float32)  # of the frames done, ascending
    ends = jnp.zeros((single.shape[0], 0), jnp.int32)
    for start in reversed(range(0, count, block)):
        size = min(block, count - start)
        panel = _panel(scores, start, size, lengths)
        beyond, beyond_end = _best_beyond(panel[:, size:], values, start + size)
        steps = (
            panel[:, :size].transpose(2, 1, 0),
            beyond.T,
            beyond_end.T,
            gain[:, start : start + size].T,
            jnp.arange(size),
        )
        first = (jnp.full((size, len(after)), _NEVER), after)
        (inside, after), inside_end = jax.lax.scan(
            partial(_best_step, start), first, steps, reverse=True
        )
        values = jnp.concatenate([inside.T, values], axis=1)
        ends = jnp.concatenate([inside_end.T, ends], axis=1)
    return BestIntervals(after, ends, worth)


def _best_beyond(later: Array, values: Array, first: int) -> tuple[Array, Array]:
    """Best interval from each start of a panel to an end behind the panel, and that end."""
    if not later.shape[1]:
        return jnp.full(later.shape[::2], _NEVER), jnp.full(later.shape[::2], -1, jnp.int32)
    total = later + values[:, :, None]
    return total.max(axis=1), first + jnp.argmax(total, axis=1).astype(jnp.int32)


def _best_step(start: int, carry: tuple, step: tuple) -> tuple[tuple, Array]:
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
    single = _existing(scores.single.astype(jnp.float32), lengths)
    count = single.shape[1]
    gain = jax.nn.softplus(single)
    values = jnp.zeros((single.shape[0], 0), jnp.float32)
    after = jnp.zeros(single.shape[0], jnp.float32)
    for start in reversed(range(0, count, block)):
        size = min(block, count - start)
        inside = _made_again(partial(_log_block, start=start, size=size))(
            (scores, lengths, bonus, values, after, gain[:, start : start + size])
        )
        values = jnp.concatenate([inside, values], axis=1)
        after = inside[:, 0]
    return after


def _made_again(block: Callable[..., Array]) -> Callable[[tuple], Array]:
    """The block, whose panel is made once more when differentiating instead of being kept.

    How many panels are held at once is the scheduler's choice all the same; XLA's for CPUs makes
    them ahead.
    """
    remade = jax.custom_vjp(lambda given: block(*given))

    def forward(given: tuple) -> tuple[Array, tuple]:
        return block(*given), given

    def backward(given: tuple, cotangent: Array) -> tuple:
        given, cotangent = jax.lax.optimization_barrier((given, cotangent))
        return jax.vjp(lambda given: block(*given), given)[1](cotangent)

    remade.defvjp(forward, backward)
    return remade


def _log_block(
    scores: IntervalScores,
    lengths: Array | None,
    bonus: tuple[Array, Array] | None,
    values: Array,
    after: Array,
    gain: Array,
    *,
    start: int,
    size: int,
) -> Array:
    """Values (N, size) of one block's frames, from those of all frames behind it."""
    panel = _panel(scores, start, size, lengths)
    if bonus is not None:
        panel = panel + bonus[0][:, None, start : start + size] + bonus[1][:, start:, None]
    beyond = jnp.full((len(after), size), _NEVER)
    if values.shape[1]:
        beyond = jax.nn.logsumexp(panel[:, size:] + values[:, :, None], axis=1)

    def step(carry: tuple, inputs: tuple) -> tuple[tuple, None]:
        values, after = carry
        row, beyond, gain, index = inputs
        near = jax.nn.logsumexp(row + values, axis=0)
        value = jnp.logaddexp(after, jnp.logaddexp(near, beyond)) + gain
        return (values.at[index].set(value), value), None

    steps = (panel[:, :size].transpose(2, 1, 0), beyond.T, gain.T, jnp.arange(size))
    first = (jnp.full((size, len(after)), _NEVER), after)
    (inside, _), _ = jax.lax.scan(step, first, steps, reverse=True)
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

    def panel(self, start: int, size: int) -> Float[Array, "N ends starts"]:
        return self.scores.panel(start, size)


def _existing(single: Array, lengths: Array | None) -> Array:
    if lengths is None:
        return single
    return jnp.where(jnp.arange(single.shape[1]) < lengths[:, None], single, _NEVER)


def _panel(scores: IntervalScores, start: int, size: int, lengths: Array | None) -> Array:
    panel = scores.panel(start, size).astype(jnp.float32)
    if lengths is None:
        return panel
    exists = start + jnp.arange(panel.shape[1]) < lengths[:, None]
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
