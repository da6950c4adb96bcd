"""The device a model runs on, and compiled programs that outlive the process."""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import jax

from musicjax.errors import ConfigError
from musicjax.hub import compile_cache_folder

_OFF = ("0", "off", "no", "false")


def find_device(name: str | None) -> jax.Device:
    """A device by name: "cpu", "gpu", "cuda:1"; None takes the first one jax prefers.

    Raises ConfigError with the devices there are.
    """
    if name is None:
        return jax.devices()[0]
    platform, _, number = name.partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        known = ", ".join(f"{d.platform}:{d.id}" for d in [*jax.devices(), *_cpus()])
        raise ConfigError(
            f"there is no device {name!r} here; there are {known}. A GPU needs "
            "`pip install 'musicjax[cuda]'`."
        ) from error


def _cpus() -> list[jax.Device]:
    return [] if jax.default_backend() == "cpu" else jax.devices("cpu")


def keep_compiled() -> None:
    """Keep compiled programs in the cache folder, so that the next process need not compile.

    Does nothing where the user has chosen a folder already (JAX_COMPILATION_CACHE_DIR), where the
    environment variable MUSICJAX_COMPILE_CACHE is "off", or where the folder cannot be made.
    """
    off = os.environ.get("MUSICJAX_COMPILE_CACHE", "").lower() in _OFF
    if off or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    folder = compile_cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # slower, not wrong
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def mending_cache() -> Iterator[None]:
    """Around a first call: compiled programs that are damaged on disk are dropped in silence.

    jax compiles again when it cannot read an entry, but warns and keeps the broken file, so that
    every later process would warn and compile too. Only entries that we keep are touched.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    ours = str(compile_cache_folder())
    for warning in caught:
        if "Error reading persistent compilation cache entry" not in str(warning.message):
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
        elif jax.config.jax_compilation_cache_dir == ours:  # type: ignore[attr-defined]
            for entry in Path(ours).glob("*-cache"):
                entry.unlink(missing_ok=True)
