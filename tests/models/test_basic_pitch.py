"""Basic Pitch: a twin in PyTorch, the published posteriors and notes, note creation by loops."""

import csv
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.audio import load_audio
from musicjax.audio.cqt import CQTConfig
from musicjax.errors import AudioError, ConfigError, WeightsError
from musicjax.hub.onnx import OnnxGraph, read_onnx
from musicjax.hub.weights import LoadedModel
from musicjax.models.basic_pitch import SYSTEM, note_creation
from musicjax.models.basic_pitch.convert import convert, from_onnx
from musicjax.models.basic_pitch.labels import targets
from musicjax.models.basic_pitch.model import (
    BasicPitch,
    BasicPitchConfig,
    frame_times,
    get_config,
    loss,
)
from musicjax.models.basic_pitch.note_creation import NoteCreation, decode, rises
from musicjax.models.basic_pitch.stacking import (
    convolve_stacked,
    convolve_to_one,
    harmonic_shifts,
    stack_harmonics,
)
from musicjax.notes import Bends, Notes
from musicjax.tasks.transcribe import Transcriber

FIXTURES = Path(__file__).parent.parent / "fixtures" / "basic_pitch"
TINY = BasicPitchConfig(contour_channels=2, note_channels=3, onset_channels=4)
PUBLISHED = get_config("icassp2022")
REFERENCE = "data/clips/basic_pitch_reference"


def plain(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def test_configs_that_cannot_work_are_told():
    assert hash(get_config("base")) == hash(get_config("icassp2022"))
    with pytest.raises(ConfigError, match="no variant 'huge'; choose one of base"):
        get_config("huge")
    with pytest.raises(ConfigError, match="it must have 60"):
        BasicPitchConfig(bins_per_semitone=5)
    with pytest.raises(ConfigError, match="fewer than the 264"):
        BasicPitchConfig(frontend=CQTConfig(num_bins=200))


# The network ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 3])
def test_stacked_harmonics_as_one_product(rows):
    shifts, bins = harmonic_shifts((0.5, 1, 2, 3), 5), 17
    assert shifts == (-5, 0, 5, 8)
    rng = np.random.default_rng(rows)
    x = rng.normal(size=(2, 4, 21)).astype(np.float32)
    kernel = rng.normal(size=(rows, 7, 4, 3)).astype(np.float32)
    stacked = stack_harmonics(x, shifts, bins)
    for channel, shift in enumerate(shifts):
        for f in range(bins):
            there = 0 <= f + shift < 21
            expected = x[:, :, f + shift] if there else 0 * x[:, :, 0]
            np.testing.assert_array_equal(stacked[:, :, f, channel], expected)
    got = convolve_stacked(x, kernel, shifts, bins)
    np.testing.assert_allclose(got, plain(stacked, kernel), atol=1e-5)


def test_convolution_to_one_map():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    kernel = rng.normal(size=(5, 3, 3, 1)).astype(np.float32)
    np.testing.assert_allclose(convolve_to_one(x, kernel), plain(x, kernel)[..., 0], atol=1e-5)


@pytest.fixture(scope="module")
def twin():
    return np.load(FIXTURES / "twin.npz")


def test_every_layer_of_the_twin(twin):
    model, config = from_onnx(read_onnx(FIXTURES / "tiny.onnx"), TINY)
    assert config == TINY
    graph, state = nnx.split(model)

    def hidden_and_heard(state, features):
        model = nnx.merge(graph, state)
        out = model(features)
        shifts = harmonic_shifts(TINY.harmonics, 36)
        x = model.norm(features[..., None], use_running_average=True)[..., 0]
        contour = convolve_stacked(x, model.contour_conv.filters(), shifts, 264)
        onset = model.onset_conv.strided(stack_harmonics(x, shifts, 264), 3)
        return {
            "contour_hidden": model.contour_norm(contour, train=False),
            "onset_hidden": model.onset_norm(onset, train=False),
            "contour": jax.nn.sigmoid(out.contour)[..., None],
            "note": jax.nn.sigmoid(out.note)[..., None],
            "onset": jax.nn.sigmoid(out.onset)[..., None],
        }

    features = (twin["level"] / 65535).astype(np.float32)
    for name, value in jax.jit(hidden_and_heard)(state, features).items():
        expected = twin[name].transpose(0, 2, 3, 1)  # channels last
        got = np.asarray(value)[:, twin["frames"]]
        np.testing.assert_allclose(got, expected, atol=1e-5, err_msg=name)


def test_a_file_of_another_network_is_told():
    with pytest.raises(WeightsError, match="has 0 Conv nodes whose names begin with 'model_1"):
        from_onnx(OnnxGraph({}, ()))
    with pytest.raises(WeightsError, match=r"contour_conv\.weight becomes \(3, 39, 8, 2\)"):
        convert(FIXTURES / "tiny.onnx")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nmp.tflite", "TensorFlow Lite"),
        ("variables.index", "part of a TensorFlow checkpoint"),
        ("variables.data-00000-of-00001", "part of a TensorFlow checkpoint"),
        ("variables", "part of a TensorFlow checkpoint"),
        ("saved_model.pb", "SavedModel"),
        ("nmp.mlpackage", "CoreML"),
        (".", "a folder"),
    ],
)
def test_the_other_published_forms_are_not_called_damaged(tmp_path, name, said):
    (tmp_path / "nmp.tflite").write_bytes(b"\x1c\0\0\0TFL3 and so on")
    for part in ("variables.index", "variables.data-00000-of-00001", "saved_model.pb"):
        (tmp_path / part).write_bytes(b"theirs")
    (tmp_path / "nmp.mlpackage").mkdir()
    with pytest.raises(WeightsError, match=rf"{said}.*give that file"):
        convert(tmp_path / name)


