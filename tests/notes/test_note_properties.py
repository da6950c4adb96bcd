"""Properties of notes and their files, on random pieces crowded enough to meet every corner."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicjax.notes import (
    Note,
    Notes,
    Pedal,
    as_dict,
    from_dict,
    from_piano_roll,
    midi_bytes,
    parse_midi,
    piano_roll,
    read_csv,
    read_json,
    write_csv,
    write_json,
)

# The run-time type checker samples with `random` while a strategy builds its notes.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

# Times on a coarse grid meet each other often, which is where rules are decided.
GRID_S = 0.125


def times(last: int = 40) -> st.SearchStrategy[float]:
    return st.integers(0, last).map(lambda step: step * GRID_S)


@st.composite
def single_notes(draw: st.DrawFn, pitches: st.SearchStrategy[int], programs: list[int]) -> Note:
    onset_s = draw(times())
    return Note(
        onset_s=onset_s,
        offset_s=onset_s + draw(times(12)),
        pitch=draw(pitches),
        velocity=draw(st.integers(1, 127)),
        program=draw(st.sampled_from(programs)),
        is_drum=draw(st.booleans()),
    )


@st.composite
def pedals(draw: st.DrawFn, programs: list[int], numbers: tuple[int, ...] = (64, 66, 67)) -> Pedal:
    moves = draw(
        st.lists(
            st.tuples(
                times(60),
                st.sampled_from([0, 63, 64, 127]),
                st.sampled_from(numbers),
                st.sampled_from(programs),
            ),
            max_size=12,
        )
    )
    return Pedal.from_arrays(*([move[i] for move in moves] for i in range(4)))


@st.composite
def pieces(draw: st.DrawFn, *, spread: bool = False, drums: bool = True) -> Notes:
    """Notes of a few programs with pedals; `spread` gives any times, not only the coarse grid."""
    programs = draw(st.sampled_from([[0], [0, 40], list(range(20))]))
    pitches = st.sampled_from([0, 60, 61, 127])
    notes = draw(st.lists(single_notes(pitches, programs), max_size=16))
    piece = Notes.from_notes(notes, pedal=draw(pedals(programs)))
    if not drums:
        piece = piece[~piece.is_drum]
    if spread:
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        onset_s = rng.uniform(0, 3000, len(piece))
        piece = Notes(
            onset_s,
            onset_s + rng.exponential(1.0, len(piece)),
            *piece.columns()[2:],
            pedal=piece.pedal,
        )
    return piece


def sustained_slowly(notes: Notes, threshold: int = 64) -> list[Note]:
    """The rule of `Notes.sustained`, played event by event."""
    result: list[Note] = []
    moves = [] if notes.pedal is None else list(zip(*notes.pedal.columns(), strict=True))
    moves = [move for move in moves if move[1] == 64]
    for program in set(notes.program.tolist()):
        mine = [n for n in notes if n.program == program and not n.is_drum]
        mine_moves = [move for move in moves if move[3] == program]
        if not mine_moves:
            result += mine
            continue
        events = [(m[0], 0, i) for i, m in enumerate(mine_moves)]
        events += [(n.onset_s, 1, i) for i, n in enumerate(mine)]
        events += [(n.offset_s, 2, i) for i, n in enumerate(mine)]
        end: dict[int, float] = {}
        removed, sounding, released, down = set(), [], set(), False
        for time_s, kind, i in sorted(events, key=lambda event: event[:2]):
            if kind == 0:
                down = mine_moves[i][2] >= threshold
                if not down:
                    for j in [j for j in sounding if j in released]:
                        end[j] = time_s
                        sounding.remove(j)
            elif kind == 1:
                if down:
                    for j in [j for j in sounding if mine[j].pitch == mine[i].pitch]:
                        end[j] = time_s
                        sounding.remove(j)
                        if mine[j].onset_s == time_s:
                            removed.add(j)
                sounding.append(i)
            elif i in sounding:
                released.add(i)
                if not down:
                    end[i] = time_s
                    sounding.remove(i)
        last_s = max(event[0] for event in events)
        result += [
            n._replace(offset_s=end.get(i, last_s)) for i, n in enumerate(mine) if i not in removed
        ]
    return result + [n for n in notes if n.is_drum]


@given(pieces(), st.sampled_from([1, 64, 127]))
@settings(max_examples=50, deadline=None)
def test_sustained_follows_the_rule_played_event_by_event(piece: Notes, threshold: int) -> None:
    expected = Notes.from_notes(sustained_slowly(piece, threshold)).sorted()
    assert piece.sustained(threshold).sorted() == expected


@given(pedals([0, 1]), st.integers(0, 60).map(lambda k: k / 8))
@settings(max_examples=25, deadline=None)
def test_held_pedals_are_those_last_moved_off_zero(pedal: Pedal, time_s: float) -> None:
    expected = {}
    for moment, number, value, program in zip(*pedal.columns(), strict=True):
        if moment < time_s:
            expected[program, number] = value
    held = pedal.at(time_s)
    found = {(p, n): v for _, n, v, p in zip(*held.columns(), strict=True)}
    assert found == {key: value for key, value in expected.items() if value}


def nearest(column: np.ndarray) -> np.ndarray:
    """Times as MIDI keeps them, in its ticks."""
    return np.rint(column * 1920)


@given(pieces(spread=True))
@settings(max_examples=33, deadline=None)
def test_midi_keeps_every_note_to_half_a_tick(piece: Notes) -> None:
    heard = parse_midi(midi_bytes(piece))
    expected = piece[
        np.lexsort(
            (
                piece.velocity,
                piece.offset_s,
                piece.program,
                piece.is_drum,
                piece.pitch,
                nearest(piece.onset_s),
            )
        )
    ]
    assert len(heard) == len(piece)
    order = np.lexsort(
        (
            heard.velocity,
            heard.offset_s,
            heard.program,
            heard.is_drum,
            heard.pitch,
            nearest(heard.onset_s),
        )
    )
    heard_notes = heard[order]
    np.testing.assert_allclose(heard_notes.onset_s, expected.onset_s, atol=2.61e-4)
    lasting = np.maximum(expected.offset_s, expected.onset_s + 1 / 1920)
    np.testing.assert_allclose(heard_notes.offset_s, lasting, atol=5.3e-4)
    for mine, theirs in zip(heard_notes.columns()[2:], expected.columns()[2:], strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (heard.pedal is None) == (piece.pedal is None)
    if piece.pedal is not None and heard.pedal is not None:
        np.testing.assert_allclose(heard.pedal.time_s, piece.pedal.time_s, atol=2.61e-4)
        for name in ("number", "value", "program"):
            np.testing.assert_array_equal(getattr(heard.pedal, name), getattr(piece.pedal, name))


@given(pieces())
@settings(max_examples=33, deadline=None)
def test_midi_written_read_and_written_again_has_the_same_bytes(piece: Notes) -> None:
    first = midi_bytes(piece)
    heard = parse_midi(first)
    assert midi_bytes(heard) == first
    assert parse_midi(midi_bytes(heard)) == heard


@given(pieces())
@settings(max_examples=25, deadline=None)
def test_csv_json_and_midi_agree(piece: Notes) -> None:
    piece = parse_midi(midi_bytes(piece))  # so that no note is shorter than MIDI can write
    texts = io.StringIO(), io.StringIO()
    write_csv(piece, texts[0])
    write_json(piece, texts[1])
    from_csv = read_csv(io.StringIO(texts[0].getvalue()))
    from_json = read_json(io.StringIO(texts[1].getvalue()))
    assert from_json.pedal == from_dict(as_dict(piece)).pedal
    for heard in (from_csv, from_json.sorted()):
        bare = Notes(*heard.columns(), pedal=from_json.pedal)
        assert midi_bytes(bare) == midi_bytes(piece)


@given(pieces(spread=True))
@settings(max_examples=25, deadline=None)
def test_csv_and_json_are_read_as_written(piece: Notes) -> None:
    for write, read in ((write_csv, read_csv), (write_json, read_json)):
        first, second = io.StringIO(), io.StringIO()
        write(piece.sorted(), first)
        first.seek(0)
        heard = read(first)
        write(heard, second)
        assert first.getvalue() == second.getvalue()
        np.testing.assert_allclose(heard.onset_s, piece.sorted().onset_s, atol=5.1e-7)


@given(pieces(drums=False), st.sampled_from([8.0, 31.25, 100.0]))
@settings(max_examples=25, deadline=None)
def test_a_roll_turns_into_notes_that_draw_the_same_roll(piece: Notes, rate: float) -> None:
    roll = piano_roll(piece, rate)
    again = piano_roll(from_piano_roll(roll), rate, len(roll.frame))
    np.testing.assert_array_equal(again.onset, roll.onset)
    np.testing.assert_array_equal(again.frame, roll.frame)
    np.testing.assert_array_equal(roll.frame, roll.velocity > 0)
    assert (roll.frame | ~roll.onset).all()


@given(pieces())
@settings(max_examples=25, deadline=None)
def test_moving_there_and_back_changes_nothing(piece: Notes) -> None:
    assert piece.shift(2.5).shift(-2.5) == piece
    assert piece.stretch(4.0).stretch(0.25) == piece
    middle = piece[(piece.pitch > 20) & (piece.pitch < 100)]
    assert middle.transpose(7).transpose(-7) == middle
    assert piece.slice(0.0, 1e6) == piece
