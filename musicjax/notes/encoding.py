"""Notes to tokens: a whole recording at once, or any stretch of it.

Notes become a timeline of events: all ends of pitched notes, then all beginnings, in order of time,
so that at one moment an end comes before a beginning; notes of one moment go by drum, program and
pitch. Times are then rounded to steps of 10 ms. A segment of frames owns the events from the step
at or before its first frame up to the one at or before the first frame of the next. Its tokens are

    program pitch pitch program pitch tie      what goes on from before (only with ties)
    shift program velocity pitch ... shift ... what happens, shifts counted from the segment's start
    eos

where a program or velocity is only said when it differs from the last one said in the segment, and
drum hits have a velocity but no program and no end.

All of it is done on arrays. A recording is sorted once (`Timeline`); the tokens of any of its
segments are then gathered from it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int32, Int64, Integer

from musicjax.errors import DataError
from musicjax.notes.notes import Notes
from musicjax.notes.programs import coarser_programs
from musicjax.notes.vocabulary import EOS, MIDI_VALUES, CodecConfig, vocabulary_of

MARGIN_S = 0.1  # beyond a clip, so that no rounding to steps or frames reaches past what is kept


@dataclass(frozen=True)
class EncodingReport:
    """What could not be said as it was given; every count is of notes and 0 is good.

    zero_length: ended where they began; encoded as beginning and ending at one step, which is
        decoded as 10 ms. silent: had velocity 0, which would read as an end; encoded as the
        softest. overlapping: began while their pitch and program still sounded (see
        `Quirks.overlaps`). before_start: over before time 0, not encoded. after_end: began after
        the last frame of the recording (see `Quirks.late_events`).
    """

    notes: int = 0
    zero_length: int = 0
    silent: int = 0
    overlapping: int = 0
    before_start: int = 0
    after_end: int = 0


@dataclass(frozen=True, eq=False)
class SegmentTokens:
    """Token ids of several segments end to end, each with its own length and closed by EOS."""

    tokens: Int32[np.ndarray, " tokens"]
    lengths: Int64[np.ndarray, " segments"]
    report: EncodingReport

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Int32[np.ndarray, " L"]:
        """The tokens of one segment."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        end = int(self.lengths[: index % len(self) + 1].sum())
        return self.tokens[end - int(self.lengths[index]) : end]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(np.split(self.tokens, np.cumsum(self.lengths)[:-1]) if len(self) else [])

    def padded(
        self, max_tokens: int
    ) -> tuple[Int32[np.ndarray, "segments L"], Bool[np.ndarray, " segments"]]:
        """Segments as rows of `max_tokens` ids, and which of them fit.

        A segment is never cut: one that is longer becomes a row of padding, which has no part in
        the loss, and False in the second array. Count those and say so; the original stops there.
        """
        if max_tokens < 1:
            raise DataError(f"max_tokens must be at least 1; got {max_tokens}.")
        fits = self.lengths <= max_tokens
        rows = np.zeros((len(self), max_tokens), dtype=np.int32)
        filled = np.arange(max_tokens) < np.where(fits, self.lengths, 0)[:, None]
        rows[filled] = self.tokens[np.repeat(fits, self.lengths)]
        return rows, fits


def boundary_steps(
    frames: Integer[np.ndarray, " frames"], config: CodecConfig
) -> Int64[np.ndarray, " frames"]:
    """The last step that is not after each frame's time: the step where a segment begins."""
    time_s = frames / config.frames_per_second
    step = np.floor(time_s * config.steps_per_second).astype(np.int64)
    # The product may round across a step; the comparison of the quotients decides.
    step += (step + 1) / config.steps_per_second <= time_s
    step -= step / config.steps_per_second > time_s
    return step


