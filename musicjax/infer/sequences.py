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
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int32

from musicjax.decode import Decoded, GrammarMask, Segment, SlotDecoder, Tally
from musicjax.infer.devices import Where, mending_cache, put_whole, shares
from musicjax.infer.long import Window
from musicjax.infer.segments import Segmentation
from musicjax.notes import Codec, TokenDecoder
from musicjax.notes.agreement import AgreementConfig, Votes, is_settled, states, tie_prompt

# Neither depends on slots or on other recordings, so what comes out does not either.
_CHAPTER = 512  # segments that are worked through before any of them is given
_STRAND = 8  # segments that are written again in order; many strands go side by side


class SequenceRunner:
    """Tokens of recordings, in the place of a `Runner`'s activations. Compiled once.

    The state of the model is an argument of the compiled functions. `tally` counts the tokens of
    the run that is going on, or that was the last.

    Args:
      model: see the module's text.
      slots: segments that are written at once on each device.
      grammar: which tokens may follow which; None leaves the choice to the model.
      biased: width of the bias that segments may bring, see `SlotDecoder`.
    """

    def __init__(
        self,
        model: Any,
        *,
        slots: int,
        grammar: GrammarMask | None = None,
        biased: int | None = None,
        device: Where = None,
    ) -> None:
        slots *= shares(device)
        samples = model.segment_samples
        self.layout = Segmentation(samples, samples, 0, slots, beyond=1)
        self.device = device
        self.tally = Tally()
        self._most = model.generation.max_length
        graph, state = nnx.split(model)
        self._state = put_whole(state, device)

        def prefill(state: nnx.State, inputs: Any, max_length: int) -> Any:
            return nnx.merge(graph, state).prefill(inputs["audio"], inputs["length"], max_length)

        def step(state: nnx.State, tokens: jax.Array, cache: Any) -> Any:
            return nnx.merge(graph, state).step(tokens, cache)

        self._decoder = SlotDecoder(
            prefill,
            step,
            model.generation,
            slots=slots,
            grammar=grammar,
            biased=biased,
            mesh=device if isinstance(device, Mesh) else None,
        )

    @property
    def programs(self) -> int:
        """How many programs have been compiled: two, and one for each size of cache needed."""
        return self._decoder.compiled

    def take_weights(self, model: nnx.Module) -> None:
        """Go on with another model of the same config, without compiling again."""
        self._state = put_whole(nnx.state(model), self.device)

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each segment with its tokens, in order. Segments of different jobs share slots."""
        waiting: collections.deque[tuple[Any, Window]] = collections.deque()

        def segments() -> Iterator[Segment]:
            for job, window in jobs:
                waiting.append((job, window))
                yield _segment(window)

        for decoded in self._written(segments()):
            yield *waiting.popleft(), {"tokens": self._row(decoded)[None]}

    def _written(self, segments: Iterable[Segment]) -> Iterator[Decoded]:
        """What comes of the segments, in order; the first compilation mends a damaged cache."""
        run = self._decoder.decode(self._state, segments)
        self.tally = run.tally
        while True:
            with contextlib.nullcontext() if self.programs else mending_cache():
                decoded = next(run, None)
            if decoded is None:
                return
            yield decoded

    def _row(self, decoded: Decoded) -> Int32[np.ndarray, " L"]:
        row = np.zeros(self._most, np.int32)
        row[: len(decoded.tokens)] = decoded.tokens
        return row


def _segment(window: Window, **known: Any) -> Segment:
    length = np.asarray(window.frames, np.int32)  # of a segment: its samples of sound
    return Segment({"audio": window.samples, "length": length}, **known)


class AgreeingRunner(SequenceRunner):
    """The same, but segments of a recording agree on who plays and what goes on.

    Each is written alone first. Then those that do not say what the recording as a whole makes
    likely are written once more (`musicjax.notes.agreement`): with a bias for the programs that
    were heard often, and beginning with the notes that sound before them. What sounds is known
    from the segment before as it was written the second time, so the second time goes through
    stretches of a recording side by side, and within a stretch in order. Recordings are worked
    through in chapters of some minutes, so that memory is bounded; votes are carried on.

    The model also has `config.codec`, its language. `revised` counts segments that were written
    again by the run that is going on, or that was the last, and `revised_in_all` by all of them.
    """

    def __init__(
        self,
        model: Any,
        agreement: AgreementConfig,
        *,
        slots: int,
        grammar: GrammarMask | None = None,
        device: Where = None,
    ) -> None:
        self.codec, self.agreement = Codec(model.config.codec), agreement
        rows = self.codec.vocabulary.rows
        super().__init__(model, slots=slots, grammar=grammar, biased=rows, device=device)
        self.revised = self.revised_in_all = 0

    def run(
        self, jobs: Iterable[tuple[Any, Window]]
    ) -> Iterator[tuple[Any, Window, dict[str, np.ndarray]]]:
        """Each segment with its tokens, in order, chapter after chapter."""
        self.revised = 0
        songs: dict[Any, _Song] = {}
        for chapter in _chapters(jobs):
            rows = [self._row(d) for d in self._written(_segment(w) for _, w in chapter)]
            tally = self.tally
            self._revise(chapter, rows, songs)
            self.tally = tally
            for (job, window), row in zip(chapter, rows, strict=True):
                if window.is_last:
                    songs.pop(job, None)
                yield job, window, {"tokens": row[None]}

    def _revise(
        self,
        chapter: list[tuple[Any, Window]],
        rows: list[np.ndarray],
        songs: dict[Any, "_Song"],
    ) -> None:
        """Write again, into `rows`, what does not agree with the rest of its recording."""
        strands: list[_Strand] = []
        for job, group in itertools.groupby(range(len(chapter)), key=lambda i: chapter[i][0]):
            places = list(group)
            song = songs.setdefault(job, _Song(self.codec, self.agreement))
            strands += song.strands(places, [rows[i] for i in places])
        for number in range(_STRAND):
            told = [strand.told(number, rows) for strand in strands]
            again = [(s, t) for s, t in zip(strands, told, strict=True) if t is not None]
            written = self._written(
                _segment(chapter[s.places[number]][1], prompt=t[0], bias=t[1]) for s, t in again
            )
            for (strand, _), decoded in zip(again, written, strict=True):
                rows[strand.places[number]] = self._row(decoded)
            self.revised += len(again)
            self.revised_in_all += len(again)
            for strand in strands:
                strand.go_on(number, rows)


def _chapters(jobs: Iterable[tuple[Any, Window]]) -> Iterator[list[tuple[Any, Window]]]:
    """Segments in groups; a recording is divided only after each `_CHAPTER` of its own segments."""
    chapter: list[tuple[Any, Window]] = []
    begun = 0  # segments of the newest recording since it was divided
    for job, window in jobs:
        begun = 1 if chapter and chapter[-1][0] != job else begun + 1
        chapter.append((job, window))
        if window.is_last or begun == _CHAPTER:
            begun = 0
            if len(chapter) >= _CHAPTER:
                yield chapter
                chapter = []
    if chapter:
        yield chapter


class _Song:
    """What is known of one recording from chapter to chapter."""

    def __init__(self, codec: Codec, config: AgreementConfig) -> None:
        self.votes = Votes(codec, config)
        self.sounding: np.ndarray | None = None  # when the chapter begins

    def strands(self, places: list[int], rows: list[np.ndarray]) -> "list[_Strand]":
        """Stretches of the recording, which begin as the first writing left it."""
        for row in rows:
            self.votes.count(row)
        before = states(self.votes.codec, rows, self.sounding)
        self.sounding = before[-1]
        bias = self.votes.bias()
        starts = range(0, len(places), _STRAND)
        return [_Strand(self.votes, places[i : i + _STRAND], before[i], bias) for i in starts]


class _Strand:
    """A stretch of a recording that is written again in order."""

    def __init__(
        self, votes: Votes, places: list[int], sounding: np.ndarray, bias: np.ndarray
    ) -> None:
        self.places, self.bias = places, bias
        self._codec, self._ties = votes.codec, votes.config.ties
        self._decoder = TokenDecoder(votes.codec.config, sounding)

    def told(
        self, number: int, rows: list[np.ndarray]
    ) -> tuple[np.ndarray | None, np.ndarray] | None:
        """Prompt and bias of the segment of this number, if it is to be written again."""
        if number >= len(self.places):
            return None
        row, prompt = rows[self.places[number]], None
        if self._ties:
            prompt = tie_prompt(self._codec, row, self._decoder.sounding())
        return None if is_settled(self._codec, row, prompt, self.bias) else (prompt, self.bias)

    def go_on(self, number: int, rows: list[np.ndarray]) -> None:
        """Read the segment of this number as it is written now."""
        if number < len(self.places):
            frames = self._codec.config.segment_frames
            start = number * frames
            self._decoder.segment(rows[self.places[number]], start, start + frames)