def test_what_is_no_file_of_theirs_is_told(tmp_path):
    (tmp_path / "nmp.onnx").write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsError, match="not a whole ONNX model"):
        convert(tmp_path / "nmp.onnx")
    with pytest.raises(WeightsError, match="cannot read"):
        convert(tmp_path / "gone.onnx")


# Note creation --------------------------------------------------------------------------------


def notes_by_loops(note, onset, onset_threshold, threshold, shortest):
    """Bittner et al.'s procedure cell by cell: (first frame, frame after the last, pitch)."""
    count, pitches = note.shape
    left, found = note.copy(), []
    for t in range(count - 2, 0, -1):
        for p in range(pitches - 1, -1, -1):
            at = onset[t, p]
            if not (at > onset[t - 1, p] and at > onset[t + 1, p] and at >= onset_threshold):
                continue
            i, quiet = t + 1, 0
            while i < count - 1 and quiet < 11:
                quiet = quiet + 1 if left[i, p] < threshold else 0
                i += 1
            i -= quiet
            if i - t > shortest:
                left[t:i, max(p - 1, 0) : p + 2] = 0
                found.append((t, i, p))
    while left.max() > threshold:
        middle, p = np.unravel_index(left.argmax(), left.shape)
        left[middle, p] = 0
        ends = []
        for step, border in ((1, count - 1), (-1, 0)):
            i, quiet = middle + step, 0
            while i * step < border * step and quiet < 11:
                quiet = quiet + 1 if left[i, p] < threshold else 0
                left[i, max(p - 1, 0) : p + 2] = 0
                i += step
            ends.append(i - step * (1 + quiet))
        stop, start = ends
        if stop - start > shortest:
            found.append((start, stop, p))
    return sorted(found)


def inferred_onsets(onset, note):
    """The onset posterior, or the rise of the note posterior where that is more."""
    rise = rises(note)
    return np.maximum(onset, onset.max() * rise / rise.max())


def smooth_posteriors(seed, count=400, pitches=9):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count + 8, pitches))
    wave = np.stack([np.convolve(raw[:, p], np.ones(9) / 3, "valid") for p in range(pitches)], 1)
    note = 1 / (1 + np.exp(-wave))
    onset = 1 / (1 + np.exp(1 - rng.normal(size=(count, pitches)) * 1.2))
    contour = rng.uniform(size=(count, 3 * pitches))
    rolls = {"note": note, "onset": onset, "contour": contour}
    return {name: roll.astype(np.float32) for name, roll in rolls.items()}


