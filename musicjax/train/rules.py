"""Which tensor axis is cut along which mesh axis: one table for the whole library.

Parameters that should be cut carry logical axis names (T5X's words) in their metadata, e.g.
`nnx.Linear(..., kernel_metadata=axes("embed", "mlp"))` with `musicjax.nn.axes`. Small models carry
none and are replicated: pure data parallelism.
"""

from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from musicjax.errors import ConfigError
from musicjax.nn.axes import MeshAxes
from musicjax.nn.axes import partition as cut_by

AnyMesh = Mesh | AbstractMesh  # an abstract one has axes without devices

RULES: tuple[tuple[str, MeshAxes], ...] = (
    ("batch", ("data", "fsdp")),
    ("length", None),
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("joined_kv", "tensor"),  # heads and their widths as one axis, as T5X keeps kernels
    ("vocab", "tensor"),
    ("kv", None),
    ("layers", None),
    ("relpos_buckets", None),
    ("freq", None),
    ("channels", None),
    ("pitch", None),
)

# Cutting a small tensor costs more in communication than it saves in memory.
WHOLE_BELOW_BYTES = 4 * 2**20
# A large model whose tensors mostly miss the table would silently fill every device.
UNRULED_SHARE = 0.02


def partition(
    names: tuple[str | None, ...], shape: tuple[int, ...], mesh: AnyMesh
) -> PartitionSpec:
    """The spec of one tensor with these logical axis names.

    An axis that the mesh axis does not divide stays whole, and no mesh axis is used twice. Raises
    ConfigError for a name that the table lacks.
    """
    table = dict(RULES)
    for name in names:
        if name is not None and name not in table:
            raise ConfigError(
                f"the logical axis {name!r} of a parameter of shape {shape} is not in the sharding "
                f"table; use one of {', '.join(table)} or add a rule to musicjax/train/rules.py."
            )
    return cut_by(names, shape, mesh, table)


def state_shardings(
    abstract: Any, mesh: AnyMesh, *, whole_below_bytes: int = WHOLE_BELOW_BYTES
) -> Any:
    """Shardings for a tree of shapes with nnx Variables (parameters, moments, averages).

    Returns the same tree with a NamedSharding in place of each array. Raises ConfigError if the
    mesh cuts parameters but more than 2 % of the bytes in large tensors carry no axis names.
    """
    entries, _ = jax.tree.flatten(abstract, is_leaf=lambda x: isinstance(x, nnx.Variable))
    shardings, large, unruled = [], 0, []
    for entry in entries:
        leaves = jax.tree.leaves(entry)
        if not leaves:  # a tensor that an optimizer of several parts leaves to another part
            continue
        leaf = leaves[0]
        size = leaf.size * getattr(leaf.dtype, "itemsize", 4)
        names = entry.get_metadata().get("out_sharding") if _named(entry) else None
        spec = PartitionSpec()
        if size >= whole_below_bytes:
            large += size
            if names is None:
                unruled.append((size, leaf.shape))
            elif len(names) == len(leaf.shape):  # else one of Adafactor's factors, which stay whole
                spec = partition(tuple(names), leaf.shape, mesh)
        shardings.append(NamedSharding(mesh, spec))
    missed = sum(size for size, _ in unruled)
    cut = mesh.shape["fsdp"] * mesh.shape["tensor"] > 1
    if cut and missed > UNRULED_SHARE * large:
        shapes = ", ".join(str(shape) for _, shape in sorted(unruled, key=str)[:5])
        raise ConfigError(
            f"the mesh cuts parameters, but {missed / 2**20:.0f} MB of them name no logical axes "
            f"(shapes {shapes}): annotate them with out_sharding, or set mesh.fsdp and "
            "mesh.tensor to 1."
        )
    return jax.tree.unflatten(jax.tree.structure(abstract), shardings)


def _named(entry: Any) -> bool:
    return isinstance(entry, nnx.Variable) and bool(entry.get_metadata().get("out_sharding"))
