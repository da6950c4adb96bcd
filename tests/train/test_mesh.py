"""The mesh: eight virtual devices compute what one does, and what pmap does; rules; sentences."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from musicjax.errors import ConfigError
from musicjax.train.config import MeshConfig
from musicjax.train.launch import COORDINATOR, PROCESSES, connect
from musicjax.train.mesh import AXES, check_batch_size, make_mesh
from musicjax.train.rules import partition, state_shardings

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def eight(root):
    """Results of `devices.py` on eight virtual devices."""
    done = subprocess.run(
        [sys.executable, str(HERE / "devices.py")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(HERE)]),
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (x for x in done.stdout.splitlines() if x.startswith("RESULTS "))
    return json.loads(line.removeprefix("RESULTS "))


@pytest.mark.parametrize(
    ("a", "b"),
    [("pmap", "plain"), ("one", "eight"), ("parts_one", "parts_eight"), ("one", "cut")],
)
def test_layouts_compute_the_same(eight, a, b):
    np.testing.assert_allclose(eight[a]["loss"], eight[b]["loss"], rtol=1e-5)
    np.testing.assert_allclose(eight[a]["values"], eight[b]["values"], atol=1e-5)


def test_parameters_moments_and_averages_are_cut_alike(eight):
    cut = eight["cut"]
    assert cut["params"] == cut["ema"] == ["fsdp", "tensor"]
    assert cut["moments"] == [["fsdp", "tensor"]]
    assert eight["eight"]["params"] == []


def test_layouts_compile_once(eight):
    assert {run["compiles"] for run in eight.values() if "compiles" in run} == {1}


def test_one_device_is_a_mesh_of_ones():
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}


def test_mesh_that_does_not_fit_is_a_sentence():
    with pytest.raises(ConfigError, match=r"needs 6 devices, and there are 1.*--mesh.data"):
        make_mesh(MeshConfig(data=3, fsdp=2), jax.devices()[:1])


def test_batch_that_does_not_split_is_a_sentence():
    mesh = AbstractMesh((4, 2, 1), AXES)
    check_batch_size(16, 2, mesh)
    with pytest.raises(ConfigError, match="a multiple of 16"):
        check_batch_size(8, 2, mesh)


def test_rules():
    mesh = AbstractMesh((2, 2, 4), AXES)
    assert partition(("embed", "mlp"), (8, 8), mesh) == PartitionSpec("fsdp", "tensor")
    assert partition(("batch", "length"), (8, 8), mesh) == PartitionSpec(("data", "fsdp"), None)
    assert partition(("vocab", "embed"), (8, 7), mesh) == PartitionSpec("tensor", None)
    assert partition(("heads", "mlp"), (8, 8), mesh) == PartitionSpec("tensor", None)
    assert partition((None, "kv"), (8, 8), mesh) == PartitionSpec(None, None)
    with pytest.raises(ConfigError, match="'embd' of a parameter"):
        partition(("embd",), (8,), mesh)


def test_large_tensors_without_names_stop_a_cut_mesh():
    tree = {"w": nnx.Param(jax.ShapeDtypeStruct((2048, 1024), jnp.float32))}
    spec = state_shardings(tree, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert jax.tree.leaves(spec)[0].spec == PartitionSpec()
    with pytest.raises(ConfigError, match="name no logical axes"):
        state_shardings(tree, AbstractMesh((1, 2, 1), AXES))


def test_launch_variables_come_together():
    assert connect({}) == 1
    with pytest.raises(ConfigError, match="set all three"):
        connect({COORDINATOR: "localhost:1"})
    with pytest.raises(ConfigError, match="'two'; expected a whole number"):
        connect({COORDINATOR: "localhost:1", PROCESSES: "two", "MUSICJAX_PROCESS": "0"})
