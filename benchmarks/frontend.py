"""The front-end alone: seconds of audio a second, against librosa, torch.stft and librosax.

    python benchmarks/frontend.py                       # the piano presets, one clip of 60 s
    python benchmarks/frontend.py --batch 8 --seconds 10 --presets onsets_frames kong

Every peer makes the same log-mel from the same samples, which is checked before the clock starts,
and each gets what makes it fastest: window and filterbank are made beforehand (librosa would make
its bank anew at each call), torch runs in inference mode on all cores, librosax inside jit.
Peers that are not installed are left out with a line that says so.
"""

import argparse
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from harness import Case, Subject, compare

from musicjax.audio import PRESETS, FrontendConfig, num_frames, spectrogram
from musicjax.audio.frontend import mel_matrix

PIANO = (
    "onsets_frames",
    "onsets_frames_magenta",
    "ar_piano",
    "online_amt",
    "kong",
    "hft",
    "mt3",
)
TOLERANCE = 2e-3  # nats; float32 sums in another order, seen through a log


def main() -> None:
    """Measure every preset asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--presets", nargs="+", default=PIANO, choices=sorted(PRESETS))
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each clip")
    parser.add_argument("--batch", type=int, default=1, help="clips at a time")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    for name in arguments.presets:
        config = PRESETS[name]
        audio = noisy_chords(arguments.batch, arguments.seconds, config.sample_rate)
        if config.drop_last_sample:  # peers do not know that step: do it for all beforehand
            audio = np.pad(audio, [(0, 0), (0, 1)])
        function, inputs = by_musicjax(audio, config)
        expected = np.asarray(function(*inputs))
        # Built again for the clock: a function that has run has nothing left to compile.
        subjects = [Subject("musicjax", *by_musicjax(audio, config))]
        for peer, build in (
            ("librosa", by_librosa),
            ("torch", by_torch),
            ("librosax", by_librosax),
        ):
            if importlib.util.find_spec(peer) is None:
                print(f"{peer} is not installed: left out (pip install {peer})")
                continue
            function, inputs = build(audio, config)
            agree(peer, name, np.asarray(function(*inputs)), expected)
            subjects.append(Subject(peer, *build(audio, config)))
        seconds = arguments.batch * arguments.seconds
        outputs = arguments.batch * num_frames(audio.shape[-1], config) * config.num_bins
        case = Case(
            "frontend",
            audio_s=seconds,
            batch=arguments.batch,
            bytes_moved=4.0 * (audio.size + outputs),  # the least: samples read, features written
            facts={"preset": name},
        )
        compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)


def noisy_chords(batch: int, seconds: float, sample_rate: int) -> np.ndarray:
    """Four decaying tones and some noise: values neither silent nor at the floor of the log."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * sample_rate)) / sample_rate
    audio = 0.02 * rng.standard_normal((batch, len(time)))
    for frequency in (110.0, 277.2, 440.0, 1318.5):
        audio += 0.2 * np.sin(2 * np.pi * frequency * time) * np.exp(-(time % 1.0))
    return audio.astype(np.float32)


def by_musicjax(audio: np.ndarray, config: FrontendConfig) -> tuple[Callable, tuple]:
    """`spectrogram` in one jit."""
    return jax.jit(lambda x: spectrogram(x, config)), (jnp.asarray(audio),)


def by_librosa(audio: np.ndarray, config: FrontendConfig) -> tuple[Callable, tuple]:
    """librosa.stft, absolute value, one matrix product, NumPy's log."""
    import librosa

    audio, centre = _as_peers_see_it(audio, config)
    bank, log = mel_matrix(config).T, _log(np, config)
    pad = "constant" if config.padding == "zeros" else "reflect"

    def features(audio: np.ndarray) -> np.ndarray:
        spectrum = librosa.stft(
            audio,
            n_fft=config.fft_length,
            hop_length=config.hop_length,
            center=centre,
            pad_mode=pad,
        )
        magnitude = np.abs(spectrum)
        bins = magnitude if config.power == 1 else magnitude**2
        return np.swapaxes(log(bank @ bins), -1, -2)

    return features, (audio,)


