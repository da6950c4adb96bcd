"""The front-ends of published systems, by name.

A preset is exact: it holds what the published weights were trained with, slips included. Where a
checkpoint stores its own window or filterbank, pass that array to `spectrogram` instead.

Piano systems   the four that share "16 kHz, 2048, 229 mels from 30 Hz": `onsets_frames`,
                `onsets_frames_magenta`, `ar_piano`, `kong`; and `online_amt`, `hft`, `transkun`
Multi-track     `mt3` (also the piano sequence model, ismir2021)
Pitch           `crepe`, `crepe_torch`
Tagging         `tagging_96`, `tagging_128`, `tagging_spectrum` (the PyTorch family), `musicnn`,
                `choi`, `compact_cnn`, `musicfm`
Text and music  `ttmr`, `lp_musiccaps`, `ttmr_pp`, `clap`, `clap_2023`
Separation      `open_unmix`, `umxse`, `bs_roformer`, `scnet` (complex STFT, with exact inverse)
Beats           `beat_this`

Left out, as a `FrontendConfig` does not describe them: constant-Q and variable-Q transforms (Basic
Pitch, see `musicjax.audio.cqt`; PESTO, and BTC's chords, whose CQT is made anew for every ten
seconds); filterbanks that are learned (Harmonic CNN) or lie evenly in octaves, with differences of
frames (madmom, BeatNet); networks on the waveform (SampleCNN, Demucs); and HT Demucs, which pads by
a hop and a half and drops frames and the highest bin again, so that its inverse is not exact.
"""

import difflib
import math
from dataclasses import replace
from types import MappingProxyType

from musicjax.audio.config import FrontendConfig
from musicjax.errors import ConfigError

# Hawthorne et al. 2018 / 2019 in the PyTorch port of J. W. Kim: magnitude, natural log.
_ONSETS_FRAMES = FrontendConfig(
    sample_rate=16_000,
    window_length=2048,
    fft_length=2048,
    hop_length=512,
    padding="reflect",
    drop_last_sample=True,
    power=1.0,
    num_bins=229,
    f_min_hz=30.0,
    f_max_hz=8000.0,
    mel_scale="htk",
    mel_norm="slaney",
    log="ln",
    log_floor=1e-5,
)

# The same, as Magenta's own code has it: power in dB, no more than 80 dB below the clip's maximum.
_ONSETS_FRAMES_MAGENTA = replace(
    _ONSETS_FRAMES,
    drop_last_sample=False,
    power=2.0,
    log="db",
    log_floor=1e-10,
    dynamic_range=80.0,
)

# Kwon, Jeong and Nam 2020, the training code (torchaudio): filters of unit height.
_AR_PIANO = replace(
    _ONSETS_FRAMES, drop_last_sample=False, power=2.0, mel_norm="none", log_floor=1e-9
)

# Kong et al. 2021 (torchlibrosa): 10 ms hop, Slaney's scale.
_KONG = FrontendConfig(
    sample_rate=16_000,
    window_length=2048,
    fft_length=2048,
    hop_length=160,
    padding="reflect",
    num_bins=229,
    f_min_hz=30.0,
    f_max_hz=8000.0,
    mel_scale="slaney",
    mel_norm="slaney",
    log="db",
    log_floor=1e-10,
)

# Toyama et al. 2023, hFT-Transformer.
_HFT = FrontendConfig(
    sample_rate=16_000,
    window_length=2048,
    fft_length=2048,
    hop_length=256,
    padding="zeros",
    num_bins=256,
    f_min_hz=0.0,
    f_max_hz=8000.0,
    mel_scale="htk",
    mel_norm="slaney",
    log="ln",
    log_floor=1e-8,
    log_floor_mode="add",
)

# Yan and Duan 2024, Transkun V2. The model passes six windows: this one and five learned ones.
# (ln(x + 1e-5) - ln 1e-5) / -ln 1e-5 puts silence at 0 and unit power at 1.
_TRANSKUN = FrontendConfig(
    sample_rate=44_100,
    window_length=4096,
    fft_length=4096,
    hop_length=1024,
    padding="zeros",
    whole_hops=True,
    standardise="all_frames",
    orthonormal=True,
    num_bins=229,
    f_min_hz=30.0,
    f_max_hz=8000.0,
    mel_scale="htk",
    mel_norm="none",
    log="ln",
    log_floor=1e-5,
    log_floor_mode="add",
    mean=math.log(1e-5),
    scale=-math.log(1e-5),
)

