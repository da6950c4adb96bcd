"""The live piano roll and the pitch meter, drawn to a console that is looked at cell by cell."""

import io

import numpy as np
import pytest
from rich.console import Console

from musicjax.infer.live import Figures, Moment
from musicjax.infer.stream import NoteOff, NoteOn, PitchFrame
from musicjax.terminal.canvas import bar, braille, half_blocks, mixed, spark, touch
from musicjax.terminal.live import LiveView
from musicjax.terminal.roll import SLICE_S

WIDTH, HEIGHT = 100, 30
LEFT = (WIDTH - 88) // 2  # columns before A0


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


def view(events, *, pitch=False, width=WIDTH, height=HEIGHT, outputs=(), **figures):
    """A view at two seconds after those events."""
    console = Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, record=True
    )
    found = LiveView("tones", "stdin", outputs, pitch=pitch, console=console, clock=Clock())
    found.take(Moment(events, Figures(**{"time_s": 2.1, "heard_s": 2.0, **figures})))
    return found


def cells(found, width=WIDTH, height=HEIGHT):
    """Rows of (character, ink, paper)."""

    def number(colour):
        red, green, blue = colour.triplet
        return red << 16 | green << 8 | blue

    return [
        [
            (character, number(part.style.color), number(part.style.bgcolor))
            for part in line
            for character in part.text
        ]
        for line in found.lines(width, height)
    ]


def text(rows):
    return ["".join(cell[0] for cell in row) for row in rows]


CHORD = [NoteOn(0.5, 60, 100), NoteOn(0.5, 61, 20), NoteOff(1.0, 61), NoteOn(1.9, 67, 127)]


@pytest.mark.parametrize(
    "size", [(100, 30), (80, 24), (200, 50), (120, 12), (40, 10), (20, 5), (9, 3)]
)
@pytest.mark.parametrize("pitch", [False, True])
def test_every_line_fills_the_width_and_nothing_exceeds_the_height(size, pitch):
    width, height = size
    events = CHORD if not pitch else [PitchFrame(1.99, 277.18, 0.9)]
    trouble = {"overruns": 3, "lost_s": 1.5, "bad_samples": 4, "level_db": -1.0}
    found = view(events, pitch=pitch, width=width, height=height, outputs=["a.mid"], **trouble)
    found.tell("a sentence that is rather longer than a narrow terminal is wide, as it may be.")
    lines = found.lines(width, height)
    assert {sum(len(part.text) for part in line) for line in lines} == {width}
    assert len(lines) == height or (height < 10 and len(lines) <= height)


def test_notes_rise_from_their_keys_in_the_colour_of_their_velocity():
    rows = cells(view(CHORD))
    keyboard, names = rows[-5:-3], text(rows)[-3]
    c4, cis4, g4 = (LEFT + pitch - 21 for pitch in (60, 61, 67))
    assert keyboard[0][c4][1] == keyboard[1][c4][1] == touch(100)
    assert keyboard[0][g4][1] == touch(127)
    assert keyboard[0][cis4][1] == 0x1A1D25  # let go: an ebony key again
    assert names[c4 : c4 + 2] == "C4" and names[g4 : g4 + 2] == "G4"
    roll = rows[2:-5]
    lanes = {place: cell[1:] for place, cell in enumerate(roll[0])}
    sounding = [row[c4][2] != lanes[c4][1] for row in roll]
    assert sounding == [False] * (len(roll) - sum(sounding)) + [True] * sum(sounding)
    assert sum(sounding) == pytest.approx(1.5 / SLICE_S / 2, abs=1)
    ended = [row[cis4] != roll[0][cis4] for row in roll]
    assert sum(ended) == pytest.approx(0.5 / SLICE_S / 2, abs=1.5)
    assert not any(ended[-5:])  # a second ago
    assert roll[-1][c4][2] == touch(100)  # newest, not faded
    fading = [row[c4][2] for row in roll if row[c4][2] != lanes[c4][1]]
    assert sum(touch(100).to_bytes(3)) == sum(fading[-1].to_bytes(3)) > sum(fading[2].to_bytes(3))


def test_who_hears_what_and_how_well_is_told():
    found = view(CHORD, outputs=["a.mid", "MIDI port Synth"], latency_s=0.1184, load=0.25)
    rows = text(cells(found))
    assert "tones hears stdin → a.mid, MIDI port Synth" in rows[0] and rows[0].endswith("0:02.1 ")
    assert "C4 G4" in rows[1]
    assert "latency 118 ms" in rows[-1] and "load 25 %" in rows[-1] and "notes 3" in rows[-1]
    assert "over/under-runs 0/0" in rows[-1] and "lost" not in rows[-1]
    worse = text(cells(view(CHORD, overruns=2, underruns=1, lost_s=3.25, bad_samples=7)))
    assert "over/under-runs 2/1  lost 3.2 s  no sound 7" in worse[-1]


