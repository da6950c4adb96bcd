"""Audio of any length through a model of fixed shape: windows in, stitched activations out.

Every recording is cut into windows of one size that overlap by the model's context, windows of
all recordings fill batches of one size, and of each window only the middle, which has heard enough
on both sides, is kept. So one compiled program serves every length, and memory does not grow with
the length except for the activations themselves, kept as float16.
"""

import collections
import contextlib
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Float32, Int

from musicjax.audio.framing import Windowing
from musicjax.infer.devices import Where, mending_cache, on_rows, put_rows, put_whole, shares


@dataclass(frozen=True)
class Layout:
    """How recordings are cut. Windows start on frame boundaries; all counts are exact.

    hop             samples from one frame to the next
    window_frames   frames of one window
    context_frames  frames at each inner end of a window that are computed and thrown away
    batch_size      windows computed at once; a `Runner` on several devices, so many on each
    """

    hop: int
    window_frames: int
    context_frames: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.context_frames < 0 or self.stride <= 0:
            raise ValueError(
                f"a window of {self.window_frames} frames keeps nothing when {self.context_frames} "
                "frames of context are thrown away at both ends; make the window longer."
            )

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return self.window_frames * self.hop

    @property
    def stride(self) -> int:
        """Frames from the start of one window to the start of the next."""
        return self.window_frames - 2 * self.context_frames


@dataclass(frozen=True)
class FixedLayout:
    """How recordings are cut for a network that hears windows of one published kind only."""

    hop: int
    windowing: Windowing
    batch_size: int

    @property
    def window_samples(self) -> int:
        """Samples of one window."""
        return self.windowing.samples

    @property
    def frames_per_window(self) -> int:
        """Frames that each window but the last adds to the result."""
        return self.windowing.last - self.windowing.first

    def frames_per_s(self, sample_rate: int) -> float:
        """Frames of a long recording per second, which a hop alone does not tell."""
        return self.frames_per_window * sample_rate / self.windowing.stride


AnyLayout = Layout | FixedLayout


def layout(
    sample_rate: int, hop: int, *, context_s: float, window_s: float, batch_size: int
) -> Layout:
    """The layout for a front-end's rate and hop, lengths rounded up to whole frames."""
    frames = functools.partial(_frames_in, sample_rate=sample_rate, hop=hop)
    return Layout(hop, frames(window_s), frames(context_s), batch_size)