# Gardner et al. 2022 and Hawthorne et al. 2021, computed with TensorFlow's mel matrix.
_MT3 = FrontendConfig(
    sample_rate=16_000,
    window_length=2048,
    fft_length=2048,
    hop_length=128,
    padding="end",
    power=1.0,
    num_bins=512,
    f_min_hz=20.0,
    f_max_hz=7600.0,
    mel_scale="htk",
    mel_norm="none",
    mel_shape="mel",
    log="ln",
    log_floor=1e-5,
    log_floor_mode="replace",
)

# Kim et al. 2018: standardised frames of the waveform itself, every 10 ms.
_CREPE = FrontendConfig(
    sample_rate=16_000,
    window_length=1024,
    fft_length=1024,
    hop_length=160,
    window="rectangular",
    padding="zeros",
    standardise="frame",
    standardise_floor=1e-8,
    features="frames",
    log="none",
)

# Won et al. 2020, "Evaluation of CNN-based automatic music tagging models" (torchaudio).
_TAGGING_96 = FrontendConfig(
    sample_rate=16_000,
    window_length=512,
    fft_length=512,
    hop_length=256,
    padding="reflect",
    num_bins=96,
    f_min_hz=0.0,
    f_max_hz=8000.0,
    mel_scale="htk",
    mel_norm="none",
    log="db",
    log_floor=1e-10,
)

# Pons and Serra 2019: librosa's default mels rounded to float16, log10(1 + 10000 x).
_MUSICNN = replace(
    _TAGGING_96,
    mel_scale="slaney",
    mel_norm="slaney",
    round_to_half=True,
    log="log10",
    log_gain=10_000.0,
    log_floor=1.0,
    log_floor_mode="add",
)

# Choi et al. 2016 (Keras FCN and CRNN): the power mel is squared once more by a slip that the
# weights depend on; librosa's logamplitude then cuts 80 dB below the clip's maximum.
_CHOI = replace(
    _TAGGING_96,
    sample_rate=12_000,
    f_max_hz=6000.0,
    mel_scale="slaney",
    mel_norm="slaney",
    bank_power=2.0,
    dynamic_range=80.0,
)

# Choi et al. 2017 (kapre): dB relative to the maximum of the batch. Bank in the weight file.
_COMPACT_CNN = replace(
    _CHOI,
    padding="same",
    bank_power=1.0,
    range_scope="batch",
    relative_to_max=True,
)

# Won et al. 2023, MusicFM; its mean and deviation come with the weights.
_MUSICFM = FrontendConfig(
    sample_rate=24_000,
    window_length=2048,
    fft_length=2048,
    hop_length=240,
    padding="reflect",
    drop_last_frame=True,
    num_bins=128,
    f_min_hz=0.0,
    f_max_hz=12_000.0,
    mel_scale="htk",
    mel_norm="none",
    log="db",
    log_floor=1e-10,
)

# Doh et al. 2023, TTMR and LP-MusicCaps: only the real part of the STFT is squared.
_TTMR = FrontendConfig(
    sample_rate=16_000,
    window_length=1024,
    fft_length=1024,
    hop_length=160,
    padding="reflect",
    features="real",
    num_bins=128,
    f_min_hz=0.0,
    f_max_hz=8000.0,
    mel_scale="htk",
    mel_norm="none",
    log="db",
    log_floor=1e-10,
)

# Doh et al. 2024, TTMR++: Whisper's recipe, with the floor 8 decades below the batch's maximum.
_TTMR_PP = FrontendConfig(
    sample_rate=22_050,
    window_length=1024,
    fft_length=1024,
    hop_length=220,
    padding="reflect",
    drop_last_frame=True,
    num_bins=128,
    f_min_hz=0.0,
    f_max_hz=11_025.0,
    mel_scale="slaney",
    mel_norm="slaney",
    log="log10",
    log_floor=1e-10,
    dynamic_range=8.0,
    range_scope="batch",
    mean=-4.0,
    scale=4.0,
)

