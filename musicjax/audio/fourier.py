"""Real DFTs of rows that stay where they are when rows are spread over devices.

XLA's partitioner does not know that the DFT of one row needs no other row: given a batch sharded
over devices it gathers the whole batch onto each of them first (openxla/xla#24). Here the transform
is declared to act row by row. On one device nothing is added. Derivatives with respect to the
samples use the plain transform.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Complex, Float


def rfft(frames: Float[Array, "*B N"]) -> Complex[Array, "*B bins"]:
    """DFT of real rows; bins = N // 2 + 1."""
    return _row_by_row(jnp.fft.rfft)(frames)


def irfft(spectrum: Complex[Array, "*B bins"], size: int) -> Float[Array, "*B N"]:
    """Real rows of `size` samples from their DFT."""
    return _row_by_row(_irfft_of_size(size))(spectrum)


@functools.cache
def _irfft_of_size(size: int) -> Callable[[Array], Array]:
    return functools.partial(jnp.fft.irfft, n=size)


@functools.cache
def _row_by_row(transform: Callable[[Array], Array]) -> Callable[[Array], Array]:
    partitioned = custom_partitioning(lambda rows: transform(rows))

    def infer(mesh, arguments, result):
        return _rows_whole(mesh, arguments[0])

    def partition(mesh, arguments, result):
        sharding = _rows_whole(mesh, arguments[0])
        return mesh, transform, sharding, (sharding,)

    partitioned.def_partition(
        partition=partition,
        infer_sharding_from_operands=infer,
        sharding_rule="... n -> ... m",
        need_replication_factors=("n", "m"),
    )

    # Custom partitioning has neither a batching rule nor a derivative; both are plain here.
    batched = custom_vmap(lambda rows: partitioned(rows))
    batched.def_vmap(lambda size, in_batched, rows: (differentiable(rows), True))
    differentiable = jax.custom_jvp(lambda rows: batched(rows))
    differentiable.defjvp(lambda rows, tangents: (differentiable(*rows), transform(*tangents)))
    return differentiable


def _rows_whole(mesh: jax.sharding.Mesh, argument: jax.ShapeDtypeStruct) -> NamedSharding:
    """The argument's sharding with its last axis on one device."""
    axes = list(argument.sharding.spec)
    axes += [None] * (len(argument.shape) - len(axes))
    return NamedSharding(mesh, PartitionSpec(*axes[:-1], None))
