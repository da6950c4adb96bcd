"""Recordings through a model that decides on events in long overlapping segments.

Such a model hears a segment as a whole and finds what happens in it by a search of its own. Hearing
is heavy and runs in batches on the device; reading the answer follows a recording from segment to
segment on the host, because where one segment was decided the next one goes on. So memory does not
grow with the recording except for the events.

The model has

    segment_samples, segment_hop, segment_lead   samples of a segment, from one to the next, and
                                                 of silence before and after a recording
    hear_stereo                                  if True, `hear` also takes (B, 2, N)
    hear(audio (B, N)) -> heard                  a pytree that stays on the device; its tuple
                                                 `decisions`, (B * S, T) each, goes to the host
    reader() -> reader                           one for each recording. `intervals(*decisions)`
                                                 of a segment, (S, T) each, gives (K,) arrays of
                                                 what is to be described; `events(intervals,
                                                 **described)` a dict of arrays of events
    describe(heard, item, *intervals) -> dict    (K, …) arrays, for the intervals of one item
"""

import collections
import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from musicjax.infer.devices import mending_cache
from musicjax.infer.long import Window

_LEAST_QUESTIONS = 128  # intervals described at once, at least; then the next power of two


@dataclass(frozen=True)
class Segmentation:
    """How recordings are cut, all in samples.

    samples   of one segment
    step      from the start of one segment to the start of the next
    lead      of silence before a recording and after it
    stereo    whether recordings of two channels keep them
    beyond    how far behind that a segment may begin: 1 where a recording that ends with a
              segment is followed by one of silence, as MT3 has it
    """

    samples: int
    step: int
    lead: int
    batch_size: int
    beyond: int = 0
    stereo: bool = False

    hop: ClassVar[int] = 1  # a `Window`, counted in frames elsewhere, counts samples here


def segments(blocks: Iterable[Float[np.ndarray, "*C _"]], plan: Segmentation) -> Iterator[Window]:
    """Cut a recording that comes in blocks of any size, silence before and after it included.

    Segment k begins at sample k * step - lead; there are as many as begin before the silence after
    the recording ends, and the last ones are filled up with zeros. An empty recording gives none.
    """
    buffer, begin, heard = np.zeros(plan.lead, np.float32), -plan.lead, 0
    for block in blocks:
        if not heard:
            buffer = np.zeros((*block.shape[:-1], plan.lead), np.float32)
        heard += block.shape[-1]
        buffer = np.concatenate([buffer, block], axis=-1, dtype=np.float32)
        while buffer.shape[-1] >= plan.samples:
            yield _segment(buffer, begin, plan, is_last=False)
            buffer, begin = buffer[..., plan.step :], begin + plan.step
    end = heard + plan.lead + plan.beyond
    while heard and begin < end:
        yield _segment(buffer, begin, plan, is_last=begin + plan.step >= end)
        buffer, begin = buffer[..., plan.step :], begin + plan.step


def _segment(sound: np.ndarray, begin: int, plan: Segmentation, *, is_last: bool) -> Window:
    heard = min(sound.shape[-1], plan.samples)
    samples = np.zeros((*sound.shape[:-1], plan.samples), np.float32)
    samples[..., :heard] = sound[..., :heard]
    return Window(samples, begin, heard, slice(0, plan.step), is_last)


class SegmentRunner:
    """Events of recordings, in the place of a `Runner`'s activations. Compiled once.

    The state of the model is an argument of the compiled functions. While the host reads one
    batch, the device hears the next.
    """

    def __init__(self, model: Any, *, batch_size: int, device: jax.Device | None = None) -> None:
        self.layout = Segmentation(
            model.segment_samples,
            model.segment_hop,
            model.segment_lead,
            batch_size,
            stereo=getattr(model, "hear_stereo", False),
        )
        self.device = device
        self._new_reader = model.reader
        graph, state = nnx.split(model)
        self._state = jax.device_put(state, device)
        self._hear: Any = jax.jit(lambda state, audio: nnx.merge(graph, state).hear(audio))
        self._describe: Any = jax.jit(
            lambda state, heard, item, *intervals: nnx.merge(graph, state).describe(
                heard, item, *intervals
            )
        )

    @property
    def programs(self) -> int:
        """How many programs for hearing have been compiled: one, and one if there was stereo."""
        return self._hear._cache_size()

    def take_weights(self, model: nnx.Module) -> None:
        """Go on with another model of the same config, without compiling again."""
        self._state = jax.device_put(nnx.state(model), self.device)

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each segment with its events, in order. Segments of different jobs share batches."""
        readers: dict[Any, Any] = {}
        pending: collections.deque[tuple[list[tuple[Any, Window]], Any]] = collections.deque()
        filled: list[tuple[Any, Window]] = []
        for job in jobs:
            filled.append(job)
            if len(filled) == self.layout.batch_size:
                pending.append((filled, self._batch(filled)))
                filled = []
                if len(pending) > 1:
                    yield from self._read(*pending.popleft(), readers)
        if filled:
            pending.append((filled, self._batch(filled)))
        while pending:
            yield from self._read(*pending.popleft(), readers)

    def _batch(self, filled: list[tuple[Any, Window]]) -> Any:
        stereo = any(window.samples.ndim == 2 for _, window in filled)
        channels = (2,) if stereo else ()  # beside stereo, mono is heard on both
        audio = np.zeros((self.layout.batch_size, *channels, self.layout.samples), np.float32)
        for row, (_, window) in enumerate(filled):
            audio[row] = window.samples
        with contextlib.nullcontext() if self.programs else mending_cache():
            return self._hear(self._state, jax.device_put(audio, self.device))

    def _read(
        self, filled: list[tuple[Any, Window]], heard: Any, readers: dict[Any, Any]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        rows = (self.layout.batch_size, -1)
        decisions = [np.asarray(x).reshape(*rows, x.shape[-1]) for x in heard.decisions]
        for row, (job, window) in enumerate(filled):
            reader = readers.get(job) or readers.setdefault(job, self._new_reader())
            intervals = reader.intervals(*(array[row] for array in decisions))
            described = self._describe_padded(heard, row, intervals)
            if window.is_last:
                del readers[job]
            yield job, window, reader.events(intervals, **described)

    def _describe_padded(self, heard: Any, row: int, intervals: Any) -> dict[str, np.ndarray]:
        """Descriptions of any number of intervals by a few compiled programs."""
        count = len(intervals[0])
        room = max(_LEAST_QUESTIONS, 1 << max(count - 1, 0).bit_length())
        padded = [np.pad(np.asarray(column, np.int32), (0, room - count)) for column in intervals]
        found = self._describe(self._state, heard, np.int32(row), *padded)
        return {name: np.asarray(values)[:count] for name, values in found.items()}
