"""Tokens back to notes, segment after segment, whatever the tokens are.

A token that makes no sense where it stands is counted by kind and passed over; nothing raises.
"""

from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Int64, Integer

from musicjax.notes.encoding import boundary_steps
from musicjax.notes.notes import Notes
from musicjax.notes.vocabulary import (
    EOS,
    MIDI_VALUES,
    UNKNOWN,
    CodecConfig,
    TokenClass,
    vocabulary_of,
)

FIRST_VELOCITY = 100  # of notes before any velocity is said, and of all notes without velocities
MIN_NOTE_S = 0.01  # rounding to steps can leave nothing of a note; drum hits last so long too

_PAD, _EOS, _NEVER, _SHIFT, _PITCH, _OFF, _ON, _TIE, _PROGRAM, _DRUM = map(int, TokenClass)
_AFTER_TIES = np.isin(np.arange(len(TokenClass)), (_SHIFT, _OFF, _ON, _DRUM))


@dataclass(frozen=True)
class DecodingReport:
    """Tokens that were not understood, by kind, and those that were dropped; 0 is good.

    unknown: no event, such as padding before the end. unexpected: a class that the language has
    but this profile does not use. backwards: earlier than what was said before. untied: a tie to a
    pitch that does not sound. tied_twice: a tie said already. unstarted: the end of a pitch that
    does not sound. silent_drum: a drum hit at velocity 0. stray_tie: the end of a tie section that
    is over. dropped: events later than the beginning of the next segment, which has its own say
    about that time; they are not invalid.
    """

    unknown: int = 0
    unexpected: int = 0
    backwards: int = 0
    untied: int = 0
    tied_twice: int = 0
    unstarted: int = 0
    silent_drum: int = 0
    stray_tie: int = 0
    dropped: int = 0
    cut: int = 0

    @property
    def invalid(self) -> int:
        """All invalid events together, as the original counts them."""
        return sum(asdict(self).values()) - self.dropped - self.cut

    @property
    def unbegun(self) -> int:
        """Ties and ends of notes that never began.

        Each makes sense; the segment in which its note began did not hear that.
        """
        return self.untied + self.unstarted


@dataclass(frozen=True, eq=False)
class Decoded:
    """The notes of a recording in order, and what was wrong with their tokens."""

    notes: Notes
    report: DecodingReport


