"""The conversion engine: one readable table of rules turns foreign weights into a model's state.

>>> rules = [
...     Rule(r"encoder\\.(\\d)\\.weight", r"encoder.\\1.kernel", "transpose"),
...     Rule(r"encoder\\.(\\d)\\.bias", r"encoder.\\1.bias"),
... ]
>>> state = convert(read_state_dict(path), abstract_state, rules, ignore={"mel.*": "a constant"})

Silence is not success: every source entry must be used or ignored with a reason, and every leaf
of the model filled, or one WeightsError tells all that is wrong.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicjax.errors import WeightsError

Transform = Literal[
    "same",
    "transpose",
    "conv1d_oiw",
    "conv2d_oihw",
    "dense_after_flatten",
    "lstm_gates_ijfo",
    "add",
]


@dataclass(frozen=True)
class Rule:
    """Where one kind of source entry goes.

    source      regular expression that must match a whole source name
    target      dotted path of a leaf; `\\\\1`, `\\\\2` … are the groups of `source`
    transform   what happens to the numbers on the way:
        same                 nothing
        transpose            (out, in) to (in, out)
        conv1d_oiw           (out, in, width) to (width, in, out)
        conv2d_oihw          (out, in, rows, columns) to (rows, columns, in, out)
        dense_after_flatten  (out, channels * bins) to (bins * channels, out): a dense layer that
                             follows a flattened map; the source has channels first, we last
        lstm_gates_ijfo      gates i, j, f, o along the last axis (TensorFlow) to i, f, j, o
        add                  nothing, and several sources of one target are summed
    channels    of the flattened map, for dense_after_flatten
    """

    source: str
    target: str
    transform: Transform = "same"
    channels: int = 1


def _dense_after_flatten(array: np.ndarray, rule: Rule) -> np.ndarray:
    out, width = array.shape
    maps = array.reshape(out, rule.channels, width // rule.channels)
    return maps.transpose(2, 1, 0).reshape(width, out)


def _gates_ijfo(array: np.ndarray, _rule: Rule) -> np.ndarray:
    i, j, f, o = np.split(array, 4, axis=-1)
    return np.concatenate([i, f, j, o], axis=-1)


_TRANSFORMS: dict[str, Callable[[np.ndarray, Rule], np.ndarray]] = {
    "same": lambda array, _: array,
    "transpose": lambda array, _: array.transpose(1, 0),
    "conv1d_oiw": lambda array, _: array.transpose(2, 1, 0),
    "conv2d_oihw": lambda array, _: array.transpose(2, 3, 1, 0),
    "dense_after_flatten": _dense_after_flatten,
    "lstm_gates_ijfo": _gates_ijfo,
    "add": lambda array, _: array,
}


def convert(
    source: Mapping[str, np.ndarray],
    model_state: nnx.State,
    rules: Sequence[Rule],
    *,
    ignore: Mapping[str, str] | None = None,
) -> nnx.State:
    """The state of a model, filled from foreign weights by a table of rules.

    source: arrays by name. model_state: as `nnx.eval_shape` gives it; only shapes and dtypes are
    used. The first rule that matches a name is taken. ignore: regular expressions of names to
    leave out, each with the reason why.
    Raises one WeightsError with everything that `misfits` finds.
    """
    filled, faults = _placed(source, model_state, rules, ignore)
    if faults:
        raise WeightsError(misfit_sentence(faults))
    leaves = []
    for keys, variable in nnx.to_flat_state(model_state):
        if not isinstance(variable, nnx.RngState):
            value = filled[_dotted(keys)].astype(variable.get_value().dtype)
            leaves.append((keys, variable.replace(jnp.asarray(value))))
    return nnx.from_flat_state(leaves)


def misfits(
    source: Mapping[str, np.ndarray],
    model_state: nnx.State,
    rules: Sequence[Rule],
    *,
    ignore: Mapping[str, str] | None = None,
) -> list[str]:
    """Phrases on what keeps `convert` from filling the model; nothing when it fits.

    Every source name that no rule takes, every leaf that no rule fills, every shape that does not
    fit, and every leaf that is filled twice. Only the shapes of the source count.
    """
    return _placed(source, model_state, rules, ignore)[1]


def misfit_sentence(faults: Sequence[str]) -> str:
    """The one sentence that tells all faults."""
    return f"the weights do not fit the model in {len(faults)} places: {'; '.join(faults)}."


def _dotted(keys: tuple) -> str:
    return ".".join(map(str, keys))


def _placed(
    source: Mapping[str, np.ndarray],
    model_state: nnx.State,
    rules: Sequence[Rule],
    ignore: Mapping[str, str] | None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays by the leaf that they fill, and phrases on all that does not fit."""
    wanted = {
        _dotted(keys): variable.get_value().shape
        for keys, variable in nnx.to_flat_state(model_state)
        if not isinstance(variable, nnx.RngState)
    }
    faults: list[str] = []
    filled: dict[str, np.ndarray] = {}
    for name, array in source.items():
        if any(re.fullmatch(pattern, name) for pattern in ignore or {}):
            continue
        found = _target(name, rules)
        if found is None:
            faults.append(f"{name} {array.shape} is matched by no rule")
            continue
        target, rule = found
        if target not in wanted:
            faults.append(f"{name} should go to {target}, which the model does not have")
            continue
        try:
            value = _TRANSFORMS[rule.transform](array, rule)
        except ValueError:
            faults.append(f"{name} {array.shape} cannot be taken through {rule.transform!r}")
            continue
        if value.shape != wanted[target]:
            faults.append(f"{name} becomes {value.shape}, {target} is {wanted[target]}")
        if target not in filled:
            filled[target] = value
        elif rule.transform == "add" and value.shape == filled[target].shape:
            filled[target] = filled[target] + value
        else:
            faults.append(f"{target} is filled twice, the second time by {name}")
    faults += [
        f"{target} {shape} is filled by nothing"
        for target, shape in wanted.items()
        if target not in filled
    ]
    return filled, faults


def _target(name: str, rules: Sequence[Rule]) -> tuple[str, Rule] | None:
    for rule in rules:
        match = re.fullmatch(rule.source, name)
        if match:
            return match.expand(rule.target), rule
    return None
