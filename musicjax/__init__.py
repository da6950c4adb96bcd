"""musicjax: listen to music and write down what was heard.

>>> import musicjax
>>> model = musicjax.load("onsets_frames.small")
>>> result = model.transcribe("song.flac")
>>> result.to_midi("song.mid")

Importing this package costs nothing: each name below is imported when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from musicjax.version import __version__

if TYPE_CHECKING:
    from musicjax.audio import load_audio as load_audio
    from musicjax.notes import Notes as Notes
    from musicjax.notes import read_midi as read_midi
    from musicjax.notes import write_midi as write_midi
    from musicjax.registry import list_models as list_models
    from musicjax.registry import model_card as model_card
    from musicjax.tasks import choose as choose
    from musicjax.tasks import compare as compare
    from musicjax.tasks import listen as listen
    from musicjax.tasks import load as load

_EXPORTS = {
    "load": "musicjax.tasks",
    "choose": "musicjax.tasks",
    "compare": "musicjax.tasks",
    "listen": "musicjax.tasks",
    "list_models": "musicjax.registry",
    "model_card": "musicjax.registry",
    "load_audio": "musicjax.audio",
    "Notes": "musicjax.notes",
    "read_midi": "musicjax.notes",
    "write_midi": "musicjax.notes",
}
_ROOMS = (
    "audio", "data", "hub", "infer", "metrics", "nn", "notes", "plots", "tasks", "text", "train",
)  # fmt: skip

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"musicjax.{name}")
    raise AttributeError(f"module 'musicjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
