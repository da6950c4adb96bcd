"""Made-up voices: their pitch is the melody's, a seed sings the same, truth says what counts."""

import numpy as np
import pytest

from musicjax.data import font_voices
from musicjax.data.melodies import CONTROL_HZ, HIGHEST, LOWEST, Melody, melody
from musicjax.data.pipeline import DataConfig, examples, train_iterator
from musicjax.data.timbres import TIMBRES, consonants, noise
from musicjax.data.voices import FRAME_S, heard, sing, together
from musicjax.errors import DataError
from musicjax.models.crepe.model import get_config, targets

RATE = 16_000


def held(pitch, seconds=1.0):
    count = round(seconds * CONTROL_HZ) + 1
    return Melody(np.full(count, float(pitch)), np.ones(count), np.array([[0, count]]))


def cents_off(tone, hz):
    """Cents of the tone's strongest harmonic from where it should be, by a fine spectrum."""
    size = 1 << 20
    power = np.abs(np.fft.rfft(tone * np.hanning(len(tone)), size))
    step = RATE / size
    number = np.arange(1, min(10, int(7000 / hz)) + 1)
    reach = int(0.03 * hz / step)
    tops = [round(n * hz / step) for n in number]
    best = max(range(len(tops)), key=lambda i: power[tops[i] - reach : tops[i] + reach].max())
    around = power[tops[best] - reach : tops[best] + reach]
    found = (tops[best] - reach + int(around.argmax())) * step / number[best]
    return 1200 * np.log2(found / hz)


@pytest.mark.parametrize("timbre", dict.fromkeys(TIMBRES), ids=lambda t: t.__name__)
@pytest.mark.parametrize("pitch", [45.3, 71.8])
def test_a_held_note_has_its_pitch(timbre, pitch):
    tone = timbre(np.random.default_rng(1), held(pitch), RATE, RATE)
    assert tone.shape == (RATE,) and np.isfinite(tone).all()
    assert abs(cents_off(tone, 440 * 2 ** ((pitch - 69) / 12))) < 3


def test_melodies_leap_rest_and_stay_in_range():
    sung = [melody(np.random.default_rng(seed), 4.0) for seed in range(30)]
    assert all(m.midi.min() >= LOWEST and m.midi.max() <= HIGHEST for m in sung)
    assert len({len(m.notes) for m in sung}) > 5
    assert any((m.level == 0).mean() > 0.1 for m in sung)
    steps = np.concatenate([np.abs(np.diff(m.midi)) for m in sung])
    assert steps.max() > 0.1 and (steps > 0).mean() > 0.3
    plain = melody(np.random.default_rng(3), 4.0, expressive=False)
    assert len(np.unique(plain.midi)) <= len(plain.notes)


def test_the_same_seed_sings_the_same():
    first, second = (sing(np.random.default_rng(5), 1.5, RATE) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1].f0_hz, second[1].f0_hz)
    other, _ = sing(np.random.default_rng(6), 1.5, RATE)
    assert other.shape == first[0].shape == (1.5 * RATE,) and (other != first[0]).any()


def test_truth_tells_notes_rests_and_what_cannot_be_known():
    count = 2 * CONTROL_HZ + 1
    level = np.zeros(count)
    level[200:1000] = 1.0
    sung = Melody(np.full(count, 69.0), level, np.array([[200, 1000]]))
    time = np.arange(2 * RATE) / RATE
    tone = np.where((time >= 0.2) & (time < 1.0), np.sin(2 * np.pi * 440 * time), 0)
    tone = (0.5 * tone).astype(np.float32)
    found = {}
    for seed in range(60):  # some of these have no room and little noise, some much of it
        rng = np.random.default_rng(seed)
        samples, truth = heard(rng, tone, None, sung, RATE)
        rest = samples[: int(0.15 * RATE)]
        loud = float(np.sqrt(np.mean(rest**2)))
        found.setdefault("loud" if loud > 0.4 else "quiet" if loud < 1e-3 else "", truth)
    for truth in found.values():
        np.testing.assert_array_equal(truth.f0_hz[25:95], 440.0)
        assert not truth.f0_hz[:20].any() and not truth.f0_hz[101:].any()
        assert truth.time_s[1] == pytest.approx(FRAME_S)
    quiet = found["quiet"]
    assert (quiet.confidence[25:95] == 1).all() and (quiet.confidence[:15] == 1).all()


def test_a_voice_far_under_the_noise_counts_neither_way():
    sung = held(60, 1.0)
    tone = 0.5 * np.sin(2 * np.pi * 261.6 * np.arange(RATE) / RATE).astype(np.float32)
    hiss = noise(np.random.default_rng(0), RATE, RATE)
    rng = np.random.default_rng(2)
    _, buried = heard(rng, tone, 2.0 * hiss, sung, RATE)
    _, clear = heard(np.random.default_rng(2), tone, 1e-3 * hiss, sung, RATE)
    assert buried.confidence.mean() < 0.05 and clear.confidence.mean() > 0.95


def test_what_is_hardly_there_gives_finite_sound():
    faint = np.full(RATE, 1e-3, np.float32)
    for seed in range(8):
        samples, _ = heard(np.random.default_rng(seed), faint, None, held(60, 1.0), RATE)
        assert np.isfinite(samples).all()


