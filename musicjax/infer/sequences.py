"""Recordings through a model that writes each segment down as tokens.

Segments follow each other without overlap, each is heard alone, and its tokens are written in a
decoding slot that goes to the next segment as soon as they end (`musicjax.decode.slots`), whichever
recording that is of. So one long segment holds up no other, and nothing is compiled anew for
another length or number of recordings.

The model has

    segment_samples                     samples of a segment
    generation, grammar                 a `GenerateConfig`, and which tokens may follow or None
    prefill(audio (B, N), lengths (B,), max_length) -> cache    hears; lengths are samples of sound
    step(tokens (B,), cache) -> (logits (B, V), cache)          writes

What was heard of a recording is `tokens` (segments, L), int32, a row a segment with its end token
and zeros behind it.
"""

import collections
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx

from musicjax.decode import GrammarMask, Segment, SlotDecoder, Tally
from musicjax.infer.devices import mending_cache
from musicjax.infer.long import Window
from musicjax.infer.segments import Segmentation


class SequenceRunner:
    """Tokens of recordings, in the place of a `Runner`'s activations. Compiled once.

    The state of the model is an argument of the compiled functions. `tally` counts the tokens of
    the run that is going on, or that was the last.

    Args:
      model: see the module's text.
      slots: segments that are written at once.
      grammar: which tokens may follow which; None leaves the choice to the model.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        grammar: GrammarMask | None = None,
        device: jax.Device | None = None,
    ) -> None:
        samples = model.segment_samples
        self.layout = Segmentation(samples, samples, 0, slots, beyond=1)
        self.device = device
        self.tally = Tally()
        self._most = model.generation.max_length
        graph, state = nnx.split(model)
        self._state = jax.device_put(state, device)

        def prefill(state: nnx.State, inputs: Any, max_length: int) -> Any:
            return nnx.merge(graph, state).prefill(inputs["audio"], inputs["length"], max_length)

        def step(state: nnx.State, tokens: jax.Array, cache: Any) -> Any:
            return nnx.merge(graph, state).step(tokens, cache)

        self._decoder = SlotDecoder(prefill, step, model.generation, slots=slots, grammar=grammar)

    @property
    def programs(self) -> int:
        """How many programs have been compiled: two, and one for each size of cache needed."""
        return self._decoder.compiled

    def take_weights(self, model: nnx.Module) -> None:
        """Go on with another model of the same config, without compiling again."""
        self._state = jax.device_put(nnx.state(model), self.device)

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each segment with its tokens, in order. Segments of different jobs share slots."""
        waiting: collections.deque[tuple[Any, Window]] = collections.deque()

        def segments() -> Iterator[Segment]:
            for job, window in jobs:
                waiting.append((job, window))
                length = np.asarray(window.frames, np.int32)  # of a segment: its samples of sound
                yield Segment({"audio": window.samples, "length": length})

        run = self._decoder.decode(self._state, segments())
        self.tally = run.tally
        while True:
            with contextlib.nullcontext() if self.programs else mending_cache():
                decoded = next(run, None)
            if decoded is None:
                return
            row = np.zeros((1, self._most), np.int32)
            row[0, : len(decoded.tokens)] = decoded.tokens
            yield *waiting.popleft(), {"tokens": row}
