"""Recordings through a model that decides on events in long overlapping segments.

Such a model hears a segment as a whole and finds what happens in it by a search of its own. Hearing
is heavy and runs in batches on the device; reading the answer follows a recording from segment to
segment on the host, because where one segment was decided the next one goes on. So memory does not
grow with the recording except for the events.

The model has

    segment_samples, segment_hop, segment_lead   samples of a segment, from one to the next, and
                                                 of silence before and after a recording
    hear_stereo                                  if True, `hear` also takes (B, 2, N)
    prepare() -> prepared                        a pytree of what depends on the weights alone
    hear(audio (B, N), prepared) -> heard        a pytree that stays on the device; its tuple
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
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from musicjax.infer.devices import Where, mending_cache, put_rows, put_whole, shares
from musicjax.infer.long import Window

_LEAST_QUESTIONS = 128  # intervals described at once, at least; then the next power of two
_KNOWN = -1  # in the place of a row
_MOST_IN_ORDER = 8  # silent segments that wait behind each that sounds


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


class _Placed(NamedTuple):
    """A segment, and its row of a batch or, for silence that is not heard again, _KNOWN."""

    job: Any
    window: Window
    row: int


class SegmentRunner:
    """Events of recordings, in the place of a `Runner`'s activations. Compiled once.

    The state of the model is an argument of the compiled functions. `batch_size` segments are heard
    at once on each device. While the host reads one
    batch, the device hears the next. A segment of nothing but zeros, such as often lies behind the
    end of a recording, is heard once: what the model says of it is kept.
    """

    def __init__(self, model: Any, *, batch_size: int, device: Where = None) -> None:
        self.layout = Segmentation(
            model.segment_samples,
            model.segment_hop,
            model.segment_lead,
            batch_size * shares(device),
            stereo=getattr(model, "hear_stereo", False),
        )
        self.device = device
        self._new_reader = model.reader
        graph, state = nnx.split(model)
        self._state = put_whole(state, device)
        self._prepare: Any = jax.jit(lambda state: nnx.merge(graph, state).prepare())
        self._prepared: Any = None
        self._silence: tuple[Any, int] | None = None  # what was heard of zeros, and in which row
        self._hear: Any = jax.jit(
            lambda state, audio, prepared: nnx.merge(graph, state).hear(audio, prepared)
        )
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
        self._state = put_whole(nnx.state(model), self.device)
        self._prepared = self._silence = None

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each segment with its events, in order. Segments of different jobs share batches."""
        readers: dict[Any, Any] = {}
        pending: collections.deque[tuple[list[_Placed], Any]] = collections.deque()
        filled: list[_Placed] = []
        row = 0
        for job, window in jobs:
            if self._silence is not None and not window.samples.any():
                filled.append(_Placed(job, window, _KNOWN))
            else:
                filled.append(_Placed(job, window, row))
                row += 1
            if row == self.layout.batch_size or len(filled) > _MOST_IN_ORDER * row:
                pending.append((filled, self._batch(filled)))
                filled, row = [], 0
                if len(pending) > 1:
                    yield from self._read(*pending.popleft(), readers)
        if filled:
            pending.append((filled, self._batch(filled)))
        while pending:
            yield from self._read(*pending.popleft(), readers)

    def _batch(self, filled: list[_Placed]) -> Any:
        """What is heard in those that have a row; None if none has."""
        sounding = [place for place in filled if place.row != _KNOWN]
        if not sounding:
            return None
        heard = self._heard([place.window for place in sounding])
        for place in sounding:
            if self._silence is None and not place.window.samples.any():
                self._silence = heard, place.row
        return heard

    def _heard(self, windows: list[Window]) -> Any:
        stereo = any(window.samples.ndim == 2 for window in windows)
        channels = (2,) if stereo else ()  # beside stereo, mono is heard on both
        audio = np.zeros((self.layout.batch_size, *channels, self.layout.samples), np.float32)
        for row, window in enumerate(windows):
            audio[row] = window.samples
        with contextlib.nullcontext() if self.programs else mending_cache():
            if self._prepared is None:
                self._prepared = self._prepare(self._state)
            return self._hear(self._state, put_rows(audio, self.device), self._prepared)

    def _read(
        self, filled: list[_Placed], heard: Any, readers: dict[Any, Any]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        of_batch = [] if heard is None else self._decisions(heard)
        for job, window, row in filled:
            reader = readers.get(job) or readers.setdefault(job, self._new_reader())
            told, place, decisions = heard, row, of_batch
            if row == _KNOWN and self._silence is not None:
                told, place = self._silence
                decisions = self._decisions(told)
            intervals = reader.intervals(*(array[place] for array in decisions))
            described = self._describe_padded(told, place, intervals)
            if window.is_last:
                del readers[job]
            yield job, window, reader.events(intervals, **described)

    def _decisions(self, heard: Any) -> list[np.ndarray]:
        rows = (self.layout.batch_size, -1)
        return [np.asarray(x).reshape(*rows, x.shape[-1]) for x in heard.decisions]

    def _describe_padded(self, heard: Any, row: int, intervals: Any) -> dict[str, np.ndarray]:
        """Descriptions of any number of intervals by a few compiled programs."""
        count = len(intervals[0])
        room = max(_LEAST_QUESTIONS, 1 << max(count - 1, 0).bit_length())
        padded = [np.pad(np.asarray(column, np.int32), (0, room - count)) for column in intervals]
        found = self._describe(self._state, heard, np.int32(row), *padded)
        return {name: np.asarray(values)[:count] for name, values in found.items()}
