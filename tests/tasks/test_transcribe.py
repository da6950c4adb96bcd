"""Transcription from Python: sources, options, results that write and show themselves."""

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

import musicjax
from musicjax.audio import Audio
from musicjax.data.records import Example
from musicjax.errors import AudioError, ConfigError, DataError, OutputError
from musicjax.notes import Notes, Pedal, read_csv, read_json, read_midi
from musicjax.registry import Ability
from musicjax.tasks import Transcriber, evaluate
from musicjax.tasks import transcribe as task

RATE = 16000


@pytest.fixture(scope="module")
def transcriber(tiny_weights):
    return musicjax.load(tiny_weights, window_s=6.0, batch_size=2)


@pytest.fixture(scope="module")
def samples():
    return np.random.default_rng(0).normal(0, 0.1, 3 * RATE).astype(np.float32)


@pytest.fixture(scope="module")
def low(transcriber, samples):
    """Thresholds in the middle of what random weights say, so that there are many notes."""
    heard = transcriber.activations(samples, RATE)
    return {f"{name}_threshold": float(np.median(heard[name])) for name in ("onset", "frame")}


@pytest.fixture(scope="module")
def result(transcriber, samples, low):
    return transcriber.transcribe(samples, RATE, **low)


def test_every_kind_of_source_gives_the_same_notes(transcriber, samples, result, tmp_path, low):
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    assert len(result.notes) > 0
    sources = [path, io.BytesIO(path.read_bytes()), Audio(samples, RATE), (samples, RATE),
               np.stack([samples, samples])]  # fmt: skip
    for source in sources:
        rate = RATE if isinstance(source, np.ndarray) else None
        assert transcriber.transcribe(source, rate, **low).notes == result.notes
    assert transcriber.runner.programs == 1


def test_activations_cover_the_recording(transcriber, samples, result):
    heard = transcriber.activations(samples, RATE)
    assert heard.keys() == result.activations.keys() >= {"onset", "frame", "velocity"}
    for name, value in heard.items():
        assert value.shape == (np.ceil(3 * RATE / 512), 88)
        assert value.dtype == np.float16
        assert value.min() >= 0 and value.max() <= 1
        np.testing.assert_array_equal(value, result.activations[name])
    assert result.frames_per_s == RATE / 512
    assert result.duration_s == 3.0


def test_the_result_writes_itself(result, tmp_path):
    result.to_midi(tmp_path / "a.mid")
    result.to_csv(tmp_path / "a.csv")
    result.to_json(tmp_path / "a.json")
    count = len(result.notes)
    assert len(read_midi(tmp_path / "a.mid")) == count
    assert len(read_csv(tmp_path / "a.csv")) == count
    assert len(read_json(tmp_path / "a.json")) == count
    assert json.loads((tmp_path / "a.json").read_text())
    assert result.write(tmp_path / "b.MID").exists()
    with pytest.raises(OutputError, match=r"\.mid, \.midi"):
        result.write(tmp_path / "a.txt")


def test_the_result_as_a_note_sequence(result):
    assert len(result.to_note_sequence().notes) == len(result.notes)


