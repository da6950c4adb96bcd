"""Devices as a named mesh (data, fsdp, tensor), and batches and states laid out on it.

One device is a mesh of ones: there is no second code path. Axes are of type Auto: the compiler
propagates shardings from the arguments.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from musicjax.errors import ConfigError
from musicjax.train.config import MeshConfig
from musicjax.train.rules import RULES, WHOLE_BELOW_BYTES, AnyMesh, state_shardings

AXES = ("data", "fsdp", "tensor")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh that a config asks for, on these devices or on all.

    Raises ConfigError if the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    rest = config.fsdp * config.tensor
    data = config.data or max(len(devices) // rest, 1)
    if data * rest != len(devices):
        raise ConfigError(
            f"the mesh data={data} x fsdp={config.fsdp} x tensor={config.tensor} needs "
            f"{data * rest} devices, and there are {len(devices)}: change --mesh.data, "
            "--mesh.fsdp or --mesh.tensor so that their product is the number of devices."
        )
    shape = (data, config.fsdp, config.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


@contextlib.contextmanager
def on_mesh(mesh: Mesh) -> Iterator[None]:
    """Sets the mesh and the library's axis rules while models are built and steps are traced."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(RULES):
        yield


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def check_batch_size(batch_size: int, accumulate: int, mesh: AnyMesh) -> None:
    """Raises ConfigError unless each micro-batch splits evenly over the devices."""
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % (ways * accumulate):
        raise ConfigError(
            f"data.batch_size is {batch_size}, which does not split over {ways} devices in "
            f"{accumulate} micro-batches: choose a multiple of {ways * accumulate}."
        )


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, Array]:
    """This process's part of a batch as global arrays on the mesh."""
    sharding = batch_sharding(mesh)
    if jax.process_count() == 1:
        return jax.device_put(dict(batch), sharding)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def replicated(tree: Any, mesh: Mesh) -> Any:
    """The same values, whole on every device. Collective when there are many processes."""
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))(tree)


def sharded_init(
    make: Callable[[], Any], mesh: Mesh, *, whole_below_bytes: int = WHOLE_BELOW_BYTES
) -> tuple[Any, Any]:
    """Build a state directly in its layout: no device ever holds the whole of a cut tensor.

    Returns the state and the shardings of its leaves.
    """
    with on_mesh(mesh):
        abstract = jax.eval_shape(make)
        shardings = state_shardings(abstract, mesh, whole_below_bytes=whole_below_bytes)
        build = jax.jit(make, out_shardings=shardings, compiler_options=_quickly())
        return build(), shardings


def _quickly() -> dict[str, Any] | None:
    """Compiler options for what runs once: on a CPU, optimising takes longer than it saves."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
