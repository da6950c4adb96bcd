"""Frames, windows, reflection, and the STFT with its exact inverse."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from musicjax.audio import FrontendConfig, complex_spectrogram, inverse_spectrogram, preset, stft

# The hop divides the frame, does not, is longer than it; one sample.
SIZES = [(8, 2, 5), (7, 3, 4), (5, 9, 3), (1, 1, 1)]


@pytest.mark.parametrize(("size", "hop", "count"), SIZES)
def test_frames_are_windows_at_every_hop(size, hop, count):
    audio = np.arange((count - 1) * hop + size, dtype=np.float32)
    expected = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    np.testing.assert_array_equal(stft.frame(jnp.asarray(audio), size, hop, count), expected)
    frames_of = lambda x: stft.frame(x, size, hop, count)  # noqa: E731
    _, tangent = jax.jvp(frames_of, (jnp.asarray(audio),), (jnp.asarray(audio),))
    np.testing.assert_array_equal(tangent, expected)


@pytest.mark.parametrize(("size", "hop", "count"), SIZES)
def test_overlap_add_is_the_transpose_of_framing(size, hop, count):
    rng = np.random.default_rng(0)
    audio = rng.standard_normal((count - 1) * hop + size).astype(np.float32)
    frames = rng.standard_normal((count, size)).astype(np.float32)
    forth = np.vdot(stft.frame(jnp.asarray(audio), size, hop, count), frames)
    back = np.vdot(audio, stft.overlap_add(jnp.asarray(frames), hop))
    np.testing.assert_allclose(forth, back, rtol=1e-4, atol=1e-3)


def test_the_gradient_of_framing_does_not_scatter():
    loss = jax.grad(lambda x: (stft.frame(x, 8, 3, 4) ** 2).sum())
    assert "scatter" not in str(jax.make_jaxpr(loss)(jnp.ones(17)))


def test_what_lies_past_the_end_is_zero():
    frames = np.asarray(stft.frame(jnp.ones(10), 8, 4, 3))
    assert frames[2].tolist() == [1, 1, 0, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("name", ["hann", "hamming"])
def test_windows_are_periodic(name):
    expected = scipy.signal.get_window(name, 300, fftbins=True)
    got = stft.window(name, 300, 512)
    np.testing.assert_allclose(got[106:406], expected, atol=1e-7)
    assert not got[:106].any() and not got[406:].any()
    np.testing.assert_array_equal(stft.centre_window(jnp.asarray(got[106:406]), 512), got)


@pytest.mark.parametrize(("samples", "width"), [(30, 7), (8, 7), (7, 7), (2, 21)])
def test_reflection_is_numpys(samples, width):
    audio = np.arange(samples, dtype=np.float32)
    expected = np.pad(audio, width, mode="reflect")
    np.testing.assert_array_equal(stft.reflect(audio, width), expected)
    longer = np.concatenate([audio, np.full(5, 99, np.float32)])
    got = np.asarray(stft.reflect(longer, width, np.array(samples)))
    np.testing.assert_array_equal(got[: len(expected)], expected)
    assert not got[len(expected) :].any()


INVERTIBLE = {
    "open_unmix": preset("open_unmix"),
    "umxse": preset("umxse"),
    "scnet": preset("scnet"),  # rectangular
    "bs_roformer": preset("bs_roformer"),  # the hop does not divide the window
    "half overlap": FrontendConfig(
        window_length=64, fft_length=128, hop_length=32, padding="zeros", orthonormal=True
    ),
}


@pytest.mark.parametrize("name", INVERTIBLE)
def test_the_inverse_gives_back_every_sample(name):
    config = INVERTIBLE[name]
    samples = 5 * config.hop_length + 77
    audio = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)

    def there_and_back(x):
        return inverse_spectrogram(complex_spectrogram(x, config), config, samples)

    back = np.asarray(jax.jit(there_and_back)(audio))
    assert back.shape == audio.shape
    np.testing.assert_allclose(back, audio, atol=5e-6)


def test_hann_windows_overlap_to_a_constant():
    """COLA: periodic Hann windows at a quarter of their length add up to 2."""
    windows = np.broadcast_to(stft.window("hann", 64, 64), (20, 64))
    total = np.asarray(stft.overlap_add(jnp.asarray(windows), 16))
    np.testing.assert_allclose(total[48:-48], 2.0, rtol=1e-6)


def test_the_inverse_is_least_squares():
    """For a spectrum that no signal has, the result is the signal whose STFT is nearest."""
    config = dataclasses.replace(INVERTIBLE["half overlap"], orthonormal=False)
    rng = np.random.default_rng(1)
    forward = jax.jit(lambda x: complex_spectrogram(x, config))
    spectrum = np.asarray(forward(rng.standard_normal(500).astype(np.float32)))
    spectrum = spectrum + 0.1 * rng.standard_normal(spectrum.shape).astype(np.float32)
    nearest = np.asarray(inverse_spectrogram(jnp.asarray(spectrum), config, 500))
    full = lambda x: np.fft.irfft(np.asarray(forward(x)))  # noqa: E731
    target = np.fft.irfft(spectrum) * stft.window("hann", 64, 128).astype(bool)
    distance = lambda x: ((full(x) - target) ** 2).sum()  # noqa: E731
    best = distance(nearest)
    for _ in range(5):
        moved = nearest + 0.02 * rng.standard_normal(500).astype(np.float32)
        assert best < distance(moved)


def test_gradient_of_a_root_at_zero_is_zero():
    assert jax.grad(stft.safe_sqrt)(0.0) == 0.0
    assert jax.grad(stft.safe_sqrt)(4.0) == 0.25
    assert jax.grad(lambda x: stft.power_of_square(x, 0.5))(0.0) == 0.0
