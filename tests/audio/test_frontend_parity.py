"""Every preset against its system's own formula, written anew in float64 NumPy.

Filterbanks come from librosa (whose mel matrix the systems themselves used, or torchaudio's, which
is the same), spectra from numpy.fft. Where a library function made the features of a published
system, it is called.
"""

import functools
from collections.abc import Callable

import jax
import librosa
import numpy as np
import pytest

from musicjax.audio import PRESETS, complex_spectrogram, preset, spectrogram
from musicjax.audio.frontend import mel_matrix

N = 12_289  # not a multiple of any hop


@functools.cache
def noise(samples: int = N) -> np.ndarray:
    x = 0.1 * np.random.default_rng(7).standard_normal(samples)
    return x.astype(np.float32)


@functools.cache
def compiled(name: str) -> Callable:
    config = preset(name)
    return jax.jit(lambda x: spectrogram(x, config))


def ours(name: str) -> np.ndarray:
    return np.asarray(compiled(name)(noise()))


def cut(x: np.ndarray, size: int, hop: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(x.astype(np.float64), size)[::hop]


def centred(x: np.ndarray, size: int, hop: int, mode: str = "reflect") -> np.ndarray:
    return cut(np.pad(x, size // 2, mode=mode), size, hop)


def power(frames: np.ndarray) -> np.ndarray:
    size = frames.shape[-1]
    hann = np.sin(np.pi * np.arange(size) / size) ** 2
    return np.abs(np.fft.rfft(frames * hann)) ** 2


def mel(bins: np.ndarray, sr: int, n: int, low: float, high: float, *, htk: bool, area: bool):
    bank = librosa.filters.mel(
        sr=sr, n_fft=2 * (bins.shape[-1] - 1), n_mels=n, fmin=low, fmax=high, htk=htk,
        norm="slaney" if area else None, dtype=np.float64,
    )  # fmt: skip
    return bins @ bank.T


def db(x: np.ndarray) -> np.ndarray:
    return 10 * np.log10(np.maximum(x, 1e-10))


def onsets_frames(x):
    bins = np.sqrt(power(centred(x[:-1], 2048, 512)))
    return np.log(np.maximum(mel(bins, 16000, 229, 30, 8000, htk=True, area=True), 1e-5))


def onsets_frames_magenta(x):
    bins = mel(power(centred(x, 2048, 512)), 16000, 229, 30, 8000, htk=True, area=True)
    return librosa.power_to_db(bins, ref=1.0, amin=1e-10, top_db=80.0)


def ar_piano(x):
    bins = mel(power(centred(x, 2048, 512)), 16000, 229, 30, 8000, htk=True, area=False)
    return np.log(np.maximum(bins, 1e-9))


def online_amt(x):
    bins = np.sqrt(power(cut(x, 2048, 512)))
    return np.log(np.maximum(mel(bins, 16000, 229, 30, 8000, htk=True, area=True), 1e-5))


def kong(x):
    return db(mel(power(centred(x, 2048, 160)), 16000, 229, 30, 8000, htk=False, area=True))


def hft(x):
    bins = power(centred(x, 2048, 256, "constant"))
    return np.log(mel(bins, 16000, 256, 0, 8000, htk=True, area=True) + 1e-8)


def transkun(x):
    frames = -(-len(x) // 1024) + 1
    padded = np.pad(x, (2048, (frames - 1) * 1024 + 2048 - len(x)))
    cuts = cut(padded, 4096, 1024)
    cuts = (cuts - cuts.mean()) / (cuts.std(ddof=1) + 1e-8)
    bins = mel(power(cuts) / 4096, 44100, 229, 30, 8000, htk=True, area=False)
    return (np.log(bins + 1e-5) - np.log(1e-5)) / -np.log(1e-5)


def mt3(x):
    padded = np.pad(x, (0, 128 - len(x) % 128))
    bins = np.sqrt(power(cut(np.pad(padded, (0, 2048)), 2048, 128)[: len(padded) // 128]))
    to_mel = lambda hz: 1127.0 * np.log1p(np.asarray(hz) / 700.0)  # noqa: E731
    corners = np.linspace(to_mel(20.0), to_mel(7600.0), 514)
    where = to_mel(np.linspace(0, 8000, 1025))
    bank = np.stack([np.interp(where, corners[m : m + 3], [0, 1, 0]) for m in range(512)])
    energy = bins @ bank.T
    return np.log(np.where(energy <= 0, 1e-5, energy))


def crepe(x):
    cuts = centred(x, 1024, 160, "constant")
    cuts = cuts - cuts.mean(axis=1, keepdims=True)
    return cuts / np.maximum(cuts.std(axis=1, keepdims=True), 1e-8)


def crepe_torch(x):
    return crepe(x) * np.sqrt(1023 / 1024)


def tagging(x, n=96):
    return db(mel(power(centred(x, 512, 256)), 16000, n, 0, 8000, htk=True, area=False))


def musicnn(x):
    bins = mel(power(centred(x, 512, 256)), 16000, 96, 0, 8000, htk=False, area=True)
    return np.log10(10_000.0 * bins.astype(np.float16).astype(np.float64) + 1)


def choi(x):
    bins = mel(power(centred(x, 512, 256)), 12000, 96, 0, 6000, htk=False, area=True)
    return librosa.power_to_db(bins**2, ref=1.0, amin=1e-10, top_db=80.0)


def compact_cnn(x):
    frames = -(-len(x) // 256)
    missing = (frames - 1) * 256 + 512 - len(x)
    padded = np.pad(x, (missing // 2, missing - missing // 2))
    y = db(mel(power(cut(padded, 512, 256)), 12000, 96, 0, 6000, htk=False, area=True))
    return np.maximum(y - y.max(), -80.0)


def musicfm(x):
    bins = power(centred(x, 2048, 240))
    return db(mel(bins, 24000, 128, 0, 12000, htk=True, area=False))[:-1]


def ttmr(x):
    frames = centred(x, 1024, 160)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    real = np.fft.rfft(frames * hann).real
    return db(mel(real**2, 16000, 128, 0, 8000, htk=True, area=False))


def ttmr_pp(x):
    bins = mel(power(centred(x, 1024, 220))[:-1], 22050, 128, 0, 11025, htk=False, area=True)
    y = np.log10(np.maximum(bins, 1e-10))
    return (np.maximum(y, y.max() - 8.0) + 4.0) / 4.0


def clap(x, sr=48000, hop=480, high=14000):
    return db(mel(power(centred(x, 1024, hop)), sr, 64, 50, high, htk=False, area=True))


def beat_this(x):
    bins = np.sqrt(power(centred(x, 1024, 441))) / np.sqrt(1024)
    return np.log1p(1000 * mel(bins, 22050, 128, 30, 11000, htk=False, area=False))


FORMULAS: dict[str, Callable] = {
    "onsets_frames": onsets_frames,
    "onsets_frames_magenta": onsets_frames_magenta,
    "ar_piano": ar_piano,
    "online_amt": online_amt,
    "kong": kong,
    "hft": hft,
    "transkun": transkun,
    "mt3": mt3,
    "crepe": crepe,
    "crepe_torch": crepe_torch,
    "tagging_96": tagging,
    "tagging_128": functools.partial(tagging, n=128),
    "tagging_spectrum": lambda x: db(power(centred(x, 512, 256))),
    "musicnn": musicnn,
    "choi": choi,
    "compact_cnn": compact_cnn,
    "musicfm": musicfm,
    "ttmr": ttmr,
    "lp_musiccaps": ttmr,
    "ttmr_pp": ttmr_pp,
    "clap": clap,
    "clap_2023": functools.partial(clap, sr=44100, hop=320, high=8000),
    "open_unmix": lambda x: np.sqrt(power(centred(x, 4096, 1024))),
    "umxse": lambda x: np.sqrt(power(centred(x, 1024, 512))),
    "scnet": lambda x: np.abs(np.fft.rfft(centred(x, 4096, 1024))) / 64,
    "bs_roformer": lambda x: np.sqrt(power(centred(x, 2048, 441))),
    "beat_this": beat_this,
}

# float32 against float64. Looser where a log is taken of single DFT bins or of squared real parts,
# which can be small by chance (relative rounding grows as the value shrinks), in dB; and where a
# value may round to the neighbouring float16.
TOLERANCE = {"tagging_spectrum": 2e-2, "ttmr": 5e-3, "lp_musiccaps": 5e-3, "musicnn": 5e-4}


@pytest.mark.parametrize("name", PRESETS)
def test_preset_equals_the_published_formula(name):
    expected = FORMULAS[name](noise())
    got = ours(name)
    assert got.dtype == np.float32
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=TOLERANCE.get(name, 3e-4))


@pytest.mark.parametrize("name", PRESETS)
def test_silence_is_finite(name):
    assert np.isfinite(np.asarray(compiled(name)(np.zeros(N, np.float32)))).all()


def test_look_alike_piano_presets_all_differ():
    names = ["onsets_frames", "onsets_frames_magenta", "ar_piano", "online_amt", "kong", "hft"]
    values = [ours(n)[2, 100] for n in names]
    assert len({round(float(v), 2) for v in values}) == len(names)


def test_floor_of_mt3_is_replaced_and_not_clamped():
    features = np.asarray(compiled("mt3")(noise() * 1e-9))
    dead = mel_matrix(preset("mt3")).any(axis=0) == 0
    assert np.flatnonzero(dead).tolist() == [1, 10]
    np.testing.assert_allclose(features[:, dead], -11.512925, rtol=1e-6)
    assert features[: N // 128 - 16, ~dead].max() < -11.6  # tiny values stay below the floor


def test_librosa_calls_the_same_features():
    mels = librosa.feature.melspectrogram(
        y=noise(), sr=16000, n_fft=2048, hop_length=512, n_mels=229, fmin=30, fmax=8000, htk=True,
        pad_mode="reflect",
    )  # fmt: skip
    np.testing.assert_allclose(
        ours("onsets_frames_magenta"), librosa.power_to_db(mels).T, atol=5e-3
    )


def test_librosax_makes_the_same_features():
    librosax = pytest.importorskip("librosax", reason="pip install librosax")
    config = preset("kong")
    spectrum = librosax.stft(
        noise(), n_fft=config.fft_length, hop_length=config.hop_length, pad_mode="reflect"
    )
    mels = np.abs(np.asarray(spectrum)).T ** 2 @ mel_matrix(config)
    np.testing.assert_allclose(ours("kong"), db(mels), atol=5e-3)


@pytest.mark.parametrize(
    ("name", "size", "hop"), [("open_unmix", 4096, 1024), ("umxse", 1024, 512)]
)
def test_librosa_makes_the_same_complex_spectrum(name, size, hop):
    config = preset(name)
    got = np.asarray(jax.jit(lambda x: complex_spectrogram(x, config))(noise()))
    expected = librosa.stft(noise(), n_fft=size, hop_length=hop, pad_mode="reflect").T
    np.testing.assert_allclose(got, expected, atol=2e-4)