NARROW = BasicPitchConfig(num_pitches=9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("infer_onsets", [False, True])
def test_notes_are_those_of_the_loops(seed, infer_onsets):
    heard = smooth_posteriors(seed)
    shortest = [11, 4, 0][seed % 3]
    notes = decode(
        heard,
        NARROW,
        infer_onsets=infer_onsets,
        frame_threshold=0.45,
        min_duration_s=shortest * 256 / 22050,
        pitch_bends=False,
    )
    onset = inferred_onsets(heard["onset"], heard["note"]) if infer_onsets else heard["onset"]
    expected = notes_by_loops(heard["note"], onset, 0.5, 0.45, shortest)
    assert len(expected) > 10
    time_s = frame_times(len(onset), NARROW)
    order = sorted((time_s[a], p + 21, time_s[b]) for a, b, p in expected)
    got = list(zip(notes.onset_s, notes.pitch, notes.offset_s, strict=True))
    assert sorted(got) == order
    velocity = {(time_s[a], p + 21): heard["note"][a:b, p].mean() for a, b, p in expected}
    for note in notes:
        assert abs(note.velocity - 127 * velocity[note.onset_s, note.pitch]) <= 0.51


def test_onsets_are_inferred_from_rises():
    note = np.zeros((30, 1), np.float32)
    note[2:7, 0] = [0.1, 0.5, 0.6, 0.6, 0.6]
    # Over one frame .1 .4 .1 0 0, over two .1 .5 .5 .1 0: the less of both
    np.testing.assert_allclose(rises(note)[:8, 0], [0, 0, 0.1, 0.4, 0.1, 0, 0, 0], atol=1e-7)
    onset = np.full((30, 1), 0.2, np.float32)
    heard = {"note": note, "onset": onset}
    plain = {"pitch_bends": False, "melodia_trick": False, "min_duration_s": 0.0}
    one = BasicPitchConfig(num_pitches=1)
    assert len(decode(heard, one, **plain)) == 0  # scaled to .2, the largest rise is no onset
    onset[20] = 0.8
    found = decode(heard, one, **plain)  # and to .8 it is one
    np.testing.assert_allclose(found.onset_s * 22050 / 256, [3, 20])
    np.testing.assert_allclose(found.offset_s * 22050 / 256, [7, 21])
    assert len(decode(heard, one, **plain, infer_onsets=False)) == 1


@pytest.mark.parametrize("seed", range(4))
def test_notes_are_the_same_however_posteriors_come(seed, monkeypatch):
    heard = smooth_posteriors(seed, 1500)
    for begin in range(90, 1500, 150):  # rests of 27 frames: just long enough, and too short
        for roll in ("note", "onset"):
            heard[roll][begin : begin + 26 + begin // 150 % 2] *= 0.1
    heard["onset"][:700] *= 0.6  # the scale of inferred onsets is known late
    options = {"frame_threshold": 0.45, "min_duration_s": [0.0, 0.05][seed % 2]}
    whole = decode(heard, NARROW, **options)
    assert len(whole) > 60 and whole.bends is not None
    for block, piece in ((16, 30), (100, 1), (333, 500)):
        monkeypatch.setattr(note_creation, "_BLOCK", block)
        monkeypatch.setattr(note_creation, "_PIECE", piece)
        creation = NoteCreation(NARROW, **options)
        for begin in range(0, 1500, 70):
            creation.add({name: roll[begin : begin + 70] for name, roll in heard.items()})
        assert creation.done() == whole
        if piece == 1:
            assert len(creation._rests()) > 4


def test_a_day_of_posteriors_is_kept_in_a_small_part_of_it():
    """Made-up music of four voices: growth from 5 to 20 minutes, counted for 20 hours."""
    rng = np.random.default_rng(0)
    minute = 60 * 22050 // 256
    rolls = {n: np.full((minute, b), 0.02, np.float32) for n, b in (("note", 88), ("onset", 88))}
    rolls["contour"] = rng.uniform(0, 0.1, (minute, 264)).astype(np.float16)
    for begin in range(0, minute - 40, 25):
        keys = rng.choice(88, 4, replace=False)
        rolls["note"][begin : begin + rng.integers(10, 40), keys] = rng.uniform(0.4, 0.9, 4)
        rolls["onset"][begin, keys] = 0.8
        rolls["contour"][begin : begin + 40, 3 * keys + 1] = 0.8
    taken = {}
    for minutes in (5, 20):
        tracemalloc.start()
        creation = NoteCreation(PUBLISHED)
        for _ in range(minutes):
            for part in np.array_split(np.arange(minute), 20):
                creation.add({name: roll[part] for name, roll in rolls.items()})
        notes = creation.done()
        taken[minutes] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(notes) > 400 * minutes
    a_minute = (taken[20] - taken[5]) / 15
    assert taken[5] + 1200 * a_minute < 1e9  # the posteriors themselves: 7.6e9


def test_bends_follow_the_strongest_contour_near_the_note():
    count, pitch = 40, 30
    note, onset = np.zeros((count, 88), np.float32), np.zeros((count, 88), np.float32)
    note[5:30, pitch], onset[5, pitch] = 0.9, 0.9
    contour = np.full((count, 264), 0.01, np.float32)
    middle = 3 * pitch + 1
    contour[5:10, middle] = contour[10:20, middle + 2] = contour[20:30, middle - 1] = 0.8
    contour[:, 0] = 1.0  # too far away
    notes = decode({"note": note, "onset": onset, "contour": contour}, PUBLISHED)
    assert len(notes) == 1 and notes.pitch[0] == 51
    time_s, semitones = notes.bends.of(0)
    np.testing.assert_allclose(semitones, [2 / 3, -1 / 3])
    np.testing.assert_allclose(time_s, frame_times(count, PUBLISHED)[[10, 20]])
    theirs = decode({"note": note, "onset": onset, "contour": contour}, PUBLISHED, contour_centre=0)
    np.testing.assert_allclose(theirs.bends.of(0)[1], [1 / 3, 1.0, 0.0])
    assert decode({"note": note, "onset": onset}, PUBLISHED, pitch_bends=False).bends is None


def test_limits_in_hz_and_silence():
    heard = smooth_posteriors(0)
    every = decode(heard, NARROW)
    some = decode(heard, NARROW, min_hz=30.0, max_hz=37.0)  # B0 is 30.9, D1 36.7
    assert set(some.pitch) <= {23, 24, 25} < set(every.pitch)
    for count in (0, 1, 2, 3, 40):
        silence = {n: np.zeros((count, v.shape[1]), np.float32) for n, v in heard.items()}
        assert len(decode(silence, NARROW)) == 0
    with pytest.raises(ConfigError, match="frame_threshold is 0; it must be above 0"):
        decode(heard, NARROW, frame_threshold=0.0)
    with pytest.raises(ConfigError, match="a frequency limit is 0 Hz"):
        decode(heard, NARROW, min_hz=0.0)


def test_frames_stand_where_their_windows_do():
    exact = frame_times(1000, BasicPitchConfig(frame_times="exact"))
    assert exact[142] == 36164 / 22050 and exact[143] == (36164 + 256) / 22050
    published = frame_times(1000, PUBLISHED)
    np.testing.assert_allclose(published[:172], np.arange(172) * 256 / 22050)
    assert np.abs(published - exact).max() < 0.0105


# Labels and loss ------------------------------------------------------------------------------


def test_labels_of_a_few_notes():
    fps = 22050 / 256
    notes = Notes.from_arrays(
        onset_s=np.array([-1.0, 2.4, 3.0, 5.0]) / fps,
        offset_s=np.array([1.6, 4.0, 99.0, 6.0]) / fps,
        pitch=[60, 64, 21, 40],
        is_drum=[False, False, False, True],
        bends=Bends.from_points([[], [(3.0 / fps, 1.0)], [], []]),
    )
    rolls = targets(notes, 0.0, 7 * 256, TINY)
    assert {name: roll.shape for name, roll in rolls.items()} == {
        "contour": (8, 264), "note": (8, 88), "onset": (8, 88)
    }  # fmt: skip
    note = (
        {(60, t) for t in range(3)} | {(64, t) for t in (2, 3, 4)} | {(21, t) for t in range(3, 8)}
    )
    assert {(p + 21, t) for t, p in np.argwhere(rolls["note"])} == note
    assert {(p + 21, t) for t, p in np.argwhere(rolls["onset"])} == {(64, 2), (21, 3)}
    contour = {(3 * 39 + 1, t) for t in range(3)} | {(1, t) for t in range(3, 8)}
    contour |= {(3 * 43 + 1, 2), (3 * 43 + 4, 3), (3 * 43 + 4, 4)}
    assert {(b, t) for t, b in np.argwhere(rolls["contour"])} == contour
    moved = targets(notes.shift(2.0), 2.0, 7 * 256, TINY)
    assert all((moved[name] == rolls[name]).all() for name in rolls)


def test_loss_by_hand():
    model = BasicPitch(TINY, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    rng = np.random.default_rng(0)
    audio = rng.normal(scale=0.1, size=(2, 1500)).astype(np.float32)
    batch = {"audio": audio, "mask": np.array([[True] * 6, [True] * 4 + [False] * 2])}
    for name, bins in (("contour", 264), ("note", 88), ("onset", 88)):
        batch[name] = (rng.uniform(size=(2, 6, bins)) < 0.1).astype(np.uint8)

    def run(state, batch):
        return loss(nnx.merge(graph, state), batch, key=None, train=False)

    total, parts = jax.jit(run)(state, batch)
    heard = jax.jit(lambda state, audio, mask: nnx.merge(graph, state)(features(audio), mask=mask))(
        state, audio, batch["mask"]
    )
    expected = {}
    for name in ("contour", "note", "onset"):
        p = 1 / (1 + np.exp(-np.asarray(getattr(heard, name), np.float64)))
        label = batch[name] * 0.8 + 0.1
        cells = -(label * np.log(p) + (1 - label) * np.log(1 - p))
        seen = np.broadcast_to(batch["mask"][..., None], cells.shape)
        if name == "onset":
            on, off = (cells[seen & (batch[name] == value)].mean() for value in (1, 0))
            expected[name] = 0.95 * on + 0.05 * off
        else:
            expected[name] = cells[seen].mean()
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-4)
    with pytest.raises(AudioError, match=r"1500 samples give \(2, 6, 88\)"):
        jax.eval_shape(run, state, {**batch, "note": batch["note"][:, :5]})


def features(audio):
    from musicjax.audio.cqt import cqt_power, normalised_log

    return normalised_log(cqt_power(audio, TINY.frontend))


# The published weights --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared):
    model, config = convert(shared("weights/basic_pitch/nmp.onnx"))
    return Transcriber(LoadedModel(model, config, None, "icassp2022", SYSTEM), batch_size=6)


def published_notes(path):
    rows = list(csv.reader(path.open()))[1:]
    found = [(float(a), float(b), int(p), float(v), [int(x) for x in bends.split()])
             for a, b, p, v, bends in rows]  # fmt: skip
    return sorted(found)


def test_the_published_posteriors_and_notes(shared, published):
    posteriors = np.load(shared(f"{REFERENCE}/vocadito10_posteriors.npz"))
    expected = published_notes(shared(f"{REFERENCE}/vocadito10_notes.csv"))
    audio = load_audio(shared("data/clips/voice_vocadito10.flac"), 22050)
    result = published.transcribe(audio, contour_centre=0)
    for name in posteriors.files:
        got = result.activations[name]
        assert got.shape == posteriors[name].shape
        # Contours are kept as float16 between network and decoding.
        tolerance = 6e-4 if name == "contour" else 2e-4
        np.testing.assert_allclose(got, posteriors[name], atol=tolerance, err_msg=name)
    for notes in (result.notes, decode(dict(posteriors), PUBLISHED, contour_centre=0)):
        onset, offset, pitch, amplitude, bends = zip(*expected, strict=True)
        np.testing.assert_allclose(notes.onset_s, onset, atol=1e-9)
        np.testing.assert_allclose(notes.offset_s, offset, atol=1e-9)
        np.testing.assert_array_equal(notes.pitch, pitch)
        np.testing.assert_array_equal(notes.velocity, np.round(127 * np.array(amplitude)))
        time_s = frame_times(len(posteriors["note"]), PUBLISHED)
        for index, thirds in enumerate(bends):
            frames = time_s[np.searchsorted(time_s, onset[index] - 1e-9) :][: len(thirds)]
            points_s, semitones = notes.bends.of(index)
            place = np.searchsorted(points_s, frames + 1e-9) - 1
            got = np.where(place >= 0, semitones[np.maximum(place, 0)], 0.0)
            np.testing.assert_allclose(3 * got, thirds, atol=1e-6)


def test_a_steady_tone_is_in_tune(shared, published):
    result = published.transcribe(shared("data/clips/synth_sawtooth440.flac"))
    assert list(result.notes.pitch) == [69]
    assert result.notes.bends is None


def test_counts():
    model = nnx.eval_shape(lambda: BasicPitch(PUBLISHED, rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count == SYSTEM.cards["icassp2022"].parameters == 16_742
    assert model.windowing.stride == 36_164
    assert jnp.float32 == jnp.dtype(model.norm.scale.dtype)
