"""Two piano pieces, typed in by hand and performed by rule: sound to transcribe and its truth.

    python examples/make_examples.py /usr/share/sounds/sf2/FluidR3_GM.sf2

writes `bach_prelude` (J. S. Bach, Prelude in C, BWV 846, bars 1 to 11; 1722) and `gymnopedie`
(E. Satie, Gymnopédie No. 1, bars 1 to 16; 1888), each as .flac and .mid, beside this file. Both
composers' works are in the public domain; typing, performance and rendering are this project's
own. The files in the repository were rendered with FluidR3 (F. Wen, MIT licence), whose grand
piano the MIDI files ask for; no sound font is part of the project.
"""

import sys
from pathlib import Path

import numpy as np

from musicjax.audio import save_audio
from musicjax.data.fluidsynth import synthesize
from musicjax.notes import Note, Notes, Pedal, write_midi

HERE = Path(__file__).resolve().parent
SAMPLE_RATE = 22050
LEAD_IN_S, RING_S = 0.25, 2.0  # silence before the first note; room for the last one to die away

# One row a bar: bass, tenor (both held for half a bar), and the three notes of the figure.
BACH = """
C4 E4 G4 C5 E5
C4 D4 A4 D5 F5
B3 D4 G4 D5 F5
C4 E4 G4 C5 E5
C4 E4 A4 E5 A5
C4 D4 F#4 A4 D5
B3 D4 G4 D5 G5
B3 C4 E4 G4 C5
A3 C4 E4 G4 C5
D3 A3 D4 F#4 C5
G3 B3 D4 G4 B4
"""

# Melody of bars 5 to 16, as (pitch, length in quarters); R rests. Bass and chord alternate below.
SATIE_MELODY = """
R:1 F#5:1 A5:1  G5:1 F#5:1 C#5:1  B4:1 C#5:1 D5:1  A4:3
F#4:12
R:1 F#5:1 A5:1  G5:1 F#5:1 C#5:1  B4:1 C#5:1 D5:1  A4:3
"""
SATIE_BASS = ("G2", "D2")
SATIE_CHORDS = (("B3", "D4", "F#4"), ("A3", "C#4", "F#4"))
SATIE_BARS = 16


def midi_number(name: str) -> int:
    """C4 -> 60, F#4 -> 66."""
    steps = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
    return steps[name[0]] + name.count("#") + 12 * (int(name[-1]) + 1)


def bach() -> tuple[Notes, int]:
    """Score of the prelude: times in quarters, with a pedal for every bar; and its length."""
    notes, moves = [], []
    bars = BACH.split("\n")[1:-1]
    for bar, row in enumerate(bars):
        pitches = [midi_number(name) for name in row.split()]
        swell = 8 * np.sin(np.pi * bar / (len(bars) - 1))  # one long phrase, loudest in its middle
        for half in (0, 2):
            for sixteenth, voice in enumerate((0, 1, 2, 3, 4, 2, 3, 4)):
                start = 4 * bar + half + sixteenth / 4
                length = 2 - sixteenth / 4 if voice < 2 else 0.27  # a finger's overlap
                accent = {0: 6, 1: -2, 4: 3}.get(voice, 0)
                loudness = 56 + swell + accent - half
                notes.append(Note(start, start + length, pitches[voice], round(loudness)))
        moves += [(4 * bar + 0.1, 127), (4 * bar + 3.9, 0)]
    moves[-1] = (4 * len(bars) + 1, 0)  # the last chord rings on
    return _score(notes, moves), 4 * len(bars)


