"""The constant-Q transform: against nnAudio's, tones on their bins, one item like a batch."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from musicjax.audio.cqt import (
    BASIC_PITCH_CQT,
    CQTConfig,
    cqt,
    cqt_power,
    divide_rate,
    lowpass,
    normalised_log,
    num_cqt_frames,
)
from musicjax.errors import AudioError, ConfigError

POWER = jax.jit(cqt_power, static_argnums=1)
FIXTURE = Path(__file__).parent.parent / "fixtures" / "basic_pitch" / "twin.npz"


@pytest.fixture(scope="module")
def twin():
    return np.load(FIXTURE)


def test_it_is_nnaudios(twin):
    power = POWER(twin["audio"], BASIC_PITCH_CQT)
    assert power.shape == (1, num_cqt_frames(twin["audio"].shape[1], BASIC_PITCH_CQT), 309)
    magnitude = np.sqrt(np.asarray(power))[:, twin["frames"]]
    np.testing.assert_allclose(magnitude, twin["magnitude"], atol=2e-6 * magnitude.max())
    # The weakest cells cancel to a few digits of float32, and the weakest of all is the zero.
    level = np.asarray(normalised_log(power))
    np.testing.assert_allclose(level, twin["level"] / 65535, atol=3e-4)


def test_magnitude_is_that_of_the_complex_transform(twin):
    spectrum = jax.jit(cqt, static_argnums=1)(twin["audio"], BASIC_PITCH_CQT)
    expected = POWER(twin["audio"], BASIC_PITCH_CQT)
    np.testing.assert_allclose(np.abs(spectrum) ** 2, expected, rtol=1e-4, atol=1e-8)


def test_a_tone_lies_on_its_bin():
    config = CQTConfig(
        sample_rate=8000, hop_length=512, f_min_hz=60.0, num_bins=24, bins_per_octave=10
    )
    for index in (0, config.num_bins // 2, config.num_bins - 1):
        hz = config.f_min_hz * 2 ** (index / config.bins_per_octave)
        time_s = np.arange(2 * config.sample_rate) / config.sample_rate
        audio = np.sin(2 * np.pi * hz * time_s).astype(np.float32)
        middle = np.asarray(POWER(audio, config))[num_cqt_frames(len(audio), config) // 2]
        assert middle.argmax() == index


def test_low_bins_alone_are_heard_at_a_lower_rate():
    """Octaves far below the rate are the same with and without the early division."""
    low = CQTConfig(hop_length=512, f_min_hz=55.0, num_bins=36, bins_per_octave=12)
    time_s = np.arange(40_000) / 22_050
    audio = np.sin(2 * np.pi * 110.0 * time_s).astype(np.float32)
    power = np.asarray(POWER(audio, low))
    assert power.shape == (num_cqt_frames(40_000, low), 36)
    assert power[len(power) // 2].argmax() == 12


def test_filters_are_those_of_frequency_sampling():
    for edge, transition in ((0.5, 0.001), (0.25, 0.03)):
        slope = [0.0, edge / (1 + transition), edge * (1 + transition), 1.0]
        expected = signal.firwin2(256, slope, [1.0, 1.0, 0.0, 0.0])
        np.testing.assert_allclose(lowpass(edge, transition), expected, atol=1e-12)


@pytest.mark.parametrize(("length", "factor"), [(2, 2), (7, 2), (256, 4), (1001, 2)])
def test_dividing_the_rate_is_a_convolution(length, factor):
    rng = np.random.default_rng(length)
    samples, taps = rng.normal(size=length), rng.normal(size=256)
    padded = np.pad(samples, 127)
    expected = np.correlate(padded, taps, "valid")[::factor]
    got = divide_rate(jnp.asarray(samples, jnp.float32), taps.astype(np.float32), factor)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_items_of_a_batch_are_alone_and_leading_axes_are_free(twin):
    sound = twin["audio"][0]
    audio = np.stack([sound, sound[::-1]])
    together = POWER(audio[None], BASIC_PITCH_CQT)
    assert together.shape[:2] == (1, 2)
    alone = POWER(twin["audio"], BASIC_PITCH_CQT)[0]
    np.testing.assert_allclose(together[0, 0], alone, rtol=1e-4, atol=1e-6 * alone.max())


def test_gradients_are_finite_in_silence_and_right_in_sound():
    config = CQTConfig(hop_length=64, f_min_hz=880.0, num_bins=24, bins_per_octave=12)

    @jax.jit
    @jax.value_and_grad
    def level(audio):
        return normalised_log(cqt_power(audio, config)).mean()

    assert np.isfinite(level(jnp.zeros(2000))[1]).all()
    rng = np.random.default_rng(0)
    audio, direction = (jnp.asarray(rng.normal(size=2000), jnp.float32) for _ in range(2))
    slope = jnp.vdot(level(audio)[1], direction)
    moved = (level(audio + 0.01 * direction)[0] - level(audio - 0.01 * direction)[0]) / 0.02
    np.testing.assert_allclose(slope, moved, rtol=2e-2)


def test_silence_has_one_level():
    assert not np.asarray(normalised_log(jnp.zeros((4, 5)))).any()


def test_bad_input_is_told_in_sentences():
    with pytest.raises(AudioError, match="at least a hop of 256"):
        cqt(np.zeros(255, np.float32), BASIC_PITCH_CQT)
    with pytest.raises(AudioError, match="dtype int64"):
        cqt(np.zeros(4000, np.int64), BASIC_PITCH_CQT)
    with pytest.raises(ConfigError, match="take fewer num_bins"):
        CQTConfig(num_bins=400)
    with pytest.raises(ConfigError, match="multiple of 256"):
        CQTConfig(hop_length=320)
    with pytest.raises(ConfigError, match="num_bins is 0"):
        CQTConfig(num_bins=0)