class Timeline:
    """The events of a recording in order of time, from which tokens of any segment are made.

    Pedals are applied first (`notes.sustained()`). Notes that began before time 0 and still sound
    then are tied into a segment that begins at 0.
    """

    def __init__(self, notes: Notes, config: CodecConfig) -> None:
        self.config = config
        self.vocabulary = vocabulary_of(config)
        if notes.pedal is not None:
            notes = notes.sustained()
        key = _keys(notes, config)
        order = np.argsort(notes.onset_s, kind="stable")
        order = order[np.argsort(key[order].astype(np.uint16), kind="stable")]
        key, drum = key[order], notes.is_drum[order]
        onset_s, offset_s = notes.onset_s[order], notes.offset_s[order]
        pitched = ~drum & (not config.onsets_only)
        instant = offset_s <= onset_s
        offset_s = np.where(instant, np.nextafter(onset_s, np.inf), offset_s)
        met = (key[1:] == key[:-1]) & (offset_s[:-1] > onset_s[1:])
        keep = np.ones(len(key), dtype=bool)
        if not config.quirks.overlaps:
            offset_s = np.append(np.where(met, onset_s[1:], offset_s[:-1]), offset_s[-1:])
            keep = onset_s < offset_s
        self._counted = EncodingReport(
            notes=len(notes),
            zero_length=int((instant & pitched).sum()),
            silent=int((notes.velocity == 0).sum()),
            overlapping=int((met & pitched[1:]).sum()),
        )
        bins = self.vocabulary.velocity_bin(np.maximum(notes.velocity[order], 1))
        self._set_events(key[keep], drum[keep], bins[keep], onset_s[keep], offset_s[keep])

    def _set_events(
        self,
        key: Int64[np.ndarray, " notes"],
        drum: Bool[np.ndarray, " notes"],
        velocity_bin: Int64[np.ndarray, " notes"],
        onset_s: Float64[np.ndarray, " notes"],
        offset_s: Float64[np.ndarray, " notes"],
    ) -> None:
        """Ends and beginnings by unrounded time, and the tokens of each."""
        config, words = self.config, self.vocabulary
        ended = np.flatnonzero(~drum) if not config.onsets_only else np.zeros(0, dtype=np.int64)
        note = np.concatenate([ended, np.arange(len(key))])
        time_s = np.concatenate([offset_s[ended], onset_s])
        order = np.argsort(time_s, kind="stable")
        is_onset = order >= len(ended)
        note = note[order]
        self._step = np.rint(time_s[order] * config.steps_per_second).astype(np.int64)
        self._key, self._drum, self._is_onset = key[note], drum[note], is_onset
        pitch = self._key % MIDI_VALUES
        self._pitch_token = words.pitch(pitch)
        self._program_token = np.full(len(note), -1, dtype=np.int64)
        self._velocity_token = self._program_token
        if not config.onsets_only:
            self._pitch_token = np.where(self._drum, words.drum(pitch), self._pitch_token)
            self._velocity_token = words.velocity(np.where(is_onset, velocity_bin[note], 0))
            programs = self._program_tokens(self._key)
            self._program_token = np.where(self._drum, -1, programs)

    def _program_tokens(self, key: np.ndarray) -> np.ndarray:
        """The program token of pitched keys, or -1 where programs are not told."""
        if self.config.granularity == "flat":
            return np.full(len(key), -1, dtype=np.int64)
        program = coarser_programs(key // MIDI_VALUES, self.config.granularity)
        return self.vocabulary.program(program)

    def tokens(
        self,
        starts: Integer[np.ndarray, " segments"],
        ends: Integer[np.ndarray, " segments"],
        num_frames: int | None = None,
    ) -> SegmentTokens:
        """Tokens of the segments from frame `starts` up to, not including, frame `ends`.

        Segments may lie anywhere and overlap. `num_frames` is the length of the recording: the
        segment that reaches it is its last one (see `Quirks.late_events`).
        """
        if (starts < 0).any() or (ends <= starts).any():
            raise DataError(
                "Segments must begin at frame 0 or later and end after they begin; got starts "
                f"{starts!r:.80} and ends {ends!r:.80}."
            )
        base = boundary_steps(starts, self.config)
        low, high = np.searchsorted(self._step, [base, boundary_steps(ends, self.config)])
        report = replace(self._counted, before_start=self._before_start())
        if num_frames is not None:
            last = int(boundary_steps(np.array([num_frames]), self.config)[0])
            beyond = int(np.searchsorted(self._step, last, side="right"))
            late = len(self._step) if self.config.quirks.late_events else beyond
            high = np.maximum(np.where(ends >= num_frames, late, high), low)
            report = replace(report, after_end=int(self._is_onset[beyond:].sum()))
        grid, segment = self._grid(base, low, high)
        _say_once(grid[:, -3], segment)
        _say_once(grid[:, -2], segment)
        said = grid >= 0
        lengths = np.bincount(segment, said.sum(axis=1), len(starts)).astype(np.int64)
        return SegmentTokens(grid[said], lengths, report)

    def _before_start(self) -> int:
        """Notes that no segment can tell of: pitched ones by their end, others by their onset."""
        past = self._step < 0
        lost = past & (self._drum | ~self._is_onset)
        if not self.config.ties:  # without ties a note must also begin in time
            lost = past & self._is_onset
        return int(lost.sum())

    def _grid(
        self, base: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items of all segments one a row, and the segment of each.

        The columns are as many shifts as one event may need, program, velocity, and what happens
        (pitch, drum, tie or end); -1 where there is nothing to say.
        """
        count = len(base)
        tied_segment, tied_key = self._ties(low)
        ties = np.bincount(tied_segment, minlength=count)
        events = _ranges(low, high)
        event_segment = np.repeat(np.arange(count), high - low)
        since = self._step[events] - base[event_segment]
        shift_at = _changes(event_segment, since) & (since > 0)
        longest = self.config.max_shift_steps
        shifts = int(-(-np.where(shift_at, since, 0).max(initial=0) // longest))

        sizes = ties + int(self.config.ties) + (high - low) + 1
        ends = np.cumsum(sizes)
        segment = np.repeat(np.arange(count), sizes)
        grid = np.full((len(segment), shifts + 3), -1, dtype=np.int32)
        grid[ends - 1, -1] = EOS
        place = _places(ends - sizes, ties)
        grid[place, -3] = self._program_tokens(tied_key)
        grid[place, -1] = self.vocabulary.pitch(tied_key % MIDI_VALUES)
        if self.config.ties:
            grid[ends - sizes + ties, -1] = self.vocabulary.tie
        place = _places(ends - 1 - (high - low), high - low)
        for column in range(shifts):
            steps = np.minimum(since - column * longest, longest)
            spoken = shift_at & (steps > 0)
            grid[place, column] = np.where(spoken, self.vocabulary.shift(steps), -1)
        grid[place, -3] = self._program_token[events]
        grid[place, -2] = self._velocity_token[events]
        grid[place, -1] = self._pitch_token[events]
        return grid, segment

    def _ties(self, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What sounds before each segment's first event: segments, and keys in their order."""
        total = len(self._step)
        if not (self.config.ties and total):
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        at = low
        if self.config.quirks.stale_ties:
            at = np.where(low < total, low, np.searchsorted(self._step, self._step[-1]))
        # An event of a key rules from just after itself until the next event of that key.
        event = np.flatnonzero(~self._drum)
        event = event[np.argsort(self._key[event].astype(np.uint16), kind="stable")]
        key = self._key[event]
        until = np.append(np.where(key[1:] == key[:-1], event[1:], total), total)[: len(event)]
        begins = self._is_onset[event]
        event, until, key = event[begins], until[begins], key[begins]
        by_place = np.argsort(at, kind="stable")
        first = np.searchsorted(at[by_place], event, side="right")
        end = np.searchsorted(at[by_place], until, side="right")
        segment = by_place[_ranges(first, end)]
        key = np.repeat(key, end - first)
        order = np.argsort(segment << 14 | key)
        return segment[order], key[order]


def clip_timeline(notes: Notes, start_s: float, end_s: float, config: CodecConfig) -> Timeline:
    """The timeline of a clip of a recording, time 0 being `start_s`, at the cost of the clip alone.

    Tokens of segments between 0 and the clip's end are those of the whole recording's timeline when
    that is moved to begin at `start_s`: only notes that cannot change them are left out.
    """
    if notes.pedal is not None:
        notes = notes.sustained()
    onset_s, offset_s = notes.onset_s - start_s, notes.offset_s - start_s
    last_s = float(np.where(notes.is_drum, onset_s, offset_s).max(initial=-np.inf))
    near = np.ones(len(notes), dtype=bool)
    if last_s > MARGIN_S or not config.quirks.stale_ties:
        if last_s > end_s - start_s + MARGIN_S:  # no segment of the clip is beyond the last event
            config = replace(config, quirks=replace(config.quirks, stale_ties=False))
        key = _keys(notes, config)
        # What is over before the clip matters only where its key sounds into the clip.
        sounds = offset_s > -MARGIN_S
        held = np.zeros(1 << 15, dtype=bool)
        held[key[sounds & (onset_s < MARGIN_S)]] = True
        near = (sounds | held[key]) & (onset_s < end_s - start_s + MARGIN_S)
    clip = Notes(
        onset_s[near],
        offset_s[near],
        notes.pitch[near],
        notes.velocity[near],
        notes.program[near],
        notes.is_drum[near],
    )
    return Timeline(clip, config)


def _keys(notes: Notes, config: CodecConfig) -> np.ndarray:
    """One number a note, in order of drum, program and pitch; its 15 bits sort by radix."""
    if config.onsets_only:
        return notes.pitch.astype(np.int64)
    program = notes.program.astype(np.int64)
    if not config.quirks.late_program_mapping:
        program = coarser_programs(program, config.granularity)
    return notes.is_drum * np.int64(1 << 14) + program * MIDI_VALUES + notes.pitch


def _ranges(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """All whole numbers of each range, one range after the other."""
    counts = ends - starts
    return _places(starts, counts)


def _places(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    before = np.cumsum(counts) - counts
    return np.arange(counts.sum()) + np.repeat(starts - before, counts)


def _changes(*columns: np.ndarray) -> np.ndarray:
    """Where any column differs from the row above; the first row does."""
    changed = np.ones(len(columns[0]), dtype=bool)
    changed[1:] = np.any([c[1:] != c[:-1] for c in columns], axis=0)
    return changed


def _say_once(column: np.ndarray, segment: np.ndarray) -> None:
    """Blank each token that repeats the one said before it in its segment, in place."""
    said = np.flatnonzero(column >= 0)
    column[said[~_changes(segment[said], column[said])]] = -1
