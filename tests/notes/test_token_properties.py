"""Properties of notes as tokens, on pieces crowded enough to meet every corner."""

import itertools
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicjax.notes import (
    NO_QUIRKS,
    Codec,
    CodecConfig,
    Granularity,
    Note,
    Notes,
    Quirks,
    TokenClass,
    coarser_programs,
    codec_config,
)

pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

STEP_S = 0.01
PITCHES, PROGRAMS = (0, 60, 61, 127), (0, 5, 40, 42)


@st.composite
def pieces(draw: st.DrawFn, first: int = 0) -> Notes:
    """Notes on a grid of quarter steps, many of which meet; times from `first` quarter steps on."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(first, 2400),
                st.sampled_from([0, 1, 2, 4, 40, 400, 1600]),
                st.sampled_from(PITCHES),
                st.integers(1, 127),
                st.sampled_from(PROGRAMS),
                st.booleans(),
            ),
            max_size=14,
        )
    )
    notes = [
        Note(on / 400, (on + length) / 400, pitch, velocity, program, drum)
        for on, length, pitch, velocity, program, drum in rows
    ]
    return Notes.from_notes(notes)


@st.composite
def codecs(draw: st.DrawFn, quirks: Quirks | None = None) -> Codec:
    """Any language, with quirks at random unless they are given."""
    if quirks is None:
        switches = {name: draw(st.booleans()) for name in ("stale_ties", "late_events", "overlaps")}
        quirks = Quirks(**switches, late_program_mapping=draw(st.booleans()))
    config = CodecConfig(
        velocity_bins=draw(st.sampled_from([1, 5, 127])),
        granularity=draw(st.sampled_from(get_args(Granularity))),
        ties=draw(st.booleans()),
        segment_frames=draw(st.sampled_from([37, 256, 500])),
        quirks=quirks,
    )
    return Codec(config)


def encoded_slowly(notes: Notes, codec: Codec, num_frames: int) -> list[list[str]]:
    """The rules of encoding, event by event, in words."""
    config, vocabulary = codec.config, codec.vocabulary
    quirks = config.quirks

    families = coarser_programs(np.arange(128), config.granularity).tolist()
    bins = vocabulary.velocity_bin(np.arange(128)).tolist()
    rows = list(notes)
    if not quirks.late_program_mapping:
        rows = [row._replace(program=families[row.program]) for row in rows]
    rows = [
        row._replace(offset_s=max(row.offset_s, float(np.nextafter(row.onset_s, 99))))
        for row in rows
    ]
    if not quirks.overlaps:
        for key in {(row.is_drum, row.program, row.pitch) for row in rows}:
            mine = [i for i, r in enumerate(rows) if (r.is_drum, r.program, r.pitch) == key]
            mine.sort(key=lambda i: rows[i].onset_s)
            for i, j in itertools.pairwise(mine):
                end_s = min(rows[i].offset_s, rows[j].onset_s)
                rows[i] = rows[i]._replace(offset_s=end_s)
        rows = [row for row in rows if row.onset_s < row.offset_s]
    rows.sort(key=lambda r: (r.is_drum, r.program, r.pitch))
    events = [(r.offset_s, r, False) for r in rows if not r.is_drum]
    events += [(r.onset_s, r, True) for r in rows]
    events.sort(key=lambda event: event[0])
    steps = [round(time_s * config.steps_per_second) for time_s, *_ in events]

    def state_before(count: int) -> list[tuple[int, int]]:
        state: dict[tuple[int, int], bool] = {}
        for _, row, begins in events[:count]:
            if not row.is_drum:
                state[row.program, row.pitch] = begins
        return sorted(key for key, sounds in state.items() if sounds)

    result = []
    for start, end in codec.segments(num_frames).tolist():
        base, limit = start * 4 // 5, end * 4 // 5
        if end == num_frames:
            limit = max([*steps, limit]) + 1 if quirks.late_events else limit + 1
        low = sum(step < base for step in steps)
        said: list[tuple[str, int]] = []
        if config.ties:
            known = low
            if quirks.stale_ties and low == len(steps) > 0:
                known = steps.index(steps[-1])
            for program, pitch in state_before(known):
                said += [("program", families[program]), ("pitch", pitch)]
            said.append(("tie", 0))
        last = base
        for (_, row, begins), step in zip(events[low:], steps[low:], strict=True):
            if step >= limit:
                break
            if step > last:
                said.append(("shift", step - base))
                last = step
            if not row.is_drum:
                said.append(("program", families[row.program]))
            bin_ = bins[row.velocity] if begins else 0
            said += [("velocity", bin_), ("drum" if row.is_drum else "pitch", row.pitch)]
        if config.granularity == "flat":
            said = [word for word in said if word[0] != "program"]
        spoken, words = {}, []
        for name, value in said:
            if name in ("program", "velocity"):
                if spoken.get(name) == value:
                    continue
                spoken[name] = value
            if name == "velocity":
                name = "on" if value else "off"
            words.append("tie" if name == "tie" else f"{name} {value}")
        result.append([*words, "eos"])
    return result


@given(pieces(), codecs(), st.integers(1, 800))
@settings(max_examples=80, deadline=None)
def test_encoding_follows_the_rules_event_by_event(notes, codec, num_frames) -> None:
    encoded = codec.encode(notes, num_frames)
    assert encoded.lengths.sum() == len(encoded.tokens)
    found = [codec.vocabulary.names(tokens) for tokens in encoded]
    assert found == encoded_slowly(notes, codec, num_frames)


@given(pieces(), codecs(NO_QUIRKS))
@settings(max_examples=30, deadline=None)
def test_what_is_encoded_is_decoded(notes, codec) -> None:
    """Every note comes back on the grid of steps, and no token is invalid."""
    codec = Codec(replace(codec.config, ties=True))
    decoded = codec.decode(codec.encode(notes, 1300))
    assert decoded.report.invalid == decoded.report.dropped == 0
    expected = {}
    families = coarser_programs(notes.program.astype(int), codec.config.granularity)
    for note, family in zip(notes, families.tolist(), strict=True):
        key = note.is_drum, 0 if note.is_drum else family, note.pitch
        expected.setdefault(key, []).append(note)
    found = list(decoded.notes)
    bins = codec.vocabulary.velocity_bin(np.arange(128)).tolist()
    count = 0
    for (drum, program, pitch), group in expected.items():
        heard = [n for n in found if (n.is_drum, n.program, n.pitch) == (drum, program, pitch)]
        if drum:  # kits of several programs come back as one
            continue
        onsets = sorted({note.onset_s for note in group})
        assert len(heard) == len(onsets)
        np.testing.assert_allclose([n.onset_s for n in heard], onsets, atol=STEP_S / 2 + 1e-9)
        velocities = {n.onset_s: n.velocity for n in group}  # of those at once, the last
        for n, onset_s in zip(heard, onsets, strict=True):
            velocity = velocities[onset_s]
            assert n.velocity == codec.vocabulary.bin_velocity(bins[velocity])
        end_s = [n.offset_s for n in group if n.onset_s == onsets[-1]][-1]
        wanted = max(end_s, heard[-1].onset_s + STEP_S)
        np.testing.assert_allclose(heard[-1].offset_s, wanted, atol=STEP_S / 2 + 1e-9)
        count += len(heard)
    assert count == sum(not n.is_drum for n in found)


@given(pieces(), codecs(), st.integers(0, 900), st.sampled_from([40, 256]))
@settings(max_examples=60, deadline=None)
def test_a_clip_has_the_tokens_of_the_whole(notes, codec, start, num_frames) -> None:
    start_s = start / 128  # exact, so that moving the notes rounds as moving the clip does
    moved = replace(notes, onset_s=notes.onset_s - start_s, offset_s=notes.offset_s - start_s)
    whole = codec.timeline(moved).tokens(np.array([0]), np.array([num_frames]))
    clip = codec.encode_clip(notes, start_s, num_frames)
    assert codec.vocabulary.names(clip) == codec.vocabulary.names(whole.tokens)


@given(pieces(first=-800), codecs(), st.lists(st.tuples(st.integers(0, 700), st.integers(1, 300))))
@settings(max_examples=30, deadline=None)
def test_segments_may_lie_anywhere(notes, codec, places) -> None:
    """Overlapping segments in any order have the tokens that each has alone."""
    timeline = codec.timeline(notes)
    starts = np.array([start for start, _ in places], dtype=np.int64)
    ends = starts + np.array([length for _, length in places], dtype=np.int64)
    together = timeline.tokens(starts, ends, 600)
    for tokens, start, end in zip(together, starts, ends, strict=True):
        alone = timeline.tokens(np.array([start]), np.array([end]), 600)
        np.testing.assert_array_equal(tokens, alone.tokens)


@given(st.data(), codecs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_decoding_never_fails(data, codec, seed) -> None:
    """Whatever the ids are: all are understood, counted or dropped, and the notes are sound."""
    rng = np.random.default_rng(seed)
    low, high = data.draw(st.sampled_from([(-5, 2000), (0, 1536), (1000, 1400)]))
    rows = rng.integers(low, high, (data.draw(st.integers(1, 5)), 30))
    decoded = codec.decode(rows)
    assert decoded.report.invalid + decoded.report.dropped <= rows.size
    assert (decoded.notes.offset_s - decoded.notes.onset_s >= STEP_S - 1e-9).all()


def test_all_kinds_of_grammar() -> None:
    """Each state goes on: something may come, and what may come leads where the end is near."""
    variants = [codec_config("mt3"), codec_config("ismir2021")]
    variants += [replace(variants[0], granularity="flat"), replace(variants[1], granularity="full")]
    variants += [replace(variants[1], onsets_only=True)]
    for config in variants:
        grammar = Codec(config).grammar()
        assert grammar.allowed.any(axis=1).all()
        assert not grammar.allowed[:, TokenClass.NEVER].any()
        assert grammar.next_state[grammar.allowed].max() < grammar.num_states <= 40
        ends = grammar.allowed[:, TokenClass.EOS] | grammar.allowed[:, TokenClass.PAD]
        for _ in range(3):  # at most program, velocity and pitch away, or velocity and drum
            reached = np.where(grammar.allowed, ends[grammar.next_state], False)
            ends = ends | reached.any(axis=1)
        assert ends.all()


@given(pieces(), codecs(Quirks(late_events=False)))
@settings(max_examples=50, deadline=None)
def test_the_grammar_knows_every_stream_that_is_encoded(notes, codec) -> None:
    grammar = codec.grammar()
    for tokens in codec.encode(notes, 900):
        assert grammar.first_error(tokens) is None
        assert grammar.first_error(np.append(tokens, [0, 0])) is None
        assert grammar.first_error(tokens[:-1][::-1]) is not None or len(tokens) < 4


@given(st.integers(0, 2**32 - 1), codecs(Quirks()))
@settings(max_examples=30, deadline=None)
def test_what_the_grammar_allows_is_understood(seed, codec) -> None:
    """A walk at random along the rule for devices gives no token that is wrong by its form."""
    rng = np.random.default_rng(seed)
    grammar = codec.grammar()
    state, last, tokens = 0, 0, []
    for _ in range(60):
        legal = grammar.allowed[state][grammar.token_class]
        legal &= (grammar.shift_step < 0) | (grammar.shift_step > last)
        kinds = np.unique(grammar.token_class[legal])
        kind = rng.choice(kinds)  # classes at equal odds, or nearly all would be shifts
        token = int(rng.choice(np.flatnonzero(legal & (grammar.token_class == kind))))
        tokens.append(token)
        state = grammar.next_state[state, kind]
        last = max(last, grammar.shift_step[token])
    assert grammar.first_error(np.array(tokens)) is None
    report = codec.decode([np.array(tokens)]).report
    assert (report.unknown, report.backwards, report.stray_tie, report.silent_drum) == (0, 0, 0, 0)