def _frames_in(seconds: float, *, sample_rate: int, hop: int) -> int:
    return -int(-seconds * sample_rate // hop)


@dataclass(frozen=True)
class Window:
    """One window of a recording: its samples, where it stands, and which of its frames count."""

    samples: np.ndarray  # (N,) float32; (2, N) where the layout asks for stereo
    first_frame: int  # of the window, counted in the recording
    frames: int  # that are sound; the rest is filled up with zeros
    keep: slice  # frames of the window that go into the result
    is_last: bool


def windows(blocks: Iterable[Float[np.ndarray, "_"]], layout: AnyLayout) -> Iterator[Window]:
    """Cut a recording that comes in blocks of any size; every frame is kept exactly once.

    The first window begins with the recording and the last one ends with it, so that no window of
    a long recording hears invented silence; a recording shorter than a window is filled up with
    zeros. The recording has ceil(samples / hop) frames. An empty one gives no windows. With a
    `FixedLayout` windows stand and are filled up as their network has it.
    """
    if isinstance(layout, FixedLayout):
        yield from _fixed_windows(blocks, layout)
        return
    size, hop = layout.window_samples, layout.hop
    buffer = np.zeros(0, np.float32)
    buffer_frame = 0  # frame of the recording at which the buffer begins
    kept = 0  # frames of the recording already in some window's keep
    for block in blocks:
        buffer = np.concatenate([buffer, np.asarray(block, np.float32)])
        # More than one window must be there: a window that might be the last is placed at the end.
        while len(buffer) > size + layout.stride * hop:
            end = buffer_frame + layout.window_frames - layout.context_frames
            yield _window(buffer[:size], buffer_frame, kept, end, layout)
            kept = end
            buffer = buffer[layout.stride * hop :]
            buffer_frame += layout.stride
    if not len(buffer):
        return
    frames = buffer_frame + -(-len(buffer) // hop)
    if len(buffer) > size:
        end = buffer_frame + layout.window_frames - layout.context_frames
        yield _window(buffer[:size], buffer_frame, kept, end, layout)
        kept = end
        last = frames - layout.window_frames
        buffer, buffer_frame = buffer[(last - buffer_frame) * hop :], last
    yield _window(buffer, buffer_frame, kept, frames, layout, is_last=True)


def _fixed_windows(
    blocks: Iterable[Float[np.ndarray, "_"]], layout: FixedLayout
) -> Iterator[Window]:
    """Windows at multiples of the stride, for as long as that lies inside the recording."""
    plan, number = layout.windowing, 0
    buffer = np.zeros(plan.lead, np.float32)  # begins where window `number` does
    for block in blocks:
        buffer = np.concatenate([buffer, np.asarray(block, np.float32)])
        # A whole window, and sound for another one after it: this is not the last.
        while len(buffer) > max(plan.samples, plan.stride + plan.lead):
            yield _fixed_window(buffer, number, layout.frames_per_window, layout)
            buffer, number = buffer[plan.stride :], number + 1
    while len(buffer) > plan.lead:
        # The part of a window that is inside the recording adds that part of its frames.
        inside = (len(buffer) - plan.lead) * layout.frames_per_window // plan.stride
        count = min(max(inside, int(number == 0)), layout.frames_per_window)
        last = len(buffer) <= plan.stride + plan.lead
        yield _fixed_window(buffer, number, count, layout, is_last=last)
        buffer, number = buffer[plan.stride :], number + 1


def _fixed_window(
    sound: np.ndarray, number: int, count: int, layout: FixedLayout, *, is_last: bool = False
) -> Window:
    plan = layout.windowing
    samples = np.zeros(plan.samples, np.float32)
    samples[: len(sound)] = sound[: plan.samples]
    first_frame = number * layout.frames_per_window - plan.first
    frames = -(-min(len(sound), plan.samples) // layout.hop)
    return Window(samples, first_frame, frames, slice(plan.first, plan.first + count), is_last)


def _window(
    sound: np.ndarray,
    first_frame: int,
    keep_from: int,
    keep_to: int,
    layout: Layout,
    *,
    is_last: bool = False,
) -> Window:
    samples = np.zeros(layout.window_samples, np.float32)
    samples[: len(sound)] = sound
    keep = slice(keep_from - first_frame, keep_to - first_frame)
    return Window(samples, first_frame, -(-len(sound) // layout.hop), keep, is_last)


class Runner:
    """A model's activations for batches of windows, compiled once, on one device or on several.

    The module is split once; its state is an argument of the compiled function, so that a call
    costs a fraction of a millisecond before the arithmetic begins. Activations come as float16,
    those that the model names in `float32_activations` as float32.
    """

    def __init__(self, model: nnx.Module, layout: AnyLayout, *, device: Where = None) -> None:
        self.layout = replace(layout, batch_size=layout.batch_size * shares(device))
        self.device = device
        graph, state = nnx.split(model)
        self._state = put_whole(state, device)
        exact = frozenset(getattr(model, "float32_activations", ()))

        def activations(
            state: nnx.State, audio: Float[jax.Array, "B N"], frames: Int[jax.Array, "B"]
        ) -> dict[str, Float[jax.Array, "B T ..."]]:
            model: Any = nnx.merge(graph, state)
            found = model.activations(audio, frames=frames)
            return {n: v if n in exact else v.astype(jnp.float16) for n, v in found.items()}

        # Any: jax.jit's result, whose cache size is not typed.
        self._activations: Any = jax.jit(on_rows(activations, device))

    @property
    def programs(self) -> int:
        """How many programs have been compiled: one, however many lengths were heard."""
        return self._activations._cache_size()

    def take_weights(self, model: nnx.Module) -> None:
        """Go on with another model of the same config, without compiling again."""
        self._state = put_whole(nnx.state(model), self.device)

    def batch(
        self, audio: Float32[np.ndarray, "B N"], frames: Int[np.ndarray, "B"]
    ) -> dict[str, jax.Array]:
        """Start computing one batch; the arrays may not be there yet when this returns.

        `frames` tells how many frames of each window are sound.
        """
        arguments = put_rows((audio, frames), self.device)
        with contextlib.nullcontext() if self.programs else mending_cache():
            return self._activations(self._state, *arguments)

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each window with its activations, in order. Windows of different jobs share batches.

        The next batch is read while the previous one is computed.
        """
        layout = self.layout
        pending: collections.deque[tuple[list[tuple[Any, Window]], dict[str, Any]]]
        pending = collections.deque()
        filled: list[tuple[Any, Window]] = []
        for item in jobs:
            filled.append(item)
            if len(filled) == layout.batch_size:
                pending.append((filled, self.batch(*_stack(filled, layout))))
                filled = []
                if len(pending) > 1:
                    yield from _results(*pending.popleft())
        if filled:
            pending.append((filled, self.batch(*_stack(filled, layout))))
        while pending:
            yield from _results(*pending.popleft())


class CarryingRunner(Runner):
    """A model that remembers what it said: each window goes on where the last one was kept to.

    So a recording gives the same activations however it is cut, and the same as a stream of it. Its
    windows follow each other and are heard one at a time, whatever the batch size of the layout.
    The model has `start(1)`, a pytree of what it remembers before a recording, and
    `carried_activations(audio, frames, carry, first, stop) -> (carry, {name: (1, T, ...)})`, which
    goes on from `carry` at frame `first` of the window and gives it back as of frame `stop`.
    """

    def __init__(
        self, model: nnx.Module, layout: Layout, *, device: jax.Device | None = None
    ) -> None:
        super().__init__(model, replace(layout, batch_size=1), device=device)
        graph, _ = nnx.split(model)
        exact = frozenset(getattr(model, "float32_activations", ()))

        @jax.jit
        def activations(state: nnx.State, carry: Any, *window: jax.Array) -> tuple:
            model: Any = nnx.merge(graph, state)
            audio, frames, first, stop = window
            carry, found = model.carried_activations(audio, frames, carry, first, stop)
            return carry, {n: v if n in exact else v.astype(jnp.float16) for n, v in found.items()}

        self._activations = activations
        self._start = jax.jit(lambda state: nnx.merge(graph, state).start(1))  # type: ignore

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each window with its activations, in order."""
        pending: tuple[list[tuple[Any, Window]], dict[str, Any]] | None = None
        heard: Any = None  # the recording whose memory `carry` is
        carry: Any = None
        for job, window in jobs:
            if carry is None or job != heard:
                heard, carry = job, self._start(self._state)
            audio, frames = _stack([(job, window)], self.layout)
            places = (np.int32(window.keep.start), np.int32(window.keep.stop))
            arguments = jax.device_put((audio, frames, *places), self.device)
            with contextlib.nullcontext() if self.programs else mending_cache():
                carry, found = self._activations(self._state, carry, *arguments)
            if pending is not None:
                yield from _results(*pending)
            pending = [(job, window)], found
        if pending is not None:
            yield from _results(*pending)


def _stack(filled: list[tuple[Any, Window]], layout: AnyLayout) -> tuple[np.ndarray, np.ndarray]:
    """A full batch; rows without a window are silent and count no frames."""
    audio = np.zeros((layout.batch_size, layout.window_samples), np.float32)
    frames = np.zeros(layout.batch_size, np.int32)
    for row, (_, window) in enumerate(filled):
        audio[row] = window.samples
        frames[row] = window.frames
    return audio, frames


def _results(
    filled: list[tuple[Any, Window]], found: dict[str, jax.Array]
) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
    arrays = {name: np.asarray(value) for name, value in found.items()}
    for row, (job, window) in enumerate(filled):
        # Copies: a view would keep the frames of the whole batch that are thrown away.
        yield job, window, {name: a[row, window.keep].copy() for name, a in arrays.items()}


def stitch(pieces: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The kept parts of one recording's windows, put end to end: name -> (T, ...).

    Empties the pieces on the way, so that hours of audio are not held twice.
    """
    return {name: np.concatenate([piece.pop(name) for piece in pieces]) for name in [*pieces[0]]}
