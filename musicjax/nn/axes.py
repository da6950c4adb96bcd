"""Parameters and activations that name their axes, so that one table can cut them over a mesh.

The names are T5X's (`embed`, `heads`, `joined_kv`, `mlp`, `vocab` …); the table is
`musicjax/train/rules.py`. Without a mesh the names change nothing.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from flax.core.spmd import get_logical_axis_rules
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Shaped

from musicjax.nn.products import dense_product
from musicjax.types import Policy

MeshAxes = str | tuple[str, ...] | None


def axes(*names: str | None) -> dict[str, Any]:
    """Metadata that names the axes of a parameter, for `nnx.Param(value, **axes(...))`."""
    # A model may be built where there is no mesh: the layout is decided for a whole state at
    # once, by sharded_init of musicjax/train/mesh.py, not for each array as it is made.
    return {"out_sharding": names, "eager_sharding": False}


def linear(
    inputs: int,
    outputs: int,
    names: tuple[str, str],
    *,
    bias: bool,
    init: nnx.Initializer,
    policy: Policy,
    rngs: nnx.Rngs,
) -> nnx.Linear:
    """A dense layer, kernel (inputs, outputs), whose axes are called `names`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        kernel_init=init,
        dot_general=dense_product(policy),
        dtype=policy.compute,
        param_dtype=policy.param,
        kernel_metadata=axes(*names),
        bias_metadata=axes(names[1]),
        rngs=rngs,
    )


def partition(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    rules: Mapping[str, MeshAxes],
) -> PartitionSpec:
    """The spec of one tensor with these axis names; a name without a rule stays whole.

    An axis that the mesh axis does not divide stays whole, and no mesh axis is used twice.
    """
    spec: list[MeshAxes] = []
    used: set[str] = set()
    for name, size in zip(names, shape, strict=True):
        rule = rules.get(name) if name is not None else None
        cuts = (rule,) if isinstance(rule, str) else rule or ()
        ways = math.prod(mesh.shape[axis] for axis in cuts)
        fits = ways > 1 and size % ways == 0 and not used & set(cuts)
        spec.append((cuts if len(cuts) > 1 else cuts[0]) if fits else None)
        used |= set(cuts) if fits else set()
    return PartitionSpec(*spec)


def constrain(x: Shaped[Array, "*shape"], *names: str | None) -> Shaped[Array, "*shape"]:
    """Lay activations out over the mesh in force by its axis rules; without them, return `x`.

    Left alone, the compiler may cut activations as the weights are cut, and then gathers the
    batch on every device instead of a layer's weights.
    """
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(get_logical_axis_rules())
    if mesh.empty or not rules:
        return x
    return jax.lax.with_sharding_constraint(x, partition(names, x.shape, mesh, rules))
