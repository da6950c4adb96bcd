"""What a person asks for: one module a verb, and `load`, which gives the object that does it."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicjax.tasks.caption import Caption as Caption
    from musicjax.tasks.caption import Captioner as Captioner
    from musicjax.tasks.choice import Choice as Choice
    from musicjax.tasks.choice import choose as choose
    from musicjax.tasks.comparison import Comparison as Comparison
    from musicjax.tasks.comparison import compare as compare
    from musicjax.tasks.live import listen as listen
    from musicjax.tasks.loading import load as load
    from musicjax.tasks.pitch import PitchTrack as PitchTrack
    from musicjax.tasks.pitch import PitchTracker as PitchTracker
    from musicjax.tasks.transcribe import Transcriber as Transcriber
    from musicjax.tasks.transcribe import Transcription as Transcription
    from musicjax.tasks.transcribe import evaluate as evaluate

_EXPORTS = {
    "Caption": "caption",
    "Captioner": "caption",
    "Choice": "choice",
    "Comparison": "comparison",
    "PitchTrack": "pitch",
    "PitchTracker": "pitch",
    "Transcriber": "transcribe",
    "Transcription": "transcribe",
    "choose": "choice",
    "compare": "comparison",
    "evaluate": "transcribe",
    "listen": "live",
    "load": "loading",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"musicjax.tasks.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'musicjax.tasks' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
