"""Pictures: the right things in the right places, no global state, written whole or not at all."""

import io
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from musicjax.audio import Audio
from musicjax.errors import DataError, OutputError
from musicjax.notes import Notes, Pedal
from musicjax.plots import (
    pitch_spectrogram,
    plot_comparison,
    plot_piano_roll,
    plot_spectrogram,
    plot_transcriptions,
)
from musicjax.plots.rows import row_times
from musicjax.plots.stack import AGREED, SHARED
from musicjax.plots.style import EXTRA, HIT, MISS

PNG = b"\x89PNG\r\n\x1a\n"
PIECE = Notes.from_arrays(
    [0.0, 0.5, 1.0, 1.5],
    [0.4, 1.0, 1.2, 2.0],
    [60, 64, 67, 72],
    [20, 60, 90, 127],
    pedal=Pedal.from_arrays([0.1, 0.9, 1.6], [127, 0, 100]),
)


def tone(pitch: float, seconds: float = 1.0, rate: int = 16000) -> np.ndarray:
    hz = 440 * 2 ** ((pitch - 69) / 12)
    return np.sin(2 * np.pi * hz * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def shapes(figure: Figure) -> int:
    """How many note or pedal rectangles a figure holds."""
    return sum(
        len(collection.get_paths())
        for axes in figure.axes
        for collection in axes.collections
        if isinstance(collection, PolyCollection)
    )


def test_an_hour_of_sound_is_not_copied() -> None:
    samples = np.tile(tone(60), 3600)
    tracemalloc.start()
    levels = pitch_spectrogram(samples, 16000, frames_per_s=0.1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert levels.shape == (360, 88 * 4)
    assert peak < samples.nbytes / 3


@pytest.mark.parametrize("pitch", [33, 48, 60.5, 69, 84, 100])
def test_a_tone_lies_on_its_pitch(pitch: float) -> None:
    levels = pitch_spectrogram(tone(pitch), 16000)
    assert levels.shape == (50, 88 * 4)
    centres = 21 + (np.arange(88 * 4) + 0.5) / 4 - 0.5
    assert centres[levels[25].argmax()] == pytest.approx(pitch, abs=0.2 if pitch > 40 else 0.6)
    assert levels.max() == pytest.approx(0.0, abs=1e-6)


def test_silence_and_clicks_have_levels() -> None:
    assert set(np.unique(pitch_spectrogram(np.zeros(1600, np.float32), 16000))) == {-120.0}
    assert np.isfinite(pitch_spectrogram(np.ones(1, np.float32), 44100)).all()


def test_a_roll_over_its_sound(tmp_path: Path) -> None:
    audio = Audio(tone(60, 2.0), 16000)
    figure = plot_piano_roll(PIECE, audio=audio, title="Chord", path=tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    roll, keyboard, pedal = figure.axes[1:4]  # behind the velocity bar
    assert len(roll.images) == 1
    assert roll.get_xlim() == (0.0, 4.0) and pedal.get_xlim() == (0.0, 4.0)
    assert keyboard.get_ylim() == roll.get_ylim()
    assert shapes(figure) == 4 + 3
    assert (
        "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()
    )


def test_notes_lie_where_they_sound() -> None:
    figure = plot_piano_roll(Notes(*PIECE.columns()), row_s=2.0)
    roll = figure.axes[1]
    boxes = [path.get_extents() for path in roll.collections[0].get_paths()]
    np.testing.assert_allclose([box.x0 for box in boxes], PIECE.onset_s)
    np.testing.assert_allclose([box.x1 for box in boxes], PIECE.offset_s)
    np.testing.assert_allclose([(box.y0 + box.y1) / 2 for box in boxes], PIECE.pitch)


def test_long_pieces_are_set_in_rows_and_the_last_is_as_long_as_its_music() -> None:
    piece = Notes.from_arrays([0.0, 64.0], [1.0, 65.0], [60, 72])
    figure = plot_piano_roll(piece)
    limits = [axes.get_xlim() for axes in figure.axes[1::2]]
    assert limits == [(0.0, 25.0), (25.0, 50.0), (50.0, 65.0)]
    widths = [axes.get_position().width for axes in figure.axes[1::2]]
    assert widths[2] == pytest.approx(widths[0] * 15 / 25)
    two_hours = row_times(0.0, 7200.0, None)
    assert len(two_hours) == 36 and two_hours[-1] == (7000.0, 7200.0)


def test_a_part_of_a_piece() -> None:
    figure = plot_piano_roll(PIECE, start_s=1.1, end_s=5.1, audio=Audio(tone(60, 4.0), 16000))
    assert figure.axes[1].get_xlim() == pytest.approx((1.1, 5.1))
    assert figure.axes[1].images[0].get_extent()[0] == pytest.approx(1.1, abs=0.02)


def test_several_instruments_are_named_and_drums_have_their_rows() -> None:
    kit = Notes.from_arrays([0.0, 0.5], [0.1, 0.6], [36, 38], is_drum=True)
    strings = Notes.from_arrays([0.0], [2.0], [55], program=48)
    figure = plot_piano_roll(Notes.concat([PIECE, strings, kit]))
    words = [text.get_text() for text in figure.texts]
    assert {"Acoustic Grand Piano", "String Ensemble 1"} <= set(words)
    drums = figure.axes[-1]
    assert [label.get_text() for label in drums.get_yticklabels()][:2] == ["kick", "snare"]
    assert drums.collections[-1].get_offsets().tolist() == [[0.0, 0.0], [0.5, 1.0]]
    only = plot_piano_roll(kit)
    assert len(only.axes) == 2  # the velocity bar and the drum lane, no keyboard


def test_a_spectrogram_with_its_own_axis() -> None:
    frequencies = np.linspace(50, 4000, 64)
    values = np.zeros((100, 64))
    values[:, np.argmin(abs(frequencies - 440))] = 1.0
    figure = plot_piano_roll(
        PIECE, spectrogram=values, frequencies_hz=frequencies, frames_per_s=50.0
    )
    image = figure.axes[1].images[0]
    bottom, top = image.get_extent()[2:]
    picture = np.asarray(image.get_array())
    pitch = bottom + (picture[:, 10].argmax() + 0.5) / len(picture) * (top - bottom)
    assert pitch == pytest.approx(69, abs=1.0)
    with pytest.raises(DataError, match="needs frequencies_hz"):
        plot_piano_roll(PIECE, spectrogram=values)
    with pytest.raises(DataError, match="64 columns but there are 63"):
        plot_piano_roll(
            PIECE, spectrogram=values, frequencies_hz=frequencies[1:], frames_per_s=50.0
        )


def test_a_comparison_counts_hits_misses_and_extras() -> None:
    bare = Notes(*PIECE.columns())
    estimate = Notes.concat([bare[:3].shift(0.02), Notes.from_arrays([1.7], [1.9], [50])])
    figure = plot_comparison(bare, estimate, title="Against the score")
    words = [text.get_text() for text in figure.texts]
    assert {"3 hits", "1 missed", "1 extra"} <= set(words)
    assert any("onset F1 0.750" in word for word in words)


def test_a_spectrogram_alone() -> None:
    values = np.random.default_rng(0).normal(size=(60, 40))
    stream = io.BytesIO()
    figure = plot_spectrogram(
        values, 31.25, frequencies_hz=np.linspace(60, 9000, 40), title="Noise", path=stream
    )
    assert stream.getvalue().startswith(PNG)
    assert figure.axes[0].get_xlim() == pytest.approx((0, 60 / 31.25))
    assert "1 kHz" in [label.get_text() for label in figure.axes[0].get_yticklabels()]
    with pytest.raises(DataError, match="nothing to draw"):
        plot_spectrogram(values[:0], 31.25)


def test_nothing_played_is_an_empty_roll_and_an_empty_part_is_refused() -> None:
    assert shapes(plot_piano_roll(Notes.empty())) == 0
    with pytest.raises(DataError, match="nothing to draw from 9"):
        plot_piano_roll(PIECE, start_s=9.0)
    with pytest.raises(DataError, match="row_s must be above 0"):
        plot_piano_roll(PIECE, row_s=0.0)
    with pytest.raises(DataError, match="too many rows"):
        plot_piano_roll(PIECE.stretch(1000), row_s=0.1)


@pytest.mark.parametrize(("name", "start"), [("a.svg", b"<?xml"), ("a.pdf", b"%PDF"), ("a", PNG)])
def test_the_name_chooses_the_form(name: str, start: bytes, tmp_path: Path) -> None:
    plot_piano_roll(PIECE, path=tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_unwritable_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="there is no folder"):
        plot_piano_roll(PIECE, path=tmp_path / "absent" / "a.png")


def colours(figure: Figure) -> list[set[str]]:
    """Colours of the notes of each roll of a stack, keyboards left out."""
    rolls = [axes for axes in figure.axes if axes.collections]
    found = []
    for axes in rolls:
        drawn = [c for c in axes.collections if isinstance(c, PolyCollection) and c.get_paths()]
        each = [c.get_facecolor() if len(c.get_facecolor()) else c.get_edgecolor() for c in drawn]
        found.append({to_hex(tuple(rgba)) for rgbas in each for rgba in rgbas})
    return found


def test_a_stack_against_the_truth(tmp_path: Path) -> None:
    """The truth on top, then each model's hits, misses and extras on the same axes."""
    extra = Notes.from_arrays([1.7], [1.9], [50])
    half, worse = Notes.concat([PIECE[:2], extra]), PIECE[:1]
    figure = plot_transcriptions(
        {"half": half, "worse": worse},
        reference=PIECE,
        audio=Audio(tone(60, 2.0), 16000),
        path=tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)
    words = [text.get_text() for text in figure.texts]
    assert [word for word in words if word in ("what was played", "half", "worse")] == [
        "what was played", "half", "worse",
    ]  # fmt: skip
    assert any(word.startswith("2 hits, 2 missed, 1 extra · onset F1 0.571") for word in words)
    assert any("red, missed by all: 2" in word for word in words)
    played, first, second = colours(figure)
    assert MISS in played and HIT not in played
    assert first == {HIT, EXTRA, MISS}
    assert second == {HIT, MISS}
    limits = {axes.get_xlim() for axes in figure.axes if axes.collections}
    assert limits == {(0.0, 4.0)}


def test_a_stack_without_a_truth_shows_agreement() -> None:
    alone = Notes.from_arrays([1.7], [1.9], [50])
    figure = plot_transcriptions(
        {"a": PIECE[:2], "b": PIECE[:1], "c": Notes.concat([PIECE[:2].shift(0.02), alone])}
    )
    assert colours(figure) == [{AGREED, SHARED}, {AGREED}, {AGREED, SHARED, EXTRA}]
    assert any("3 notes, 1 that it alone hears" in text.get_text() for text in figure.texts)
    one = plot_transcriptions({"only": PIECE})
    assert shapes(one) == 4
    with pytest.raises(DataError, match="no transcriptions"):
        plot_transcriptions({})
    with pytest.raises(DataError, match="nothing to draw from 3"):
        plot_transcriptions({"a": PIECE}, start_s=3.0, end_s=2.0)


def test_long_stacks_are_set_in_rows_and_silence_is_drawn() -> None:
    piece = Notes.from_arrays([0.0, 64.0], [1.0, 65.0], [60, 72])
    figure = plot_transcriptions({"a": piece, "silent": Notes.empty()}, reference=piece)
    limits = [axes.get_xlim() for axes in figure.axes if axes.get_xlim() != (0.0, 1.0)]
    assert limits == [(0.0, 25.0)] * 3 + [(25.0, 50.0)] * 3 + [(50.0, 65.0)] * 3
    assert shapes(plot_transcriptions({"a": Notes.empty(), "b": Notes.empty()})) == 0
