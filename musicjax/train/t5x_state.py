"""A training state as T5X keeps it, and back, so that either trainer goes on where the other was.

Parameters and the slots of Adafactor are the same arrays under T5X's names. What T5X has no place
for stays behind: the running average and the count of skipped steps.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from musicjax.errors import TrainingError, WeightsError
from musicjax.hub.t5x import T5XCheckpoint, unflatten
from musicjax.hub.t5x_layouts import by_t5x_names, t5x_names
from musicjax.nn.forms import TransformerConfig
from musicjax.train.state import TrainState, average_start

_KINDS = ("v", "v_col", "v_row")  # of Adafactor; T5X has m besides, for a momentum
_COUNTED = (optax.FactoredState, optax.ScaleByScheduleState)


def to_t5x(state: TrainState, config: TransformerConfig, *, prefix: str = "") -> dict[str, Any]:
    """The tree that `musicjax.hub.t5x.write_t5x` writes, from a run that uses Adafactor.

    config: of the Transformer that is trained; prefix: what stands before its parameters' names
    when it is a part of the model. The step is the number of updates.
    Raises TrainingError for another optimizer and WeightsError for a model not of T5X's form.
    """
    slots = _slots(state)
    named = {k: by_t5x_names(_flat(getattr(slots, k)), config, prefix=prefix) for k in _KINDS}
    target = by_t5x_names(_flat(state.params), config, prefix=prefix)
    unused = np.zeros((1,), np.float32)
    param_states = {
        f"{name}/{kind}": value
        for name in target
        for kind, value in (("m", unused), *((k, named[k][name]) for k in _KINDS))
    }
    return {
        "state": {
            "param_states": unflatten(param_states),
            "step": np.int32(np.asarray(slots.count)),
        },
        "target": unflatten(target),
    }


def from_t5x(
    state: TrainState, checkpoint: T5XCheckpoint, config: TransformerConfig, *, prefix: str = ""
) -> TrainState:
    """A training state with parameters, slots and step of a T5X checkpoint.

    state: of the run that shall go on, with Adafactor; its average begins at the parameters.
    Raises TrainingError for another optimizer, and one WeightsError with everything that is
    damaged or does not fit.
    """
    slots = _slots(state)
    values = checkpoint.read()
    wanted = {"target/{}": _flat(state.params)}
    wanted |= {f"state/param_states/{{}}/{k}": _flat(getattr(slots, k)) for k in _KINDS}
    faults: list[str] = []
    found = {
        place: _fitting(
            values, place, by_t5x_names({k: k for k in flat}, config, prefix=prefix), flat, faults
        )
        for place, flat in wanted.items()
    }
    known = {f"target/{name}" for name in t5x_names(config)}
    faults += [
        f"{name} is unknown to this run"
        for name in values
        if name.startswith("target/") and name not in known
    ]
    faults += [
        f"{name} has a momentum, which is not kept here"
        for name, value in values.items()
        if name.endswith("/m") and getattr(value, "shape", (1,)) != (1,)
    ]
    if faults:
        raise WeightsError(
            f"the checkpoint {checkpoint.folder} does not fit this run in {len(faults)} places: "
            f"{'; '.join(faults)}."
        )
    params = _like(state.params, found["target/{}"])
    moved = {k: _like(getattr(slots, k), found[f"state/param_states/{{}}/{k}"]) for k in _KINDS}
    step = jnp.asarray(values["state/step"], jnp.int32)

    def placed(node: Any) -> Any:
        if isinstance(node, optax.FactoredState):
            return node._replace(count=step, **moved)
        return node._replace(count=step) if isinstance(node, _COUNTED) else node

    return replace(
        state,
        step=step,
        params=params,
        opt_state=jax.tree.map(
            placed, state.opt_state, is_leaf=lambda node: isinstance(node, _COUNTED)
        ),
        ema=None if state.ema is None else average_start(params),
    )


def _slots(state: TrainState) -> optax.FactoredState:
    nodes = jax.tree.leaves(
        state.opt_state, is_leaf=lambda node: isinstance(node, optax.FactoredState)
    )
    found = [node for node in nodes if isinstance(node, optax.FactoredState)]
    if len(found) != 1:
        raise TrainingError(
            "this run does not use Adafactor, whose slots T5X keeps: set optim.name to adafactor."
        )
    return found[0]


def _flat(state: nnx.State) -> dict[str, Any]:
    return {
        ".".join(map(str, keys)): variable.get_value()
        for keys, variable in nnx.to_flat_state(state)
    }


def _fitting(
    values: Mapping[str, Any],
    place: str,
    names: Mapping[str, str],
    wanted: Mapping[str, Any],
    faults: list[str],
) -> dict[str, np.ndarray]:
    """The values by our names; what is not there or has another shape goes into `faults`."""
    found = {}
    for theirs, ours in names.items():
        value: Any = values.get(place.format(theirs))
        if not hasattr(value, "shape"):
            faults.append(f"{place.format(theirs)} is missing")
        elif value.shape != wanted[ours].shape:
            there, here = value.shape, wanted[ours].shape
            faults.append(f"{place.format(theirs)} is {there}, this run has {here}")
        else:
            found[ours] = value
    return found


def _like(state: nnx.State, values: Mapping[str, np.ndarray]) -> nnx.State:
    """The values in place of a state's, with its dtypes and layout."""
    leaves = []
    for keys, variable in nnx.to_flat_state(state):
        here = variable.get_value()
        value = values[".".join(map(str, keys))].astype(here.dtype)
        leaves.append((keys, variable.replace(jax.device_put(value, here.sharding))))
    return nnx.from_flat_state(leaves)