# Wu et al. 2023, LAION CLAP (torchlibrosa).
_CLAP = FrontendConfig(
    sample_rate=48_000,
    window_length=1024,
    fft_length=1024,
    hop_length=480,
    padding="reflect",
    num_bins=64,
    f_min_hz=50.0,
    f_max_hz=14_000.0,
    mel_scale="slaney",
    mel_norm="slaney",
    log="db",
    log_floor=1e-10,
)

# Stöter et al. 2019: magnitudes of all bins; the network sees stereo, so B and C both lead.
_OPEN_UNMIX = FrontendConfig(
    sample_rate=44_100,
    window_length=4096,
    fft_length=4096,
    hop_length=1024,
    padding="reflect",
    power=1.0,
    bank="none",
    log="none",
)

# Tong et al. 2024, SCNet: their torch.stft is given no window, which means a rectangular one. The
# zeros at the end (an even number of frames) and the standardised tensor belong to the network.
_SCNET = replace(_OPEN_UNMIX, window="rectangular", orthonormal=True)

# Uhlich and Mitsufuji 2020, Open-Unmix for speech: mono.
_UMXSE = replace(
    _OPEN_UNMIX, sample_rate=16_000, window_length=1024, fft_length=1024, hop_length=512
)

# Foscarin et al. 2024: log(1 + 1000 x) of the normalised magnitude.
_BEAT_THIS = FrontendConfig(
    sample_rate=22_050,
    window_length=1024,
    fft_length=1024,
    hop_length=441,
    padding="reflect",
    orthonormal=True,
    power=1.0,
    num_bins=128,
    f_min_hz=30.0,
    f_max_hz=11_000.0,
    mel_scale="slaney",
    mel_norm="none",
    log="ln",
    log_gain=1000.0,
    log_floor=1.0,
    log_floor_mode="add",
)

PRESETS = MappingProxyType(
    {
        "onsets_frames": _ONSETS_FRAMES,
        "onsets_frames_magenta": _ONSETS_FRAMES_MAGENTA,
        "ar_piano": _AR_PIANO,
        "online_amt": replace(_ONSETS_FRAMES, padding="none", drop_last_sample=False),
        "kong": _KONG,
        "hft": _HFT,
        "transkun": _TRANSKUN,
        "mt3": _MT3,
        "crepe": _CREPE,
        "crepe_torch": replace(_CREPE, standardise="frame_unbiased", standardise_floor=1e-10),
        "tagging_96": _TAGGING_96,
        "tagging_128": replace(_TAGGING_96, num_bins=128),
        "tagging_spectrum": replace(_TAGGING_96, bank="none"),
        "musicnn": _MUSICNN,
        "choi": _CHOI,
        "compact_cnn": _COMPACT_CNN,
        "musicfm": _MUSICFM,
        "ttmr": _TTMR,
        "lp_musiccaps": _TTMR,
        "ttmr_pp": _TTMR_PP,
        "clap": _CLAP,
        "clap_2023": replace(_CLAP, sample_rate=44_100, hop_length=320, f_max_hz=8000.0),
        "open_unmix": _OPEN_UNMIX,
        "umxse": _UMXSE,
        "bs_roformer": replace(_OPEN_UNMIX, window_length=2048, fft_length=2048, hop_length=441),
        "scnet": _SCNET,
        "beat_this": _BEAT_THIS,
    }
)


def preset(name: str) -> FrontendConfig:
    """The front-end of a published system. Raises ConfigError with near matches.

    Basic Pitch's is none of these: a constant-Q transform, `musicjax.audio.cqt.BASIC_PITCH_CQT`.
    """
    if name == "basic_pitch":
        raise ConfigError(
            "basic_pitch hears a constant-Q transform, which a FrontendConfig cannot describe; "
            "take BASIC_PITCH_CQT, a CQTConfig, and cqt_power, all from musicjax.audio.cqt."
        )
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(PRESETS)}."
        raise ConfigError(f"no front-end preset is called {name!r}; {hint}")
    return PRESETS[name]