def test_the_level_and_its_peak_that_holds():
    found = view([], level_db=-6.0)
    loud = text(cells(found))[1]
    assert "  -6 dB" in loud
    found._clock.now_s += 0.5
    found.take(Moment([], Figures(level_db=-40.0)))
    quiet = text(cells(found))[1]
    assert quiet.count("█") < loud.count("█") and quiet.index("▏", 10) == loud.rindex("█") + 1
    found._clock.now_s += 5.0
    found.take(Moment([], Figures(level_db=-90.0)))
    assert "▏" not in text(cells(found))[1] and "█" not in text(cells(found))[1]


def test_a_sentence_is_shown_for_a_while():
    found = view([])
    found.tell("no sound has come for 2 s; waiting for it.")
    assert "no sound has come" in text(cells(found))[-2]
    found._clock.now_s += 9.0
    assert text(cells(found))[-2].strip() == ""


def test_a_narrow_terminal_shows_the_keys_around_what_sounds():
    for pitch, name in ((24, "C1"), (108, "C8")):
        names = text(cells(view([NoteOn(1.0, pitch, 90)], width=40), width=40))[-3]
        assert name in names
    wide = cells(view([NoteOn(1.0, 60, 90)], width=180), width=180)
    lit = [place for place, cell in enumerate(wide[-4]) if cell[1] == touch(90)]
    assert lit == [2 + 2 * 39, 3 + 2 * 39]  # two columns a key


def test_notes_that_have_left_are_forgotten():
    found = view([])
    for number in range(60):
        events = [NoteOn(number * 0.5, 60, 80), NoteOff(number * 0.5 + 0.05, 60)]
        found.take(Moment(events, Figures(heard_s=number * 0.5)))
        found.lines(WIDTH, HEIGHT)
    assert len(found._view._notes) < 15
    assert found._view.count == 60


# The pitch meter ------------------------------------------------------------------------------


def voice(midi, end_s=2.0):
    return [
        PitchFrame(float(t), float(440 * 2 ** ((midi - 69) / 12)) if midi else 0.0, 0.9)
        for t in np.arange(0, end_s, 0.01)
    ]


def test_the_meter_shows_note_cents_and_needle():
    rows = cells(view(voice(69.08), pitch=True))
    lines = text(rows)
    assert "A4 +8" in lines[1]
    assert "442.04 Hz     +8 cents" in lines[3] and "0.90" in lines[4]
    assert [line[3:11] for line in lines[3:8]] == [
        "  ████  ", "██    ██", "████████", "██    ██", "██    ██"
    ]  # fmt: skip
    needle = lines[6]
    middle = needle.index("┼")
    assert needle.index("█", 30) - middle == round(8 / 50 * (middle - needle.index("┬")))
    flat = text(cells(view(voice(68.70), pitch=True)))[6]
    assert flat.index("█", 30) < flat.index("┼")


def test_the_trace_follows_the_voice():
    events = voice(62.0, 1.0) + [PitchFrame(f.time_s + 1.0, f.f0_hz, 0.9) for f in voice(67.0, 1.0)]
    rows = cells(view(events, pitch=True))[9:-2]
    lines = text(rows)
    dotted = [row for row, line in enumerate(lines) if any("\u2800" < c <= "\u28ff" for c in line)]
    high, low = dotted[0], dotted[-1]
    ruled = {line[:5].strip(): row for row, line in enumerate(lines) if line[:5].strip()}
    assert abs(ruled["G4"] - high) <= 1 and abs(ruled["D4"] - low) <= 1
    first = [c for c in lines[low] if "\u2800" < c <= "\u28ff"]
    assert len(first) == pytest.approx(1.0 / 0.04, abs=2)  # of a second
    assert lines[high].rstrip()[-1] > "\u2800"  # now is at the right


def test_silence_and_a_low_sharp_note():
    rows = text(cells(view(voice(0.0), pitch=True)))
    assert "— Hz" in rows[3] and "·" in rows[1]
    assert "C#1" in text(cells(view(voice(25.0), pitch=True)))[1]


# Drawing --------------------------------------------------------------------------------------


def test_characters_hold_what_is_drawn():
    assert mixed(0x000000, 0xFF8000, 0.5) == 0x804000
    line = half_blocks(np.array([1, 1, 2]), np.array([1, 1, 1]))
    assert [part.text for part in line] == ["  ", "▀"]
    dots = np.zeros((5, 3), bool)
    dots[0, 0] = dots[4, 2] = True
    assert braille(dots) == ["\u2801\u2800", "\u2800\u2801"]
    assert (bar(0.0, 4), bar(0.5, 4), bar(0.53, 4), bar(2.0, 4)) == ("    ", "██  ", "██▏ ", "████")
    assert spark([0.0, 0.5, 3.0]) == "▁▅█"


def test_the_whole_screen_is_left_as_it_was():
    found = view(CHORD, latency_s=0.05)
    with found:
        found.show(Moment(CHORD, Figures(time_s=2.1, heard_s=2.0)))
    drawn = found.console.file.getvalue()
    assert drawn.index("\x1b[?1049h") < drawn.index("tones") < drawn.index("\x1b[?1049l")
    assert "C4 G4" in found.console.export_text()
