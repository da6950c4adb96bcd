"""From scores and recordings to batches: composing, rendering, storing, augmenting, feeding.

>>> from musicjax.data import DataConfig, train_iterator
>>> batches = train_iterator(DataConfig(train=("composer:",)), targets, sample_rate=16000)
>>> next(batches)["audio"].shape
(8, 163840)

The names are imported when first used: reading a record needs no synthesizer, and composing no
dataset library.
"""

import importlib
from typing import Any

_EXPORTS = {
    "AugmentConfig": "augment",
    "DataConfig": "pipeline",
    "Example": "records",
    "ImportConfig": "imports",
    "NoteBank": "synth",
    "RecordSource": "records",
    "RenderConfig": "render",
    "command": "verbs",
    "examples": "pipeline",
    "folder_source": "corpora",
    "import_dataset": "imports",
    "render_corpus": "render",
    "train_iterator": "pipeline",
    "write_shard": "records",
}
_MODULES = (
    "augment",
    "bank",
    "compose",
    "corpora",
    "fluidsynth",
    "font_voices",
    "imports",
    "instruments",
    "layouts",
    "melodies",
    "performance",
    "pipeline",
    "records",
    "render",
    "synth",
    "textures",
    "timbres",
    "verbs",
    "voices",
)

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        value = getattr(importlib.import_module(f"{__name__}.{_EXPORTS[name]}"), name)
        globals()[name] = value
        return value
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *_MODULES})