def satie() -> tuple[Notes, int]:
    """Score of the Gymnopédie: times in quarters, with a pedal for every bar; and its length."""
    notes, moves = [], []
    for bar in range(SATIE_BARS):
        start, end = 3 * bar, 3 * bar + 3
        notes.append(Note(start, end - 0.05, midi_number(SATIE_BASS[bar % 2]), 44 - 3 * (bar % 2)))
        for voice, name in enumerate(SATIE_CHORDS[bar % 2]):
            notes.append(Note(start + 1, end - 0.1, midi_number(name), 34 + voice))
        moves += [(start + 0.12, 127), (end - 0.05, 0)]
    moves[-1] = (3 * SATIE_BARS + 1, 0)
    quarter = 12.0
    for word in SATIE_MELODY.split():
        name, length = word.split(":")
        if name != "R":
            # Soft, and rising with the line. A held F#4 gives its key to the chord that needs it.
            pitch, held = midi_number(name), 1.0 if float(length) > 3 else float(length)
            notes.append(Note(quarter, quarter + held - 0.02, pitch, 58 + (pitch - 73) // 2))
        quarter += float(length)
    return _score(notes, moves), 3 * SATIE_BARS


def _score(notes: list[Note], moves: list[tuple[float, int]]) -> Notes:
    times, values = zip(*moves, strict=True)
    return Notes.from_notes(notes, pedal=Pedal.from_arrays(times, values))


def perform(score: Notes, quarters: int, quarters_per_minute: float, seed: int) -> Notes:
    """Give a score time: a broad ending, and fingers that are a few milliseconds and shades off."""
    rng = np.random.default_rng(seed)
    grid = np.linspace(0, quarters + 8, 2000)
    slowing = 1 + 0.6 * np.clip((grid - quarters + 4) / 4, 0, 1) ** 2  # in the last four quarters
    breath = 1 + 0.03 * np.sin(2 * np.pi * grid / 12)  # and a little give and take before it
    pace_s = 60 / quarters_per_minute * slowing * breath
    clock_s = LEAD_IN_S + np.concatenate([[0], np.cumsum(pace_s[:-1] * np.diff(grid))])

    def seconds(quarter: np.ndarray) -> np.ndarray:
        return np.interp(quarter, grid, clock_s)

    onset_s = seconds(score.onset_s) + rng.normal(0, 0.006, len(score))
    offset_s = np.maximum(
        seconds(score.offset_s) + rng.normal(0, 0.006, len(score)), onset_s + 0.05
    )
    velocity = np.clip(np.rint(score.velocity + rng.normal(0, 2.5, len(score))), 1, 127)
    assert score.pedal is not None
    pedal = Pedal.from_arrays(seconds(score.pedal.time_s), score.pedal.value)
    played = Notes.from_arrays(onset_s, offset_s, score.pitch, velocity, pedal=pedal)
    return _one_key_one_note(played.sorted())


def _one_key_one_note(notes: Notes) -> Notes:
    """End each note 20 ms before its key is struck again: a piano has one key a pitch."""
    offset_s = notes.offset_s.copy()
    for pitch in np.unique(notes.pitch):
        key = np.flatnonzero(notes.pitch == pitch)
        offset_s[key[:-1]] = np.minimum(offset_s[key[:-1]], notes.onset_s[key[1:]] - 0.02)
    return Notes.from_arrays(
        notes.onset_s, offset_s, notes.pitch, notes.velocity, pedal=notes.pedal
    )


def render(name: str, notes: Notes, font: str) -> None:
    """Write the pair: the notes, and their sound at a peak of -6 dB with a faded end."""
    samples = synthesize(notes, font, SAMPLE_RATE, reverb=True)
    samples = samples[: int((notes.duration_s + RING_S) * SAMPLE_RATE)]
    samples = samples * (10 ** (-6 / 20) / np.abs(samples).max())
    fade = min(int(0.8 * SAMPLE_RATE), len(samples))
    samples[-fade:] *= np.cos(np.linspace(0, np.pi / 2, fade)) ** 2
    save_audio(HERE / f"{name}.flac", samples.astype(np.float32), SAMPLE_RATE)
    write_midi(notes, HERE / f"{name}.mid")


def main() -> None:
    """Write all examples with the sound font named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("give the path of a sound font, such as FluidR3_GM.sf2")
    render("bach_prelude", perform(*bach(), quarters_per_minute=84, seed=846), sys.argv[1])
    render("gymnopedie", perform(*satie(), quarters_per_minute=76, seed=1888), sys.argv[1])


if __name__ == "__main__":
    main()