class TokenDecoder:
    """Reads the tokens of one recording's segments in order of time.

    >>> decoder = TokenDecoder(config)
    >>> decoder.segment(first_tokens, start_frame=0, next_frame=256)
    >>> decoder.sounding()  # what the next segment may tie
    >>> decoder.segment(second_tokens, start_frame=256)
    >>> decoded = decoder.finish()

    Notes that sound go on into the next segment until they are ended there, or, with ties, are not
    among those that it says go on. `sounding`: programs and pitches of notes that sound before the
    first segment, and count as begun at `since_s`.
    """

    def __init__(
        self,
        config: CodecConfig,
        sounding: Integer[np.ndarray, "notes 2"] | None = None,
        since_s: float = 0.0,
    ) -> None:
        self.config = config
        self._vocabulary = vocabulary_of(config)
        bins = range(config.velocity_bins + 1)
        self._velocities = np.array([self._vocabulary.bin_velocity(bin_) for bin_ in bins])
        self._counts = dict.fromkeys(DecodingReport.__dataclass_fields__, 0)
        self._time_s = 0.0
        self._velocity, self._program = FIRST_VELOCITY, 0
        # Notes that sound, by 128 * program + pitch, with onset and velocity; and those that ended.
        self._active: dict[int, tuple[float, int]] = {}
        self._ended: list[tuple[float, int, int, float]] = []
        self._struck = [np.zeros((3, 0))]  # time, key and velocity of drums, or of bare onsets
        for program, pitch in () if sounding is None else sounding.tolist():
            self._active[MIDI_VALUES * program + pitch] = since_s, FIRST_VELOCITY

    def segment(
        self, tokens: Integer[np.ndarray, " L"], start_frame: int, next_frame: int | None = None
    ) -> None:
        """Read the ids of one segment; what follows an EOS is not looked at.

        `start_frame` is its first frame in the recording, and `next_frame` that of the segment
        after it, whose time it leaves alone; None for the last one.
        """
        quirks = self.config.quirks
        tokens = np.asarray(tokens)
        ends = np.flatnonzero(tokens == EOS)
        self._counts["cut"] += not len(ends)
        tokens = tokens[: ends[0]] if len(ends) else tokens
        known = (tokens >= 0) & (tokens < self._vocabulary.rows)
        tokens = np.where(known, tokens, UNKNOWN).astype(np.int64)
        if self.config.ties and not quirks.strict_ties:
            tokens = self._with_tie(tokens)
        kinds, values, time_s = self._events(tokens, start_frame, next_frame)
        if self.config.onsets_only:
            pitch = kinds == _PITCH
            self._counts["unexpected"] += int((~pitch).sum())
            loud = np.full(int(pitch.sum()), FIRST_VELOCITY)
            self._struck.append(np.stack([time_s[pitch], values[pitch], loud]))
            return
        if not quirks.carry_state:
            self._velocity, self._program = FIRST_VELOCITY, 0
        program = _last_said(kinds == _PROGRAM, values, self._program)
        says_velocity = (kinds == _OFF) | (kinds == _ON)
        bins = np.where(says_velocity, values, 0)
        velocity = _last_said(says_velocity, self._velocities[bins], self._velocity)
        if len(kinds):
            self._program, self._velocity = int(program[-1]), int(velocity[-1])
        hit = kinds == _DRUM
        self._counts["silent_drum"] += int((hit & (velocity == 0)).sum())
        hit &= velocity > 0
        self._struck.append(np.stack([time_s[hit], values[hit], velocity[hit]]))
        note = (kinds == _PITCH) | (kinds == _TIE)
        key = np.where(kinds == _TIE, -1, program * MIDI_VALUES + values)
        self._sound(key[note].tolist(), velocity[note].tolist(), time_s[note].tolist())

    def _with_tie(self, tokens: Int64[np.ndarray, " L"]) -> Int64[np.ndarray, " M"]:
        """The tokens with the end of the tie section put in where it is missing."""
        kinds = self._vocabulary.classes[tokens]
        begins = np.flatnonzero(_AFTER_TIES[kinds])
        if not len(begins) or (kinds[: begins[0]] == _TIE).any():
            return tokens
        return np.insert(tokens, begins[0], self._vocabulary.tie)

    def _events(
        self, tokens: Int64[np.ndarray, " L"], start_frame: int, next_frame: int | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes, values and times of what happens, in order; the rest is counted."""
        kinds, values = self._vocabulary.classes[tokens], self._vocabulary.values[tokens]
        is_shift, is_event = kinds == _SHIFT, kinds > _SHIFT
        # Shifts that follow each other add up; an event, though not an unknown id, ends the sum.
        total = np.cumsum(np.where(is_shift, values, 0))
        steps = total - np.maximum.accumulate(np.where(is_event, total, 0))
        steps = _last_said(is_shift, steps, 0)
        # One of the two starts is 0, so a time is one sum, rounded as the original rounds it.
        rate = self.config.steps_per_second
        start_s, start_step = segment_start(start_frame, self.config)
        time_s = start_s + (start_step + steps) / rate
        if next_frame is not None:
            next_s, next_step = segment_start(next_frame, self.config)
            late = np.flatnonzero(is_shift & (time_s > next_s + next_step / rate))
            if len(late) and next_s + next_step > 0:  # a limit of 0 is none, as in the original
                self._counts["dropped"] += len(tokens) - int(late[0])
                kinds, is_event = kinds[: late[0]], is_event[: late[0]]
        self._counts["unknown"] += int((kinds < _SHIFT).sum())
        place = np.flatnonzero(is_event)
        if not self.config.onsets_only:
            latest_s = np.maximum.accumulate(np.append(self._time_s, time_s[place]))
            backwards = time_s[place] < latest_s[:-1]
            self._counts["backwards"] += int(backwards.sum())
            place, self._time_s = place[~backwards], float(latest_s[-1])
        return kinds[place], values[place], time_s[place]

    def _sound(self, keys: list[int], velocities: list[int], times_s: list[float]) -> None:
        """Begin, end and tie notes; -1 for a key ends the tie section."""
        active, ended, counts = self._active, self._ended, self._counts
        tying, tied = self.config.ties, set[int]()
        known_as: dict[int, int] = {}  # what this segment calls notes that began under another name
        for key, velocity, time_s in zip(keys, velocities, times_s, strict=True):
            if key < 0:
                if not tying:
                    counts["stray_tie"] += 1
                    continue
                tying = False
                for silent in [other for other in active if other not in tied]:
                    ended.append((*active.pop(silent), silent, time_s))
            elif tying:
                if key not in active and not self.config.quirks.exact_ties:
                    known_as[key] = key = self._same_pitch(key, tied)
                if key not in active:
                    counts["untied"] += 1
                elif key in tied:
                    counts["tied_twice"] += 1
                tied.add(key)
            else:
                begun = known_as.pop(key, key)
                if begun in active:
                    ended.append((*active.pop(begun), begun, time_s))
                elif not velocity:
                    counts["unstarted"] += 1
                if velocity:
                    active[key] = time_s, velocity

    def _same_pitch(self, key: int, tied: set[int]) -> int:
        """The sounding note of this pitch under another program, or the key itself."""
        others = (k for k in self._active if k % MIDI_VALUES == key % MIDI_VALUES)
        return next((k for k in others if k not in tied), key)

    def sounding(self) -> Int64[np.ndarray, "notes 2"]:
        """Programs and pitches that sound now, in the order of a tie section."""
        keys = np.array(sorted(self._active), dtype=np.int64)
        return np.stack([keys // MIDI_VALUES, keys % MIDI_VALUES], axis=1)

    def finish(self, end_s: float | None = None) -> Decoded:
        """End what sounds, and give all notes, sorted.

        The original ends notes that are never ended at the last event of the recording; with
        `end_s`, the recording's length in seconds, they last until then.
        """
        begun = [onset_s + MIN_NOTE_S for onset_s, _ in self._active.values()]
        end_s = max(self._time_s if end_s is None else end_s, *begun, 0.0)
        for key in list(self._active):
            self._ended.append((*self._active.pop(key), key, end_s))
        onset_s, velocity, keys, offset_s = np.array(self._ended, dtype=np.float64).reshape(-1, 4).T
        program, pitch = np.divmod(keys, MIDI_VALUES)
        offset_s = np.maximum(offset_s, onset_s + MIN_NOTE_S)
        struck_s, struck, loud = np.concatenate(self._struck, axis=1)
        drum = not self.config.onsets_only
        notes = Notes.concat(
            [
                Notes.from_arrays(onset_s, offset_s, pitch, velocity, program),
                Notes.from_arrays(struck_s, struck_s + MIN_NOTE_S, struck, loud, is_drum=drum),
            ]
        )
        return Decoded(notes.sorted(), DecodingReport(**self._counts))


def _last_said(says: np.ndarray, values: np.ndarray, before: int) -> np.ndarray:
    """At each place the value of the last place that says one, itself included, or `before`."""
    last = np.maximum.accumulate(np.where(says, np.arange(len(says)), -1))
    return np.where(last >= 0, values[last], before)


def segment_start(frame: int, config: CodecConfig) -> tuple[float, int]:
    """When a segment begins, as seconds and steps to be added: see `Quirks.start_rounding`."""
    rounding = config.quirks.start_rounding
    if rounding == "exact":
        return 0.0, int(boundary_steps(np.array([frame]), config)[0])
    kind = np.float64 if rounding == "float64" else np.float32
    time_s = kind(frame / config.frames_per_second)
    return float(time_s - time_s % kind(1 / config.steps_per_second)), 0
