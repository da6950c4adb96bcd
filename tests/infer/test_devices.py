"""Devices by name, and a compile cache that mends itself."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import pytest

from musicjax.errors import ConfigError
from musicjax.infer import find_device, keep_compiled
from musicjax.infer.devices import compile_cache_folder, mending_cache

DAMAGE = "Error reading persistent compilation cache entry for 'jit_f': truncated"


def test_devices_by_name():
    assert find_device("cpu").platform == "cpu"
    assert find_device(None) is not None
    with pytest.raises(ConfigError, match="there are cpu:0"):
        find_device("abacus:3")
    with pytest.raises(ConfigError, match="no device 'cpu:99'"):
        find_device("cpu:99")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The cache folder as a user has it; jax's own setting comes back afterwards."""
    names = [
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    ]
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path))
    yield compile_cache_folder()
    for name, value in before.items():
        jax.config.update(name, value)


def test_programs_are_kept_where_the_user_chose_nothing(own_cache, monkeypatch, tmp_path):
    chosen = jax.config.jax_compilation_cache_dir
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == chosen
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("MUSICJAX_COMPILE_CACHE", "off")
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.delenv("MUSICJAX_COMPILE_CACHE")
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(own_cache)
    assert own_cache.parent == tmp_path


def test_a_cache_that_cannot_be_made_is_no_error(own_cache, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", None)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None


def test_damaged_programs_are_dropped(own_cache, recwarn):
    own_cache.mkdir()
    entry = own_cache / "jit_f-1-cache"
    entry.write_bytes(b"half")
    with mending_cache():  # the cache in use is another one: not ours to mend
        warnings.warn(DAMAGE, stacklevel=1)
    assert entry.exists()
    jax.config.update("jax_compilation_cache_dir", str(own_cache))
    with mending_cache():
        warnings.warn(DAMAGE, stacklevel=1)
        warnings.warn("something else", stacklevel=1)
    assert not entry.exists()
    assert [str(w.message) for w in recwarn] == ["something else"]


def test_two_devices_give_what_one_gives(root):
    """Of a CPU's two, models that keep the cores busy from one are given that one."""
    here = Path(__file__).resolve().parent
    done = subprocess.run(
        [sys.executable, str(here / "on_two_devices.py")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(here)]),
            "JAX_NUM_CPU_DEVICES": "2",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found.pop("gap") <= 1e-3  # activations are float16
    assert found == {
        "devices": 2,
        "whole": True,
        "two": 2,
        "windows at once": [1, 2],
        "programs": [1, 1],
        "Loudest": True,
        "Counted": True,
        "tokens": True,
        "agreed": True,
        "compiled anew": 0,
    }


@pytest.mark.parametrize("chosen", [None, "3"])
def test_cores_become_devices_where_nothing_else_was_chosen(chosen, root):
    code = (
        "from musicjax.infer import cores_as_devices; cores_as_devices(); import jax; "
        "print(jax.device_count()); cores_as_devices()"
    )
    env = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    env |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    env |= {"JAX_NUM_CPU_DEVICES": chosen} if chosen else {}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == int(chosen or len(os.sched_getaffinity(0)))
