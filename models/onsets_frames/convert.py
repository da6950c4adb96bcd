"""Weights of the public PyTorch port (jongwook/onsets-and-frames) for this network."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, Transform
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.onsets_frames.model import OnsetsFrames, OnsetsFramesConfig, get_config

# The published file is a pickled module: these classes are read as data, none is imported.
RECORDS = (
    "onsets_and_frames.",
    "torch.nn.modules.",
    "torch.nn.backends.",  # modules pickled before torch 1.3 carry these two
    "torch.backends.cudnn.rnn.",
)

# Stack names of the port, and the head that each one is here.
_HEADS = {
    "onset_stack": "onset",
    "offset_stack": "offset",
    "frame_stack": "activation",
    "velocity_stack": "velocity",
}
_CONVOLUTIONS = {0: "1", 3: "2", 8: "3"}  # index in the port's nn.Sequential: our number
_NORMS = {1: "1", 4: "2", 9: "3"}
_NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_LSTM_LEAVES: dict[str, tuple[str, Transform]] = {
    "weight_ih": ("input_kernel", "transpose"),
    "weight_hh": ("recurrent_kernel", "transpose"),
    "bias_ih": ("bias", "same"),
    "bias_hh": ("recurrent_bias", "same"),
}

IGNORED = {
    r".*\.num_batches_tracked": "counts training steps; the momentum of the norm is fixed",
    r"melspectrogram\..*": "the front-end's constants, which the preset computes",
}


def rules(config: OnsetsFramesConfig) -> tuple[Rule, ...]:
    """The table from the port's names to ours."""
    table = []
    for theirs, ours in _HEADS.items():
        stack = rf"{theirs}\.0"
        for index, number in _CONVOLUTIONS.items():
            conv = rf"{stack}\.cnn\.{index}"
            table.append(
                Rule(rf"{conv}\.weight", f"{ours}.stack.conv{number}.kernel", "conv2d_oihw")
            )
            table.append(Rule(rf"{conv}\.bias", f"{ours}.stack.conv{number}.bias"))
        for index, number in _NORMS.items():
            for leaf, name in _NORM_LEAVES.items():
                target = f"{ours}.stack.norm{number}.{name}"
                table.append(Rule(rf"{stack}\.cnn\.{index}\.{leaf}", target))
        channels = config.conv_channels[-1]
        fc = rf"{stack}\.fc\.0"
        table.append(
            Rule(rf"{fc}\.weight", f"{ours}.stack.fc.kernel", "dense_after_flatten", channels)
        )
        table.append(Rule(rf"{fc}\.bias", f"{ours}.stack.fc.bias"))
        recurrent = ours in ("onset", "offset")
        if recurrent:
            table += _lstm_rules(rf"{theirs}\.1\.rnn", f"{ours}.lstm")
        table += _linear_rules(rf"{theirs}\.{2 if recurrent else 1}", f"{ours}.out")
    table += _lstm_rules(r"combined_stack\.0\.rnn", "frame_lstm")
    table += _linear_rules(r"combined_stack\.1", "frame_out")
    return tuple(table)


def _linear_rules(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.weight", f"{ours}.kernel", "transpose"),
        Rule(rf"{theirs}\.bias", f"{ours}.bias"),
    ]


def _lstm_rules(theirs: str, ours: str) -> list[Rule]:
    """Gates are i, f, g, o on both sides; the two biases stay two."""
    return [
        Rule(rf"{theirs}\.{leaf}_l0{suffix}", f"{ours}.{direction}.{name}", transform)
        for suffix, direction in (("", "forward"), ("_reverse", "backward"))
        for leaf, (name, transform) in _LSTM_LEAVES.items()
    ]


def from_state_dict(
    weights: dict[str, np.ndarray], config: OnsetsFramesConfig | None = None
) -> tuple[OnsetsFrames, OnsetsFramesConfig]:
    """The model for a state dict of the port; its complexity is read from the shapes."""
    if config is None:
        first = weights.get("onset_stack.0.cnn.0.weight")
        if first is None:
            raise WeightsError(
                "the weights have no entry onset_stack.0.cnn.0.weight: they are not those of the "
                f"PyTorch port of Onsets and Frames. They begin with {', '.join([*weights][:3])}."
            )
        c = first.shape[0]
        sizes = {"conv_channels": (c, c, 2 * c), "fc_units": 16 * c, "lstm_units": 8 * c}
        config = replace(get_config("port"), **sizes)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: OnsetsFrames(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(weights, abstract, rules(config), ignore=IGNORED)), config


def convert(path: Path, tag: str = "port") -> tuple[OnsetsFrames, OnsetsFramesConfig]:
    """The model in a checkpoint of the port: its state dict, or the published pickled module.

    Raises WeightsError when the file cannot be read safely or does not hold that network.
    """
    if tag != "port":
        raise WeightsError(
            f"onsets_frames.{tag} has no foreign checkpoints; convert with --model "
            "onsets_frames.port."
        )
    return from_state_dict(read_state_dict(path, records=RECORDS))
