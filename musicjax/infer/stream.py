"""Sound that is heard as it comes: blocks of any size in, events out, nothing heard twice.

A model that can be heard live has one step function of fixed shapes whose state is passed in and
out (`StreamingModel`). `Streamer` stands between it and the world on the host: it cuts blocks of
any length into the model's hops, runs the step, which is compiled once, and has what comes out of
it read as events. Memory does not grow with the time: there is one hop of samples, the model's
state, and what the reader of events keeps.

    streamer = Streamer(model)
    for block in microphone:
        for event in streamer.feed(block):
            ...
    rest = streamer.finish()
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, Protocol, runtime_checkable

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from musicjax.audio.framing import StreamSpec
from musicjax.errors import AudioError, ConfigError
from musicjax.infer.devices import mending_cache
from musicjax.notes.events import Event, NoteOff, NoteOn, PitchFrame, events_to_notes

__all__ = [
    "Event",
    "EventReader",
    "NoteOff",
    "NoteOn",
    "PitchFrame",
    "StreamSpec",
    "Streamer",
    "StreamingModel",
    "can_stream",
    "events_to_notes",
]

State = Any  # a pytree of arrays, documented by the model whose state it is


@runtime_checkable
class EventReader(Protocol):
    """Reads the frames of one stream in order, on the host. Times count from its first sample."""

    def read(self, activations: Mapping[str, np.ndarray], first_frame: int) -> list[Event]:
        """Events in the frames from `first_frame` on; activations are name -> (T, ...), T of them.

        Called for every frame once, in order; T is the spec's frames of a step.
        """
        ...

    def end(self, frame: int) -> list[Event]:
        """Events that close what still sounds; the stream has `frame` frames, all of them read."""
        ...


@runtime_checkable
class StreamingModel(Protocol):
    """What a model (an `nnx.Module`) offers to be heard live.

    `stream_start` and `stream_step` are pure and of fixed shapes, so that one compiled step serves
    a stream of any length. Step n is given samples n * hop to (n + 1) * hop and gives the
    activations of the frames of step n - delay; of the first `delay` steps they mean nothing and
    are thrown away. All other activations equal those of `activations(audio)` for the whole
    recording, filled up with zeros to a whole hop.
    """

    @property
    def stream_spec(self) -> StreamSpec:
        """Rate, hop and look-ahead. Static."""
        ...

    def stream_start(self, batch: int) -> State:
        """The state before the first sample, for `batch` streams side by side: every leaf is an
        array whose leading axis is the batch, or a scalar."""
        ...

    def stream_step(
        self, state: State, samples: Float[Array, "B N"]
    ) -> tuple[State, dict[str, Float[Array, "B T ..."]]]:
        """The next `hop` samples of each stream: the new state, and `spec.frames` frames."""
        ...

    def stream_end(self, state: State) -> State:
        """The state with the news that the sound ended with the last step.

        The `delay` steps that follow are given zeros and flush what was waited for; the model may
        tell them from silence that was recorded. A model that does not care returns the state.
        """
        ...

    def stream_reader(self, **options: Any) -> EventReader:
        """A reader for one stream; its options are those of the system's decoding, where they
        make sense without knowing the future. Raises ConfigError for an unknown one."""
        ...


_METHODS = ("stream_spec", "stream_start", "stream_step", "stream_end", "stream_reader")


def can_stream(model: Any) -> bool:
    """Whether a model, or the class of one, can be heard live."""
    return all(hasattr(model, name) for name in _METHODS)


class Streamer:
    """One stream through one model.

    Args:
      model: a module that is a `StreamingModel`, in its floating-point form for inference.
      bad_samples: what to do with NaN and infinity: "refuse" the whole block with an AudioError,
        of which nothing has been heard then, or hear "silence" in their place and count them.
      device: where to compute; None takes jax's default.
      options: for the model's reader of events.

    The step is compiled here, so that the first block is as fast as the others. Raises ConfigError
    when the model cannot be heard live.
    """

    def __init__(
        self,
        model: Any,
        *,
        bad_samples: Literal["refuse", "silence"] = "refuse",
        device: jax.Device | None = None,
        **options: Any,
    ) -> None:
        if not can_stream(model):
            raise ConfigError(
                f"{type(model).__name__} hears whole recordings and cannot be heard live; take a "
                "model with stream_step, such as piano_ar or crepe."
            )
        self.spec: StreamSpec = model.stream_spec
        self.bad_samples = 0  # heard as silence
        self.skipped_s = 0.0  # that `skip` was told of
        self._refuse = bad_samples != "silence"
        self._device = device
        self._new_reader = functools.partial(model.stream_reader, **options)
        self._compile(model)
        self._pending = np.zeros((1, self.spec.hop), np.float32)
        self._before = 0  # samples of the stream before those that are heard now
        self._begin()

    def _compile(self, model: nnx.Module) -> None:
        graph, weights = nnx.split(model)
        self._weights = jax.device_put(weights, self._device)

        def start(weights: nnx.State) -> State:
            merged: Any = nnx.merge(graph, weights)
            return merged.stream_start(1)

        def end(weights: nnx.State, state: State) -> State:
            merged: Any = nnx.merge(graph, weights)
            return merged.stream_end(state)

        def step(weights: nnx.State, state: State, samples: Float[Array, "1 N"]) -> tuple:
            merged: Any = nnx.merge(graph, weights)
            return merged.stream_step(state, samples)

        # The state is given away to the step: it is written in place, nothing is allocated anew.
        self._start, self._end = jax.jit(start), jax.jit(end)
        self._step: Any = jax.jit(step, donate_argnums=1)
        with mending_cache():
            state = self._end(self._weights, self._fresh())
            silence = jax.device_put(np.zeros((1, self.spec.hop), np.float32), self._device)
            jax.block_until_ready(self._step(self._weights, state, silence))

    def _fresh(self) -> State:
        # Leaves that are equal may share memory, which cannot be given away twice.
        # Where a device was asked for they are bound to it, as what a step gives is.
        state = jax.tree.map(lambda leaf: leaf.copy(), self._start(self._weights))
        return jax.device_put(state, self._device)

    def _begin(self) -> None:
        self.state: State = self._fresh()
        self._reader: EventReader = self._new_reader()
        self._filled = 0  # samples that wait in _pending
        self._steps = 0
        self._ended = False

    @property
    def programs(self) -> int:
        """How many forms of the step have been compiled: one, whatever the blocks were."""
        return self._step._cache_size()

    @property
    def time_s(self) -> float:
        """Seconds of sound that have come in, those that were skipped included."""
        return (self._before + self._steps * self.spec.hop + self._filled) / self.spec.sample_rate

    @property
    def heard_s(self) -> float:
        """Seconds from the beginning up to which all events have been told."""
        done = max(self._steps - self.spec.delay, 0) * self.spec.hop
        return (self._before + done) / self.spec.sample_rate

    def feed(self, block: np.ndarray) -> list[Event]:
        """The events that can be told once these samples have come, in order of time.

        block: (N,), any number of samples at the spec's rate, floats in -1..1 or int16. Raises
        AudioError for another shape or kind, for NaN and infinity unless they are to be heard as
        silence, and after `finish`.
        """
        if self._ended:
            raise AudioError("this stream has ended; call reset() to begin another one.")
        block = self._checked(block)
        events: list[Event] = []
        while len(block):
            taken = min(self.spec.hop - self._filled, len(block))
            self._pending[0, self._filled : self._filled + taken] = block[:taken]
            self._filled += taken
            block = block[taken:]
            if self._filled == self.spec.hop:
                events += self._hear()
        return events

    def finish(self) -> list[Event]:
        """The events that were waited for, and those that close what sounds; the stream ends.

        The last hop is filled up with zeros, then the look-ahead is silent. A second call tells
        nothing more.
        """
        if self._ended:
            return []
        self._ended = True
        events: list[Event] = []
        if self._filled:
            self._pending[0, self._filled :] = 0.0
            events += self._hear()
        steps = self._steps
        if steps:
            self.state = self._end(self._weights, self.state)
            self._pending[:] = 0.0
            for _ in range(self.spec.delay):
                events += self._hear()
            events += self._placed(self._reader.end(steps * self.spec.frames))
            self._steps = steps
        return events

    def skip(self, samples: int) -> list[Event]:
        """Go on after a gap: so many samples were lost, because they came faster than heard.

        Tells what `finish` tells of the sound before the gap, and begins anew after it with the
        time that has passed since. Raises AudioError for a negative number.
        """
        if samples < 0:
            raise AudioError(f"{samples} samples cannot be skipped; give how many were lost.")
        before = round(self.time_s * self.spec.sample_rate) + samples
        events = self.finish()
        self._before = before
        self.skipped_s += samples / self.spec.sample_rate
        self._begin()
        return events

    def reset(self) -> None:
        """Begin another stream at time zero, with what is compiled already."""
        self.bad_samples, self.skipped_s, self._before = 0, 0.0, 0
        self._begin()

    def _checked(self, block: np.ndarray) -> np.ndarray:
        block = np.asarray(block)
        if block.ndim != 1:
            raise AudioError(
                f"a block of sound has shape {block.shape}; give one channel, (samples,). Take the "
                "mean of several."
            )
        if block.dtype == np.int16:
            return block.astype(np.float32) / 32768.0
        if block.dtype.kind != "f":
            raise AudioError(
                f"a block of sound has dtype {block.dtype}; give floats in -1..1, or int16."
            )
        finite = np.isfinite(block)
        if finite.all():
            return block.astype(np.float32, copy=False)
        bad = len(block) - int(finite.sum())
        if self._refuse:
            raise AudioError(
                f"{bad} of {len(block)} samples after {self.time_s:.3f} s are not numbers (NaN or "
                "infinity); look at where the sound comes from, or hear silence in their place "
                "with bad_samples='silence'."
            )
        self.bad_samples += bad
        return np.where(finite, block, 0.0).astype(np.float32)

    def _hear(self) -> list[Event]:
        """One step with the samples that wait."""
        # A copy: on CPU the step may read a numpy array in place after this has returned.
        samples = jax.device_put(self._pending.copy(), self._device)
        self.state, heard = self._step(self._weights, self.state, samples)
        self._filled = 0
        group = self._steps - self.spec.delay
        self._steps += 1
        if group < 0:
            return []
        arrays = {name: np.asarray(value)[0] for name, value in jax.device_get(heard).items()}
        return self._placed(self._reader.read(arrays, group * self.spec.frames))

    def _placed(self, events: list[Event]) -> list[Event]:
        """Events at their time in the whole stream."""
        if not self._before:
            return events
        shift_s = self._before / self.spec.sample_rate
        return [replace(event, time_s=event.time_s + shift_s) for event in events]
