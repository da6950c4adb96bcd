"""The device a model runs on, and compiled programs that outlive the process."""

import os

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
