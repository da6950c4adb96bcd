"""The front-ends of published systems, by name."""

import difflib
from types import MappingProxyType

from musicjax.audio.frontend import FrontendConfig
from musicjax.errors import ConfigError

_PIANO = FrontendConfig(
    sample_rate=16_000, window_length=2048, fft_length=2048, hop_length=512,
    num_bins=229, f_min_hz=30.0, f_max_hz=8000.0,
)  # fmt: skip

PRESETS = MappingProxyType(
    {
        "onsets_frames": FrontendConfig(
            sample_rate=16_000, window_length=2048, fft_length=2048, hop_length=512,
            padding="reflect", drop_last_sample=True, power=1.0,
            num_bins=229, f_min_hz=30.0, f_max_hz=8000.0, mel_scale="htk", mel_norm="slaney",
            log="ln", log_floor=1e-5, log_floor_mode="clamp",
        ),
    }
)  # fmt: skip


def preset(name: str) -> FrontendConfig:
    """The front-end of a published system. Raises ConfigError with near matches."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(PRESETS)}."
        raise ConfigError(f"no front-end preset is called {name!r}; {hint}")
    return PRESETS[name]
