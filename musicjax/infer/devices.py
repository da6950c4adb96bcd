"""The devices a model runs on, and compiled programs that outlive the process.

A runner computes on one device, or on a mesh of several along `data`: weights whole on each, each
with its share of the rows. `Where` says which; None leaves it to jax.
"""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from musicjax.errors import ConfigError
from musicjax.hub import compile_cache_folder

Where: TypeAlias = "jax.Device | Mesh | None"

_OFF = ("0", "off", "no", "false")
_WHOLE, _ROWS = PartitionSpec(), PartitionSpec("data")


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


def spread(device: jax.Device | None, *, cores: bool = False) -> Where:
    """The device that was asked for, or else all that this process has, where there are several.

    All devices of a CPU share its cores, and most computations keep them all busy from one: those
    count only with `cores`, for steps that are too short for that (see `cores_as_devices`).
    """
    devices = jax.local_devices()
    if device is not None or len(devices) == 1 or (devices[0].platform == "cpu" and not cores):
        return device
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def cores_as_devices() -> None:
    """Make each CPU core a device of jax's, where it has no better ones.

    To be called before jax is first used; does nothing afterwards, or where JAX_NUM_CPU_DEVICES
    says how many there are.
    """
    if "JAX_NUM_CPU_DEVICES" in os.environ:
        return
    with contextlib.suppress(RuntimeError):  # jax has been used already
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def shares(where: Where) -> int:
    """On how many devices rows are divided."""
    return where.size if isinstance(where, Mesh) else 1


def put_whole(tree: Any, where: Where) -> Any:
    """The arrays on the device, or whole on each."""
    return jax.device_put(tree, NamedSharding(where, _WHOLE) if isinstance(where, Mesh) else where)


def put_rows(tree: Any, where: Where) -> Any:
    """The arrays on the device, or each device's share of their first axis on it."""
    return jax.device_put(tree, NamedSharding(where, _ROWS) if isinstance(where, Mesh) else where)


def on_rows(function: Callable[..., Any], where: Where) -> Callable[..., Any]:
    """function(weights, rows, ...) as it is, or on each device with its share of all rows."""
    if not isinstance(where, Mesh):
        return function

    def shared(weights: Any, *rows: Any) -> Any:
        specs = (_WHOLE, *(_ROWS for _ in rows))
        return jax.shard_map(
            function, mesh=where, in_specs=specs, out_specs=_ROWS, check_vma=False
        )(weights, *rows)

    return shared


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
