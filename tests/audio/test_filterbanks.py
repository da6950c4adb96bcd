"""Mel scales and filterbanks against librosa, and the grouped product against the dense one."""

import jax.numpy as jnp
import librosa
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from musicjax.audio import filterbanks


@settings(deadline=None)
@given(hz=st.floats(0, 24_000), scale=st.sampled_from(["htk", "slaney"]))
def test_mel_scales_are_librosas_and_invert(hz, scale):
    mel = filterbanks.hz_to_mel(hz, scale)
    np.testing.assert_allclose(mel, librosa.hz_to_mel(hz, htk=scale == "htk"), atol=1e-9)
    np.testing.assert_allclose(filterbanks.mel_to_hz(mel, scale), hz, atol=1e-8)


@pytest.mark.parametrize("scale", ["htk", "slaney"])
@pytest.mark.parametrize("norm", ["slaney", "none"])
def test_banks_are_librosas(scale, norm):
    got = filterbanks.mel_bank(16_000, 2048, 229, 30.0, 8000.0, scale, norm)
    expected = librosa.filters.mel(
        sr=16_000, n_fft=2048, n_mels=229, fmin=30, fmax=8000, htk=scale == "htk",
        norm="slaney" if norm == "slaney" else None, dtype=np.float64,
    ).T  # fmt: skip
    np.testing.assert_allclose(got, expected, atol=1e-7)
    assert not got.flags.writeable


def test_slaney_norm_gives_unit_area():
    bank = filterbanks.mel_bank(16_000, 16_384, 40, 100.0, 7000.0, "slaney", "slaney")
    np.testing.assert_allclose(bank.sum(axis=0) * 16_000 / 16_384, 1.0, rtol=2e-3)


def test_triangles_straight_over_mel_differ_from_straight_over_hz():
    hz = filterbanks.mel_bank(16_000, 512, 20, 0.0, 7600.0, "htk", "none", "hz")
    mel = filterbanks.mel_bank(16_000, 512, 20, 0.0, 7600.0, "htk", "none", "mel")
    assert not mel[0].any()
    assert 0.01 < np.abs(hz - mel).max() < 0.5


@pytest.mark.parametrize(
    ("fft_length", "filters"), [(2048, 229), (2048, 512), (512, 96), (1024, 1)]
)
def test_the_product_in_groups_is_the_dense_product(fft_length, filters):
    bank = filterbanks.mel_bank(16_000, fft_length, filters, 20.0, 7600.0)
    bins = np.random.default_rng(0).random((3, 5, fft_length // 2 + 1)).astype(np.float32)
    np.testing.assert_allclose(
        filterbanks.apply(jnp.asarray(bins), bank), bins @ bank, rtol=1e-5, atol=1e-7
    )