def test_sounds_without_pitch_are_as_loud_as_they_should_be():
    hiss = noise(np.random.default_rng(0), RATE, RATE)
    assert hiss.dtype == np.float32 and 0.9 < np.sqrt(np.mean(hiss**2)) < 1.6
    notes = np.array([[300 * i, 300 * i + 200] for i in range(1, 6)])
    sung = Melody(np.full(2001, 60.0), np.ones(2001), notes)
    bursts = consonants(np.random.default_rng(1), sung, 2 * RATE, RATE)
    assert 0.01 < np.abs(bursts).max() < 3 and not bursts[-RATE // 10 :].any()


@pytest.mark.parametrize(("other", "known"), [(64, 1), (72, 0), (67.1, 1)])
def test_several_voices_have_no_pitch_and_one_alone_counts_neither_way(other, known):
    time = np.arange(RATE) / RATE

    def voice(pitch, until_s):
        tone = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        return np.where(time < until_s, tone, 0).astype(np.float32), held(pitch)

    rng = np.random.default_rng(3)
    samples, truth = together(rng, [voice(60, 0.8), voice(other, 0.5)], RATE)
    assert samples.shape == (RATE,) and np.abs(samples).max() > 0.5
    assert not truth.f0_hz.any()
    assert (truth.confidence[5:45] == known).all()  # an octave may be heard as one
    assert (truth.confidence[55:75] == 0).all()  # the other has ended
    assert (truth.confidence[90:] == 1).all()  # both have


def test_some_clips_hold_what_has_no_pitch():
    """Silence, crowds and tones above the range: the truth has no pitch, the sound may be loud."""
    without = loud = 0
    for seed in range(150):
        samples, truth = sing(np.random.default_rng([7, seed]), 0.5, RATE)
        assert samples.dtype == np.float32 and len(samples) == RATE // 2
        if not truth.f0_hz.any() and (truth.confidence > 0).mean() > 0.3:
            without += 1
            loud += bool(np.abs(samples).max() > 0.1)
    assert 8 <= without <= 50 and loud >= 4


def test_the_pipeline_sings_and_labels():
    config = get_config("tiny")

    def labels(truth, start_s, num_samples):
        return targets(truth, start_s, num_samples, config)

    data = DataConfig(train=("voices:",), clip_s=1.0, batch_size=6, threads=1)
    first, second = (train_iterator(data, labels, RATE) for _ in range(2))
    batch = next(first)
    np.testing.assert_array_equal(batch["audio"], next(second)["audio"])
    first.close()
    second.close()
    cents = batch["f0_cents"]
    assert batch["audio"].shape == (6, RATE) and cents.shape == (6, 101)
    assert (cents > 2000).mean() > 0.2 and (cents <= 0).any() and cents.max() < 9200
    piece = next(iter(examples(["voices:"], RATE)))
    assert len(piece.samples) == 12 * RATE


# Sound fonts ------------------------------------------------------------------------------------


def tone_of(midi, seconds=1.4, harmonics=(1, 0.5, 0.3), wobble=0.0):
    time = np.arange(round(seconds * RATE)) / RATE
    turn = 2 * np.pi * 440 * 2 ** ((midi - 69) / 12) * time + wobble * np.sin(2 * np.pi * 5 * time)
    return sum(a * np.sin((n + 1) * turn) for n, a in enumerate(harmonics)).astype(np.float32)


def test_notes_of_a_font_are_measured_and_unsure_ones_refused():
    for pitch in (29, 57, 81):
        for cents in (0, 12, -20):
            found = font_voices.measured_cents(tone_of(pitch + cents / 100), pitch, RATE)
            assert found == pytest.approx(cents, abs=4)  # of a low note's few periods
    assert font_voices.measured_cents(tone_of(69.5), 69, RATE) is None  # tuned elsewhere
    assert font_voices.measured_cents(tone_of(69 + 12), 69, RATE) is None  # an octave higher
    assert font_voices.measured_cents(tone_of(69, wobble=8.0), 69, RATE) is None  # it swings
    hiss = noise(np.random.default_rng(0), RATE, RATE)
    assert font_voices.measured_cents(hiss, 69, RATE) is None
    assert font_voices.measured_cents(np.zeros(RATE, np.float32), 69, RATE) is None


def test_a_font_plays_the_melody_it_tells(monkeypatch):
    """With sines for a font, every frame's pitch is that of the melody, bends and all."""

    def sines(font, program, sample_rate):
        return [
            font_voices._Tone((tone_of(key, harmonics=(0.9,)) * 32767).astype(np.int16), key)
            for key in range(33, 90, 4)
        ]

    monkeypatch.setattr(font_voices, "_tones", sines)
    monkeypatch.setattr(font_voices, "font_programs", lambda font: frozenset({0, 25}))
    player = font_voices.FontVoices("sines", RATE)
    assert sorted(player.tones) == [0, 25]
    off: list[float] = []
    for seed in range(8):
        samples, sung = player.play(np.random.default_rng(seed), 2.0)
        turns = np.unwrap(np.angle(analytic(samples))) / (2 * np.pi)
        whole = np.convolve(sung.level > 0.5, np.ones(101), "same") > 100.5
        inside = np.flatnonzero(whole[50:1950]) + 50
        first, last = ((inside + side) * RATE // CONTROL_HZ for side in (-25, 25))
        hz = (turns[last] - turns[first]) * RATE / (last - first)
        expected = np.convolve(sung.hz, np.ones(50) / 50, "same")[inside]
        off += np.abs(1200 * np.log2(hz / expected)).tolist()
    assert len(off) > 1000 and np.median(off) < 3
    monkeypatch.setattr(font_voices, "font_programs", lambda font: frozenset({127}))
    with pytest.raises(DataError, match="no instrument with a steady pitch"):
        font_voices.FontVoices("gunshot", RATE)


def analytic(x):
    spectrum = np.fft.fft(x)
    spectrum[len(x) // 2 + 1 :] = 0
    return np.fft.ifft(spectrum)
