"""What must hold of a front-end whatever its constants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicjax.audio import (
    PRESETS,
    FrontendConfig,
    complex_spectrogram,
    frame_mask,
    num_frames,
    preset,
    spectrogram,
)
from musicjax.audio import frontend as frontend_module
from musicjax.errors import AudioError, ConfigError

SMALL = FrontendConfig(
    sample_rate=8000, window_length=256, fft_length=256, hop_length=64, num_bins=20,
    f_max_hz=4000.0,
)  # fmt: skip
LINEAR = dataclasses.replace(SMALL, bank="none", log="none", power=2.0, padding="none")


@functools.cache
def features_of(config: FrontendConfig):
    return jax.jit(lambda x: spectrogram(x, config))


def noise(seed: int, samples: int = 2048) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)


@settings(deadline=None, max_examples=60)
@given(
    samples=st.integers(1, 4000),
    padding=st.sampled_from(["reflect", "zeros", "end", "same", "none"]),
    fft_length=st.integers(1, 300),
    hop_length=st.integers(1, 400),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_num_frames_is_the_number_of_frames(samples, padding, fft_length, hop_length, flags):
    config = dataclasses.replace(
        LINEAR, padding=padding, fft_length=fft_length, window_length=fft_length,
        hop_length=hop_length, drop_last_sample=flags[0], whole_hops=flags[1],
        drop_last_frame=flags[2],
    )  # fmt: skip
    if samples == 1 and flags[0]:
        return
    shape = jax.eval_shape(
        lambda x: spectrogram(x, config), jax.ShapeDtypeStruct((samples,), jnp.float32)
    ).shape
    assert shape == (num_frames(samples, config), fft_length // 2 + 1)


def test_parseval():
    rectangular = dataclasses.replace(LINEAR, window="rectangular", hop_length=256)
    x = noise(0)
    bins = np.array(features_of(rectangular)(x))
    bins[:, 1:-1] *= 2  # bins between DC and Nyquist stand for their mirror images too
    np.testing.assert_allclose(bins.sum() / 256, (x.astype(np.float64) ** 2).sum(), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 999), gain=st.floats(0.01, 100), other=st.floats(-10, 10))
def test_the_transform_is_linear_and_power_is_quadratic(seed, gain, other):
    x, y = noise(seed), noise(seed + 1000)
    transform = _complex()
    combined = transform(np.float32(gain) * x + np.float32(other) * y)
    apart = gain * np.asarray(transform(x)) + other * np.asarray(transform(y))
    np.testing.assert_allclose(combined, apart, atol=2e-5 * (gain + abs(other)) * 256)
    powers = features_of(LINEAR)
    np.testing.assert_allclose(
        powers(np.float32(gain) * x), gain**2 * np.asarray(powers(x)), rtol=1e-3, atol=1e-6
    )


@functools.cache
def _complex():
    return jax.jit(lambda x: complex_spectrogram(x, LINEAR))


@settings(deadline=None, max_examples=20)
@given(bin_index=st.integers(3, 125), phase=st.floats(0, 6.28))
def test_a_tone_is_in_its_bin(bin_index, phase):
    time = np.arange(2048) / 8000
    tone = np.sin(2 * np.pi * bin_index * 8000 / 256 * time + phase).astype(np.float32)
    bins = np.asarray(features_of(LINEAR)(tone))
    assert (bins.argmax(axis=-1) == bin_index).all()
    # A periodic Hann window leaks into the two neighbours and nowhere else.
    rest = np.delete(bins, [bin_index - 1, bin_index, bin_index + 1], axis=-1)
    assert rest.max() < 1e-6 * bins.max()


@pytest.mark.parametrize("pitch_hz", [220.0, 880.0, 2093.0])
def test_a_tone_is_in_its_mel(pitch_hz):
    config = dataclasses.replace(SMALL, num_bins=20, log="none", mel_norm="none")
    tone = np.sin(2 * np.pi * pitch_hz * np.arange(2048) / 8000).astype(np.float32)
    mels = np.asarray(features_of(config)(tone))[8]
    htk = 2595 * np.log10(1 + np.array([30.0, 4000.0, pitch_hz]) / 700)
    expected = (htk[2] - htk[0]) / (htk[1] - htk[0]) * 21 - 1
    assert abs(mels.argmax() - expected) < 1


def test_a_delay_of_whole_hops_shifts_the_frames():
    x = noise(3, 3000)
    early = np.asarray(features_of(LINEAR)(x[64 * 3 :][:2048]))
    late = np.asarray(features_of(LINEAR)(x[:2048]))
    np.testing.assert_allclose(early[:-3], late[3:], rtol=1e-4, atol=1e-4)


def test_frame_t_is_centred_on_its_sample():
    x = np.zeros(2048, np.float32)
    x[64 * 10] = 1.0
    energy = np.asarray(features_of(dataclasses.replace(LINEAR, padding="zeros"))(x)).sum(axis=-1)
    assert energy.argmax() == 10


def test_matmul_equals_fft():
    matmul = dataclasses.replace(SMALL, dft="matmul")
    np.testing.assert_allclose(
        features_of(matmul)(noise(1)), features_of(SMALL)(noise(1)), rtol=1e-5, atol=1e-4
    )


def test_frames_in_blocks_equal_all_frames_at_once(monkeypatch):
    config = preset("tagging_96")
    x = np.stack([noise(1, 30_000), noise(2, 30_000)])
    at_once = features_of(config)(x)
    monkeypatch.setattr(frontend_module, "_BLOCK_SAMPLES", 1 << 13)
    in_blocks = jax.jit(lambda x: spectrogram(x, config)).lower(x).compile()
    assert "while" in in_blocks.as_text() or jax.default_backend() != "cpu"
    assert "conditional" not in in_blocks.as_text()  # the platform is chosen while compiling
    np.testing.assert_allclose(in_blocks(x), at_once, rtol=1e-5, atol=1e-4)


# --- padded batches -----------------------------------------------------------------------------

MASKED = {
    "reflect": SMALL,
    "onsets_frames": dataclasses.replace(SMALL, drop_last_sample=True),
    "end": dataclasses.replace(SMALL, padding="end"),
    "same": dataclasses.replace(SMALL, padding="same"),
    "none": dataclasses.replace(SMALL, padding="none"),
    "top_db": dataclasses.replace(SMALL, log="db", dynamic_range=20.0, relative_to_max=True),
    "transkun": dataclasses.replace(
        SMALL, padding="zeros", whole_hops=True, standardise="all_frames"
    ),
}


@pytest.mark.parametrize("kind", MASKED)
def test_a_clip_in_a_padded_batch_has_its_own_frames(kind):
    config = MASKED[kind]
    lengths = np.array([2048, 1001, 130])  # the last is only just longer than half a window
    batch = np.stack([noise(i) for i in range(3)])
    got = np.asarray(jax.jit(lambda x, n: spectrogram(x, config, lengths=n))(batch, lengths))
    mask = np.asarray(frame_mask(lengths, 2048, config))
    assert got.shape[:2] == mask.shape
    for clip, features, counted, length in zip(batch, got, mask, lengths, strict=True):
        assert counted.sum() == num_frames(int(length), config)
        assert (features[~counted] == 0).all()
        if counted.any():
            alone = np.asarray(features_of(config)(clip[:length]))
            np.testing.assert_allclose(features[counted], alone, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("samples", [1, 2, 20, 128])
def test_clips_shorter_than_the_padding(samples):
    """10 ms of audio and less: reflected back and forth, as numpy.pad does."""
    x = noise(5, samples)
    got = np.asarray(spectrogram(x, dataclasses.replace(LINEAR, padding="reflect")))
    padded = np.pad(x, 128, mode="reflect" if samples > 1 else "edge")
    expected = np.asarray(spectrogram(padded, LINEAR))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert num_frames(samples, LINEAR) == 0
    assert spectrogram(x, LINEAR).shape == (0, 129)


def test_no_samples_is_an_error_that_names_the_shape():
    with pytest.raises(AudioError, match=r"shape \(2, 0\)"):
        spectrogram(np.zeros((2, 0), np.float32), SMALL)
    with pytest.raises(AudioError, match="at least 2"):
        spectrogram(np.zeros(1, np.float32), preset("onsets_frames"))
    with pytest.raises(AudioError, match="int32"):
        spectrogram(np.zeros(500, np.int32), SMALL)


# --- configs ------------------------------------------------------------------------------------


def test_lengths_that_the_systems_were_built_for():
    expected = {
        ("onsets_frames", 327_680): 640,
        ("tagging_96", 464_000): 1813,
        ("tagging_96", 48_000): 188,
        ("tagging_128", 59_049): 231,
        ("tagging_128", 240_000): 938,
        ("tagging_spectrum", 80_000): 313,
        ("choi", 349_440): 1366,
        ("compact_cnn", 348_000): 1360,
        ("ttmr", 158_560): 992,
        ("lp_musiccaps", 160_000): 1001,
        ("ttmr_pp", 220_500): 1002,
        ("mt3", 32_768): 257,
        ("crepe", 16_000): 101,
        ("online_amt", 5_120): 7,
        ("beat_this", 22_050): 51,
    }
    assert {key: num_frames(key[1], preset(key[0])) for key in expected} == expected


def test_configs_are_values():
    assert hash(preset("kong")) == hash(dataclasses.replace(preset("kong")))
    assert len(set(PRESETS.values())) == len(PRESETS) - 1  # ttmr and lp_musiccaps are one
    kong = dataclasses.asdict(preset("kong"))
    assert FrontendConfig(**kong) == preset("kong")
    assert preset("kong").frames_per_s == 100.0
    assert preset("crepe").output_bins == 1024
    with pytest.raises(dataclasses.FrozenInstanceError):
        preset("kong").hop_length = 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"hop_length": 0}, "hop_length is 0"),
        ({"window_length": 512}, "window must fit into the DFT"),
        ({"f_max_hz": 4001.0}, "within 0 to 4000 Hz"),
        ({"num_bins": 0}, "at least 1"),
        ({"log_floor": 0.0}, "positive floor"),
        ({"scale": 0.0}, "scale is 0"),
    ],
)
def test_what_cannot_work_is_refused(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        dataclasses.replace(SMALL, **change)


def test_an_unknown_choice_lists_the_known_ones():
    config = dataclasses.replace(SMALL)
    object.__setattr__(config, "log", "loud")  # past the type checker of the tests
    with pytest.raises(ConfigError, match="log is 'loud'; it must be one of none, ln, log10, db"):
        config.__post_init__()


def test_the_constant_q_transform_is_found_by_its_system():
    with pytest.raises(ConfigError, match=r"take BASIC_PITCH_CQT, a CQTConfig, and cqt_power"):
        preset("basic_pitch")


def test_unknown_preset_lists_near_matches():
    with pytest.raises(ConfigError, match="did you mean onsets_frames"):
        preset("onset_frames")
    with pytest.raises(ConfigError, match="there are: onsets_frames"):
        preset("xyz")