def by_torch(audio: np.ndarray, config: FrontendConfig) -> tuple[Callable, tuple]:
    """torch.stft, absolute value or squared parts, one matrix product, torch's log."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    audio, centre = _as_peers_see_it(audio, config)
    bank = torch.tensor(mel_matrix(config)).to(device)
    window = torch.hann_window(config.window_length, device=device)
    log = _log(torch, config)
    pad = "constant" if config.padding == "zeros" else "reflect"

    @torch.inference_mode()
    def features(audio: torch.Tensor) -> torch.Tensor:
        spectrum = torch.stft(
            audio,
            config.fft_length,
            config.hop_length,
            window=window,
            center=centre,
            pad_mode=pad,
            return_complex=True,
        )
        bins = spectrum.abs()
        bins = bins if config.power == 1 else bins**2
        return log(bins.transpose(-1, -2) @ bank)

    return features, (torch.tensor(audio).to(device),)


def by_librosax(audio: np.ndarray, config: FrontendConfig) -> tuple[Callable, tuple]:
    """librosax.stft, absolute value, one matrix product, all in one jit."""
    import librosax

    audio, centre = _as_peers_see_it(audio, config)
    bank, log = jnp.asarray(mel_matrix(config)), _log(jnp, config)
    pad = "constant" if config.padding == "zeros" else "reflect"

    def features(audio: jax.Array) -> jax.Array:
        spectrum = librosax.stft(
            audio,
            n_fft=config.fft_length,
            hop_length=config.hop_length,
            center=centre,
            pad_mode=pad,
        )
        magnitude = jnp.abs(spectrum)
        bins = magnitude if config.power == 1 else magnitude**2
        return log(jnp.einsum("...ft,fm->...tm", bins, bank))

    return jax.jit(features), (jnp.asarray(audio),)


def agree(peer: str, preset: str, theirs: np.ndarray, ours: np.ndarray) -> None:
    """Stop unless a peer makes the same features, so that the same work is compared."""
    if theirs.shape != ours.shape:
        raise SystemExit(f"{peer} makes {theirs.shape} at {preset}, musicjax {ours.shape}")
    worst = float(np.abs(theirs - ours).max())
    if worst > TOLERANCE * max(1.0, float(np.abs(ours).max()) / 10):
        raise SystemExit(f"{peer} differs by up to {worst:.2g} at {preset}")


def _as_peers_see_it(audio: np.ndarray, config: FrontendConfig) -> tuple[np.ndarray, bool]:
    """Samples and whether to centre frames, for libraries that know only two kinds of padding."""
    if config.drop_last_sample:
        audio = audio[:, :-1]
    if config.padding == "none":
        return audio, False
    if config.padding != "end":
        return audio, True
    frames = audio.shape[-1] // config.hop_length + 1
    length = (frames - 1) * config.hop_length + config.fft_length
    return np.pad(audio, [(0, 0), (0, length - audio.shape[-1])]), False


def _log(np_like, config: FrontendConfig) -> Callable:
    """The log of a preset in the words of NumPy, torch or jax.numpy."""
    scale = 10 / np.log(10) if config.log == "db" else 1.0
    floor = config.log_floor
    clamp = (
        (lambda x: x.clamp(min=floor)) if hasattr(np_like, "Tensor") else (lambda x: x.clip(floor))
    )

    def log(x):
        if config.log_floor_mode == "add":
            y = np_like.log(x + floor)
        elif config.log_floor_mode == "replace":
            y = np_like.log(np_like.where(x <= 0, floor, x))
        else:
            y = np_like.log(clamp(x))
        y = y if scale == 1.0 else y * scale
        if config.dynamic_range is None:
            return y
        top = (
            y.amax((-2, -1), keepdim=True) if hasattr(y, "amax") else y.max((-2, -1), keepdims=True)
        )
        return np_like.maximum(y, top - config.dynamic_range)

    return log


if __name__ == "__main__":
    main()
