"""Public weights for this network: the authors' real-time demonstration, and their training code.

Both are PyTorch state dicts of one network. They differ in the names of its parts, in the order of
the five states, and in whether the LSTM reads the acoustic model or the states first; here there is
one order of each (`states.STATES`, acoustic model first).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, Transform
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.piano_ar.config import PianoARConfig, StateSet, get_config
from musicjax.models.piano_ar.model import PianoAR
from musicjax.models.piano_ar.states import STATES


@dataclass(frozen=True)
class _Layout:
    """What one public code calls the parts, and how it orders what stands side by side."""

    stack: str
    lstm: str
    output: str
    embedding: str
    acoustic_first: bool
    five: tuple[str, ...]  # its order of the five states


_LAYOUTS = {
    "demo": _Layout(  # github.com/jdasam/online_amt, autoregressive/models.py
        stack="acoustic_model",
        lstm="language_model",
        output="language_post.0",
        embedding="class_embedding",
        acoustic_first=True,
        five=("off", "offset", "sustain", "onset", "reonset"),
    ),
    "paper": _Layout(
        stack="conv_stack",
        lstm="sequence_model.lstm",
        output="sequence_model.output",
        embedding="embedding",
        acoustic_first=False,
        five=STATES["five"],
    ),
}
_CONVOLUTIONS = {0: "1", 3: "2", 8: "3"}  # index in the nn.Sequential: our number
_NORMS = {1: "1", 4: "2", 9: "3"}
_NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_LSTM_LEAVES: dict[str, tuple[str, Transform]] = {
    "weight_ih": ("input_kernel", "transpose"),
    "weight_hh": ("recurrent_kernel", "transpose"),
    "bias_ih": ("bias", "same"),
    "bias_hh": ("recurrent_bias", "same"),
}
_SETS: dict[int, StateSet] = {5: "five", 4: "four", 3: "three", 2: "binary"}

IGNORED = {
    r".*\.num_batches_tracked": "counts training steps; the momentum of the norm is fixed",
    r"melspectrogram\..*": "the front-end's constants, which the preset computes",
}


def rules(layout: str, config: PianoARConfig) -> tuple[Rule, ...]:
    """The table from the names of a public code, "demo" or "paper", to ours."""
    names = _LAYOUTS[layout]
    stack, lstm, output = (_literal(n) for n in (names.stack, names.lstm, names.output))
    table = [
        Rule(rf"{_literal(names.embedding)}\.weight", "embedding"),
        Rule(rf"{output}\.weight", "out.kernel", "transpose"),
        Rule(rf"{output}\.bias", "out.bias"),
        Rule(
            rf"{stack}\.fc\.0\.weight",
            "stack.fc.kernel",
            "dense_after_flatten",
            config.conv_channels[-1],
        ),
        Rule(rf"{stack}\.fc\.0\.bias", "stack.fc.bias"),
    ]
    for index, number in _CONVOLUTIONS.items():
        conv = rf"{stack}\.cnn\.{index}"
        table.append(Rule(rf"{conv}\.weight", f"stack.conv{number}.kernel", "conv2d_oihw"))
        table.append(Rule(rf"{conv}\.bias", f"stack.conv{number}.bias"))
    for index, number in _NORMS.items():
        for leaf, name in _NORM_LEAVES.items():
            table.append(Rule(rf"{stack}\.cnn\.{index}\.{leaf}", f"stack.norm{number}.{name}"))
    for layer in range(config.lstm_layers):
        for leaf, (name, transform) in _LSTM_LEAVES.items():
            target = f"lstms.{layer}.forward.{name}"
            table.append(Rule(rf"{lstm}\.{leaf}_l{layer}", target, transform))
    return tuple(table)


def _literal(name: str) -> str:
    return name.replace(".", r"\.")


def _reordered(
    weights: Mapping[str, np.ndarray], layout: str, config: PianoARConfig
) -> dict[str, np.ndarray]:
    """The weights with states and inputs in our order."""
    names, found = _LAYOUTS[layout], dict(weights)
    theirs = names.five if config.states == "five" else STATES[config.states]
    order = [theirs.index(state) for state in STATES[config.states]]
    key = f"{names.embedding}.weight"
    found[key] = found[key][order]
    for leaf in ("weight", "bias"):
        key = f"{names.output}.{leaf}"
        if key in found:
            by_key = found[key].reshape(-1, len(order), *found[key].shape[1:])
            found[key] = by_key[:, order].reshape(found[key].shape)
    key = f"{names.lstm}.weight_ih_l0"
    if not names.acoustic_first and key in found:
        told = config.num_pitches * config.embedding
        found[key] = np.concatenate([found[key][:, told:], found[key][:, :told]], axis=1)
    return found


def from_state_dict(
    weights: Mapping[str, np.ndarray],
    layout: str = "paper",
    config: PianoARConfig | None = None,
) -> tuple[PianoAR, PianoARConfig]:
    """The model for a state dict; widths and the number of states are read from the shapes.

    `layout` is "demo" or "paper". Four states are taken for those without re-onset; give a `config`
    where they are the set `three_re`. Raises WeightsError when they do not hold that network.
    """
    names = _LAYOUTS[layout]
    asked = [
        f"{names.stack}.cnn.0.weight",
        f"{names.stack}.fc.0.weight",
        f"{names.lstm}.weight_hh_l0",
        f"{names.embedding}.weight",
        f"{names.output}.weight",
    ]
    if missing := [name for name in asked if name not in weights]:
        raise WeightsError(
            f"the weights have no entry {missing[0]}: they are not those of piano_ar.{layout} "
            f"({' and '.join(_LAYOUTS)} have different names). They begin with "
            f"{', '.join([*weights][:3])}."
        )
    if config is None:
        conv, dense, recurrent, embedding, output = (weights[name].shape for name in asked)
        layers = len([n for n in weights if n.startswith(f"{names.lstm}.weight_hh_l")])
        states = embedding[0]
        if states not in _SETS or output[0] % states:
            raise WeightsError(
                f"the weights know {states} states and have {output[0]} outputs; expected 2 to 5 "
                "states of every key."
            )
        config = replace(
            get_config(layout),
            conv_channels=(conv[0], conv[0], 2 * conv[0]),
            fc_units=dense[0],
            lstm_units=recurrent[1],
            lstm_layers=layers,
            embedding=embedding[1],
            states=_SETS[states],
            num_pitches=output[0] // states,
        )
    made = config
    graph, abstract = nnx.split(nnx.eval_shape(lambda: PianoAR(made, rngs=nnx.Rngs(0))))
    table = rules(layout, config)
    state = fill(_reordered(weights, layout, config), abstract, table, ignore=IGNORED)
    return nnx.merge(graph, state), config


def convert(path: Path, tag: str = "demo") -> tuple[PianoAR, PianoARConfig]:
    """The model in a public checkpoint: `demo` as github.com/jdasam/online_amt has it
    (model-180000.pt), `paper` as the training code writes it.

    Raises WeightsError when it cannot be read safely or does not hold that network.
    """
    if tag not in _LAYOUTS:
        raise WeightsError(
            f"piano_ar.{tag} has no foreign checkpoints; convert with --model piano_ar.demo or "
            "piano_ar.paper."
        )
    return from_state_dict(read_state_dict(path), tag)