def test_the_result_draws_and_shows_itself(result, tmp_path):
    result.write(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    page = result._repr_html_()
    assert 'src="data:image/png;base64,iVBOR' in page
    assert repr(result).startswith(f"Transcription({len(result.notes)} notes in 3.0 s")


def test_a_result_without_its_audio_still_draws(transcriber, samples, tmp_path, low):
    path = tmp_path / "a.wav"
    soundfile.write(path, samples, RATE)
    heard = transcriber.transcribe(path, **low)
    path.unlink()
    heard.plot(tmp_path / "a.png", start_s=1.0, end_s=2.0)
    assert (tmp_path / "a.png").stat().st_size > 0


def test_sound_of_more_than_an_hour_is_not_drawn(result, samples, monkeypatch):
    given = replace(result, audio=Audio(samples, RATE))
    read = []
    monkeypatch.setattr(task, "part_of", lambda *part: read.append(part))
    monkeypatch.setattr(task, "DRAWN_S", 120.0)
    for long in (replace(given, duration_s=121.0), replace(given, duration_s=72000.0)):
        words = [text.get_text() for text in long.plot().texts]
        assert words[0] == "Notes alone: sound is drawn of no more than 2 min 0 s"
        assert read == []
    long.plot(start_s=1.0, end_s=121.0)
    assert read == [(given.audio, 1.0, 121.0)]


def test_confidence_is_the_mean_probability_at_the_onsets(result):
    onset = np.zeros((100, 88), np.float16)
    onset[10, 39], onset[21, 43] = 0.5, 1.0
    notes = Notes.from_arrays([10 / 31.25, 20 / 31.25], [2.0, 3.0], [60, 64])
    found = replace(result, notes=notes, activations={"onset": onset})
    assert found.confidence == 0.75  # an onset counts from the frame before to the frame after
    assert replace(found, notes=Notes.empty()).confidence is None
    assert replace(found, activations={"tokens": onset}).confidence is None


def test_doubt_is_told_where_the_card_knows_what_sure_is(transcriber, samples, low, monkeypatch):
    assert transcriber.transcribe(samples, RATE, **low).doubt is None  # no card
    sure = transcriber.transcribe(samples, RATE, **low).confidence
    for least, doubted in ((sure - 0.01, False), (sure + 0.01, True)):
        card = SimpleNamespace(ability=Ability({"piano": 0.9}, least_confidence=least))
        monkeypatch.setattr(transcriber, "card", card)
        doubt = transcriber.transcribe(samples, RATE, **low).doubt
        assert (doubt is not None) == doubted
    assert "a piano gives more than" in doubt and "--instrument any" in doubt
    few = transcriber.transcribe(samples[:800], RATE, onset_threshold=1.0)
    assert few.doubt is None and len(few.notes) == 0


def test_the_shipped_weights_know_a_piano_from_a_quartet(shared, root):
    piano = musicjax.load("onsets_frames.small")
    assert piano.transcribe(root / "examples" / "gymnopedie.flac").doubt is None
    clips = [shared(f"data/clips/{name}.flac") for name in ("quartet_1", "voice_vocadito10")]
    assert all(result.doubt for result in piano.transcribe_many(clips))


def test_options_go_to_the_decoding_and_are_checked(transcriber, samples, result):
    fewer = transcriber.transcribe(samples, RATE, onset_threshold=0.99)
    assert len(fewer.notes) < len(result.notes)
    with pytest.raises(ConfigError, match="did you mean onset_threshold"):
        transcriber.transcribe(samples, RATE, onset_treshold=0.4)


def test_many_recordings_in_order_with_errors_in_place(transcriber, samples, tmp_path, result, low):
    given = [Audio(samples, RATE), tmp_path / "gone.wav", Audio(samples, RATE)]
    first, second, third = transcriber.transcribe_many(given, **low)
    assert first.notes == third.notes == result.notes
    assert isinstance(second, AudioError)


def test_long_audio_gives_the_notes_of_its_pieces_away_from_the_seams(transcriber, low):
    long = np.random.default_rng(1).normal(0, 0.1, 24 * RATE).astype(np.float32)
    whole = transcriber.transcribe(long, RATE, **low).notes
    for start in (0, 12):
        piece = transcriber.transcribe(long[start * RATE : (start + 12) * RATE], RATE, **low).notes

        def inner(notes: Notes, low: float, high: float) -> set:
            near = [n for n in notes if low <= n.onset_s < high and n.offset_s < high]
            return {(round(n.onset_s * RATE / 512), n.pitch) for n in near}

        shifted = piece.shift(start)
        here = inner(whole, start + 3, start + 9)
        there = inner(shifted, start + 3, start + 9)
        assert len(here) > 10
        # A probability within rounding of a threshold may fall on either side of it.
        assert len(here ^ there) <= 0.02 * len(here)


def example(samples, notes, name="piece"):
    return Example(name, RATE, (samples * 32767).astype(np.int16), notes)


def test_evaluation_scores_each_piece_and_the_mean(transcriber, samples, low):
    as_heard = transcriber.transcribe((samples * 32767).astype(np.int16), RATE, **low).notes
    one = Notes.from_arrays([0.5], [1.0], [60], [80])
    found = evaluate(
        transcriber, [example(samples, as_heard, "a"), example(samples, one, "b")], **low
    )
    assert found["pieces"] == 2
    assert found["each"]["a"]["onset_f1"] == 1.0
    assert found["each"]["b"]["onset_f1"] < 0.5
    mean = (found["each"]["a"]["onset_f1"] + found["each"]["b"]["onset_f1"]) / 2
    assert found["mean"]["onset_f1"] == pytest.approx(mean)
    with pytest.raises(DataError, match="no examples"):
        evaluate(transcriber, [])


def test_evaluation_by_instrument_and_family_leaves_out_what_does_not_apply(
    transcriber, samples, monkeypatch
):
    cello = Notes.from_arrays([0.5], [1.0], [60], [80], program=[42])
    violin = Notes.from_arrays([0.5], [1.0], [60], [80], program=[40])
    drummed = Notes.concat([violin, Notes.from_arrays([1.0], [1.1], [38], [80], is_drum=[True])])
    monkeypatch.setattr(transcriber, "_decode", lambda *_: cello)
    found = evaluate(transcriber, [example(samples, violin, "a"), example(samples, drummed, "b")])
    assert found["each"]["a"]["onset_program_f1"] == 0.0
    assert found["each"]["a"]["onset_family_f1"] == 1.0
    assert "drum_onset_f1" not in found["each"]["a"]
    assert found["mean"]["drum_onset_f1"] == found["each"]["b"]["drum_onset_f1"] == 0.0


def test_evaluation_holds_what_was_heard_by_the_pedal_that_was_heard(
    transcriber, samples, monkeypatch
):
    pedal = Pedal.from_arrays([0.9, 2.0], [127, 0])
    held = Notes.from_arrays([0.5], [1.0], [60], [80], pedal=pedal)
    long = Notes.from_arrays([0.5], [2.0], [60], [80])
    for heard in (held, long):
        monkeypatch.setattr(transcriber, "_decode", lambda *_, heard=heard: heard)
        for truth in (held, long):
            found = evaluate(transcriber, [example(samples, truth)])
            assert found["mean"]["onset_offset_f1"] == 1.0


def test_unknown_task_and_device_are_told(tiny_weights):
    with pytest.raises(ConfigError, match="no device 'abacus'"):
        musicjax.load(tiny_weights, device="abacus")


def test_names_of_the_task(transcriber):
    assert isinstance(transcriber, Transcriber)
    assert "16000 Hz" in repr(transcriber)


def test_a_training_run_is_evaluated_without_compiling_again(tiny_model, samples, monkeypatch):
    model, config = tiny_model
    notes = Notes.from_arrays([0.5], [1.0], [60], [80])
    monkeypatch.setattr("musicjax.data.examples", lambda *_: [example(samples, notes)])
    monkeypatch.setattr(task, "WINDOW_S", 5.0)
    monkeypatch.setattr(task, "CPU_BATCH", 10)
    made = []
    take = task.Runner.take_weights
    monkeypatch.setattr(
        task.Runner, "take_weights", lambda self, m: made.append(self) or take(self, m)
    )
    data = SimpleNamespace(valid=("anything",))
    run = SimpleNamespace(data=data, system="onsets_frames", model=config, sample_rate=RATE)
    score = task.evaluation(run)
    first, second = score(model), score(model)
    assert first == second
    assert 0 <= first["onset_f1"] <= 1
    assert made[0].programs == 1
    data.valid = ()
    assert task.evaluation(run) is None
