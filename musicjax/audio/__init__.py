"""Audio in and out, and the front-end that turns samples into features."""

from musicjax.audio.config import FrontendConfig
from musicjax.audio.framing import StreamSpec, frame_mask, num_frames
from musicjax.audio.frontend import complex_spectrogram, inverse_spectrogram, spectrogram
from musicjax.audio.io import (
    Audio,
    AudioInfo,
    blocks,
    check_samples,
    load_audio,
    probe,
    save_audio,
)
from musicjax.audio.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "Audio",
    "AudioInfo",
    "FrontendConfig",
    "StreamSpec",
    "blocks",
    "check_samples",
    "complex_spectrogram",
    "frame_mask",
    "inverse_spectrogram",
    "load_audio",
    "num_frames",
    "preset",
    "probe",
    "save_audio",
    "spectrogram",
]
