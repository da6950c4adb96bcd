"""What every test stands on: one platform, exact matmuls, checked shapes, a warm compile cache.

Set before jax is first imported, so that subprocesses started by a test inherit the same:

- the CPU, unless `MUSICJAX_TEST_PLATFORM` names another (`cuda`);
- matmul precision `highest`, which parity tolerances assume;
- code that is fast to compile rather than to run, unless XLA_FLAGS says otherwise;
- a persistent compile cache under `.pytest_cache`, so that a second run compiles nothing.

Every function of musicjax whose signature is annotated is checked at run time (jaxtyping and
beartype) while tests run; `MUSICJAX_TEST_TYPES=0` switches that off.
"""

import io
import os
import sys
import tempfile
import types
import typing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import AbstractArray, install_import_hook

ROOT = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = os.environ.get("MUSICJAX_TEST_PLATFORM", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
os.environ.setdefault("MPLBACKEND", "Agg")
if os.environ["JAX_PLATFORMS"] == "cpu":
    # Most of what is compiled here runs once, and compiling is most of the time. So: the lowest
    # level of code generation, in one part rather than 32, since other tests have the other cores;
    # and the emitters that do not set up MLIR for every loop, half the time of tests of networks.
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
        "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
    )

# What a hint lets through beyond its letter. An int is welcome where a float is asked for, and a
# numpy scalar where a Python number is: what comes out of an array may go into a function. A binary
# file is what can be read or written; beartype's own idea of it leaves out io.BytesIO.
_WELCOME = {
    bool: bool | np.bool_,
    int: int | np.integer,
    float: float | int | np.floating | np.integer,
    typing.BinaryIO: io.IOBase | tempfile._TemporaryFileWrapper,
}
_CONF = BeartypeConf(hint_overrides=FrozenDict(_WELCOME))


def _mentions_array(annotation: object) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        return True
    return any(_mentions_array(part) for part in typing.get_args(annotation))


def check(function: Callable) -> Callable:
    """Check calls of `function`, unless it builds a dataclass of arrays.

    Such a dataclass is a pytree, and jax rebuilds pytrees with whatever a transformation carries
    in place of arrays: shapes, specs, None.
    """
    arrays = any(_mentions_array(a) for a in getattr(function, "__annotations__", {}).values())
    if function.__name__ == "__init__" and arrays:
        return function
    return beartype(conf=_CONF)(function)


if os.environ.get("MUSICJAX_TEST_TYPES", "1") != "0":
    # The hook wants the checker's address as text, and a conftest has no importable name.
    checker = types.ModuleType("musicjax_test_checker")
    checker.check = check  # type: ignore[attr-defined]
    sys.modules[checker.__name__] = checker
    install_import_hook("musicjax", "musicjax_test_checker.check")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process a core, four at most, for the whole suite; no other process for a part of it.

    Most of the time goes into compiling, one program after the other. Each process takes seconds to
    start and gigabytes for what it compiled.
    """
    part = config.args_source is not pytest.Config.ArgsSource.TESTPATHS
    if part or os.environ["JAX_PLATFORMS"] != "cpu":  # processes cannot share an accelerator
        return 0
    available = getattr(os, "sched_getaffinity", None)  # the cores that this process may use
    cores = len(available(0)) if available else os.cpu_count() or 1
    return min(cores, 4) if cores > 1 else 0


# Sweeps over systems: the tests of one system go to one process, those of another to any.
_SWEEPS = ("tests/test_zoo.py", "tests/configs/test_recipes.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: typing.Any) -> typing.Any:
    """A file's tests go to one process, as they share fixtures; a sweep's by what is swept.

    The marks that pytest-xdist has for it are lost with pytest 9.2: it writes them into names of
    tests that pytest no longer reads.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            return file + test[test.find("[") :] if file in _SWEEPS and "[" in test else file

    return ByFile(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Point jax at a compile cache that outlives the session."""
    cache = getattr(config, "cache", None)
    folder = cache.mkdir("jax") if cache else config.rootpath / ".pytest_cache" / "jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the source tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """`shared("data/clips/x.flac")`: a path in the optional shared material, or a skip.

    The material (real recordings with their truth, public weights) is not part of the project. It
    is looked for in `../shared` beside the source tree, or where `MUSICJAX_SHARED` points.
    """
    folder = Path(os.environ.get("MUSICJAX_SHARED", ROOT.parent / "shared"))

    def find(relative: str) -> Path:
        path = folder / relative
        if not path.exists():
            pytest.skip(f"optional shared material is absent: {relative} (set MUSICJAX_SHARED)")
        return path

    return find


@pytest.fixture(scope="session")
def tiny_model() -> tuple[typing.Any, typing.Any]:
    """Onsets and Frames at its tiny size with random values: (model, config).

    Filled by numpy: initialisers would each be compiled, which takes longer than most tests.
    """
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from musicjax import registry

    system = registry.find_system("onsets_frames")
    config = system.resolve("config")("tiny")
    make = system.resolve("model")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)

    def fill(keys: tuple, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) > 1:
            return rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        return np.full(shape, float(keys[-1] in ("scale", "var")))

    leaves = []
    for keys, variable in nnx.to_flat_state(abstract):
        spec = variable.get_value()
        leaves.append((keys, variable.replace(jnp.asarray(fill(keys, spec.shape), spec.dtype))))
    return nnx.merge(graph, nnx.from_flat_state(leaves)), config


@pytest.fixture(scope="session")
def tiny_weights(
    tiny_model: tuple[typing.Any, typing.Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same as a weights file."""
    from musicjax.hub import save_weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_weights(path, *tiny_model, system="onsets_frames", dtype="float32")
    return path
