"""Where weights come from and how they are stored: cards, files, cache, mirror and download.

Each name is imported when it is first used: looking at the cache must not cost an import of jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from musicjax.hub.archive import extract as extract
    from musicjax.hub.cache import cache_folder as cache_folder
    from musicjax.hub.cache import compile_cache_folder as compile_cache_folder
    from musicjax.hub.cache import sha256_of as sha256_of
    from musicjax.hub.download import fetch as fetch
    from musicjax.hub.pretrained import load_transformer as load_transformer
    from musicjax.hub.t5x import open_t5x as open_t5x
    from musicjax.hub.t5x import read_t5x as read_t5x
    from musicjax.hub.t5x import write_t5x as write_t5x
    from musicjax.hub.weights import LoadedModel as LoadedModel
    from musicjax.hub.weights import load_model as load_model
    from musicjax.hub.weights import read_header as read_header
    from musicjax.hub.weights import save_weights as save_weights

_EXPORTS = {
    "LoadedModel": "weights",
    "cache_folder": "cache",
    "compile_cache_folder": "cache",
    "extract": "archive",
    "fetch": "download",
    "load_model": "weights",
    "load_transformer": "pretrained",
    "open_t5x": "t5x",
    "read_header": "weights",
    "read_t5x": "t5x",
    "save_weights": "weights",
    "sha256_of": "cache",
    "write_t5x": "t5x",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"musicjax.hub.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'musicjax.hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
