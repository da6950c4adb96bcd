"""Where weights come from and how they are stored: cards, files, cache, mirror and download."""

from musicjax.hub.cache import cache_folder, compile_cache_folder
from musicjax.hub.fetch import fetch
from musicjax.hub.storage import replacing
from musicjax.hub.weights import LoadedModel, load_model, read_header, save_weights

__all__ = [
    "LoadedModel",
    "cache_folder",
    "compile_cache_folder",
    "fetch",
    "load_model",
    "read_header",
    "replacing",
    "save_weights",
]
