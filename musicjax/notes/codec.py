"""Notes as the tokens that a sequence model writes, and back: MT3's language in one object."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Integer

from musicjax.errors import DataError
from musicjax.notes.decoding import Decoded, TokenDecoder
from musicjax.notes.encoding import SegmentTokens, Timeline, clip_timeline
from musicjax.notes.grammar import Grammar, make_grammar
from musicjax.notes.notes import Notes
from musicjax.notes.vocabulary import EOS, CodecConfig, TokenClass, Vocabulary, vocabulary_of

_AFTER_TIES = (TokenClass.TIE, TokenClass.SHIFT, TokenClass.OFF, TokenClass.ON, TokenClass.DRUM)


@dataclass(frozen=True)
class Codec:
    """Encodes recordings and clips, decodes tokens, and knows what may follow what.

    >>> codec = Codec(codec_config("mt3"))
    >>> encoded = codec.encode(notes, num_frames=1251)  # five segments of 256 frames
    >>> codec.vocabulary.names(encoded[0])
    ['tie', 'shift 50', 'program 0', 'on 1', 'pitch 60', 'shift 100', 'off 0', 'pitch 60', 'eos']
    >>> codec.decode(encoded).notes
    """

    config: CodecConfig

    @property
    def vocabulary(self) -> Vocabulary:
        """Which number stands for which event."""
        return vocabulary_of(self.config)

    def segments(self, num_frames: int) -> Int64[np.ndarray, "segments 2"]:
        """First frames, and frames after the last, of a recording's segments; the last is short."""
        starts = np.arange(0, num_frames, self.config.segment_frames)
        ends = np.minimum(starts + self.config.segment_frames, num_frames)
        return np.stack([starts, ends], axis=1)

    def encode(self, notes: Notes, num_frames: int) -> SegmentTokens:
        """Tokens of a recording of so many frames, one segment after the other.

        Pedals are applied first. What the language cannot say is counted in the report.
        """
        starts, ends = self.segments(num_frames).T
        return self.timeline(notes).tokens(starts, ends, num_frames)

    def encode_clip(
        self, notes: Notes, start_s: float, num_frames: int | None = None
    ) -> Int32[np.ndarray, " L"]:
        """Tokens of one segment that begins anywhere in a recording, as training asks for it.

        `num_frames` is the segment's length, the config's when None. Costs hardly more than the
        notes of the clip. A training target must not be cut: see `SegmentTokens.padded` for what to
        do where it is longer than `config.max_tokens`.
        """
        num_frames = self.config.segment_frames if num_frames is None else num_frames
        end_s = start_s + num_frames / self.config.frames_per_second
        timeline = clip_timeline(notes, start_s, end_s, self.config)
        return timeline.tokens(np.zeros(1, dtype=np.int64), np.array([num_frames])).tokens

    def timeline(self, notes: Notes) -> Timeline:
        """The recording sorted once, for tokens of many of its stretches."""
        return Timeline(notes, self.config)

    def decode(
        self,
        segments: Integer[np.ndarray, "segments L"] | Sequence[np.ndarray] | SegmentTokens,
        start_frames: Integer[np.ndarray, " segments"] | None = None,
        *,
        end_s: float | None = None,
    ) -> Decoded:
        """The notes that the token ids of a recording's segments tell, and what was wrong in them.

        Segments may be rows of ids, each read up to its EOS, or arrays of any lengths, in any
        order. They begin at `start_frames`, or follow each other as `segments()` has them. With
        `end_s` notes that are never ended last until then; see `TokenDecoder.finish`.
        """
        if start_frames is None:
            start_frames = np.arange(len(segments)) * self.config.segment_frames
        if len(start_frames) != len(segments):
            raise DataError(
                f"There are {len(segments)} segments but {len(start_frames)} start_frames; they "
                "go in pairs."
            )
        rows = list(segments)
        order = np.argsort(start_frames, kind="stable")
        frames = start_frames[order].tolist()
        decoder = TokenDecoder(self.config)
        following = [*frames[1:], None]
        for place, frame, limit in zip(order.tolist(), frames, following, strict=False):
            decoder.segment(rows[place], frame, limit)
        return decoder.finish(end_s)

    def decode_clip(
        self, tokens: Integer[np.ndarray, " L"], num_frames: int | None = None
    ) -> Notes:
        """The notes that one segment's tokens tell when nothing is known of what was before.

        Notes that it ties count as begun one second before the segment, and notes that it does not
        end last until one second after it, so that `encode_clip` writes the same tokens again.
        """
        frames = self.config.segment_frames if num_frames is None else num_frames
        decoder = TokenDecoder(self.config, self.ties(tokens), -1.0)
        decoder.segment(tokens, 0)
        return decoder.finish(frames / self.config.frames_per_second + 1.0).notes

    def ties(self, tokens: Integer[np.ndarray, " L"]) -> Int64[np.ndarray, "notes 2"]:
        """Programs and pitches that a segment's tokens tie."""
        tokens = np.asarray(tokens).astype(np.int64)
        ends = np.flatnonzero(tokens == EOS)
        tokens = tokens[: ends[0]] if len(ends) else tokens
        kinds, values = self.vocabulary.classes[tokens], self.vocabulary.values[tokens]
        later = np.flatnonzero(np.isin(kinds, _AFTER_TIES))
        stop = later[0] if len(later) else 0  # without its end nothing is a tie
        program, found = 0, []
        for kind, value in zip(kinds[:stop].tolist(), values[:stop].tolist(), strict=True):
            if kind == TokenClass.PROGRAM:
                program = value
            elif kind == TokenClass.PITCH:
                found.append((program, value))
        return np.array(found, np.int64).reshape(-1, 2)

    def tie_section(self, sounding: Integer[np.ndarray, "notes 2"]) -> Int32[np.ndarray, " L"]:
        """The tokens that say which (program, pitch) go on, the closing tie included.

        `TokenDecoder.sounding()` gives them; a decoder that is made to begin with these tokens
        keeps faith with the segment before.
        """
        keys = sounding[np.lexsort((sounding[:, 1], sounding[:, 0]))]
        pairs = np.stack([self.vocabulary.program(keys[:, 0]), self.vocabulary.pitch(keys[:, 1])])
        said = np.ones(pairs.shape, dtype=bool)
        said[0, 1:] = keys[1:, 0] != keys[:-1, 0]
        said[0] &= self.config.granularity != "flat"
        return np.append(pairs.T[said.T], self.vocabulary.tie).astype(np.int32)

    def grammar(self, segment_frames: int | None = None) -> Grammar:
        """Which token may follow which in a segment of so many frames; see `Grammar`."""
        return make_grammar(self.config, segment_frames)
