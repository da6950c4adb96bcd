"""Between notes and what the network reads and writes. NumPy only."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float64, UInt8

from musicjax.errors import DataError
from musicjax.models.mt3.config import MT3Config
from musicjax.models.mt3.evidence import CELLS, FAMILIES, NUM_ROLLS, ROLLS
from musicjax.notes import Decoded, Notes
from musicjax.notes.codec import Codec

_ROUNDING = 1e-6  # of a position: times that fall on a border stay on their side of it


def targets(
    notes: Notes, start_s: float, num_samples: int, config: MT3Config
) -> dict[str, np.ndarray]:
    """What is to be written of the segment that starts at `start_s` and has `num_samples` samples.

    tokens (L,) int32, the end included, zeros behind it, L = `config.target_tokens`; a target that
    does not fit is never cut: its row is zeros, which cost nothing, and left_out () uint8 is 1.
    With a frame head also rolls (S, 35, 128) uint8, at each position of the encoder: `ROLLS`,
    onsets of each family of instruments, and what sounds of each.
    """
    frames = config.num_frames(num_samples)
    written = Codec(config.codec).encode_clip(notes, start_s, frames)
    fits = len(written) <= config.target_tokens
    tokens = np.zeros(config.target_tokens, np.int32)
    if fits:
        tokens[: len(written)] = written
    labels: dict[str, np.ndarray] = {"tokens": tokens, "left_out": np.array(not fits, np.uint8)}
    if config.frame_weight:
        labels["rolls"] = _rolls(notes, start_s, num_samples, config)
    return labels


def _rolls(
    notes: Notes, start_s: float, num_samples: int, config: MT3Config
) -> UInt8[np.ndarray, "S R P"]:
    """What happens in each position's frames: 1 where it does."""
    positions = config.num_positions(num_samples)
    notes = notes.sustained()
    begin = _positions(notes.onset_s - start_s, config)
    # A note sounds in the position in which it ends, too: the next one is the first without it.
    end = _positions(notes.offset_s - start_s, config) + 1
    rolls = np.zeros((positions, NUM_ROLLS, CELLS), np.uint8)
    here = (end > 0) & (begin < positions)
    drum = here & notes.is_drum & (begin >= 0)
    rolls[begin[drum], ROLLS.index("drum"), notes.pitch[drum]] = 1
    pitched = here & ~notes.is_drum
    first, pitch, family = begin[pitched], notes.pitch[pitched], notes.program[pitched] // 8
    new = first >= 0
    rolls[first[new], ROLLS.index("onset"), pitch[new]] = 1
    rolls[first[new], len(ROLLS) + family[new], pitch[new]] = 1
    # Each note's cells one after the other: cell i of all is cell i - (those of notes before).
    start = np.maximum(first, 0)
    length = np.maximum(np.minimum(end[pitched], positions) - start, 0)
    before = np.cumsum(length) - length
    at = np.arange(length.sum()) + np.repeat(start - before, length)
    pitch, family = np.repeat(pitch, length), np.repeat(family, length)
    rolls[at, ROLLS.index("frame"), pitch] = 1
    rolls[at, len(ROLLS) + FAMILIES + family, pitch] = 1
    return rolls


def _positions(time_s: Float64[np.ndarray, " notes"], config: MT3Config) -> np.ndarray:
    """The position of the step that a time is written as, so that both agree on borders."""
    steps = np.rint(time_s * config.codec.steps_per_second)
    rate = config.codec.frames_per_second / config.codec.steps_per_second / config.stack_frames
    return np.floor(steps * rate + _ROUNDING).astype(np.int64)


def decode(
    activations: Mapping[str, np.ndarray], config: MT3Config, *, drums: bool = True
) -> Decoded:
    """The notes of a recording, with programs and drums, from the tokens of its segments.

    activations: `tokens` (segments, L), one segment after the other, as the recording's
    transcription gives them. Tokens that make no sense where they stand are passed over, as in the
    original, and counted in the report. Without `drums`, hits are left out.
    """
    if "tokens" not in activations:
        raise DataError(
            f"there are no tokens among {', '.join(activations) or 'no activations'}; MT3 writes "
            "them segment by segment: let a Transcriber hear the recording."
        )
    decoded = Codec(config.codec).decode(np.asarray(activations["tokens"]))
    if drums:
        return decoded
    return replace(decoded, notes=decoded.notes[~decoded.notes.is_drum])
