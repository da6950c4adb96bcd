"""Public weights for this network: the PyTorch port's, and Magenta's TensorFlow checkpoints."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, Transform
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.hub.tensorflow import read_bundle
from musicjax.models.onsets_frames.model import OnsetsFrames, OnsetsFramesConfig, get_config

# The PyTorch port (jongwook/onsets-and-frames) --------------------------------------------------

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
    return _filled(weights, config, rules(config), IGNORED)


# Magenta's TensorFlow 1 checkpoints ---------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """What a version of Magenta's code calls its layers."""

    convolutions: tuple[str, str, str]
    dense: str
    lstm: str  # {} stands for fw or bw
    forget_bias: float  # added by the cell itself, not stored


# In the commits that the two papers name: 541240ea (2019) and 9885adef (2018).
_NAMES = {
    "magenta": _Names(
        convolutions=("conv0", "conv1", "conv2"),
        dense="fc_end",
        lstm="cudnn_lstm/stack_bidirectional_rnn/cell_0/bidirectional_rnn/{}"
        "/cudnn_compatible_lstm_cell",
        forget_bias=0.0,
    ),
    "paper2018": _Names(
        convolutions=("conv1", "conv2", "conv3"),
        dense="fc5",
        lstm="bidirectional_rnn/{}/lstm_cell",
        forget_bias=1.0,
    ),
}
# Scope of a detector: the head that it is here, and the name of its last layer there.
_SCOPES = {
    "onsets": ("onset", "onset_probs"),
    "offsets": ("offset", "offset_probs"),
    "frame": ("activation", "activation_probs"),
    "velocity": ("velocity", "onset_velocities"),
}
_LSTMS = {"onsets": "onset.lstm", "offsets": "offset.lstm", "frame": "frame_lstm"}
_DIRECTIONS = {"fw": "forward", "bw": "backward"}

IGNORED_VARIABLES = {
    r".*/Adam(_1)?": "the optimiser's moments",
    r"(.*/)?(beta[12]_power|learning_rate)": "the optimiser's constants",
    r".*/opaque_kernel": "the LSTM once more, in the layout of cuDNN",
    r"global_step": "counts training steps",
}


def magenta_rules(names: _Names) -> tuple[Rule, ...]:
    """The table from Magenta's names to ours. Layouts are the same: channels last, (in, out).

    `_split_lstms` gives each LSTM kernel and bias a name of its own first.
    """
    table = []
    for scope, (head, last) in _SCOPES.items():
        for number, conv in enumerate(names.convolutions, start=1):
            norm = f"{head}.stack.norm{number}"
            table += [
                Rule(f"{scope}/{conv}/weights", f"{head}.stack.conv{number}.kernel"),
                Rule(f"{scope}/{conv}/BatchNorm/beta", f"{norm}.bias"),
                Rule(f"{scope}/{conv}/BatchNorm/moving_mean", f"{norm}.mean"),
                Rule(f"{scope}/{conv}/BatchNorm/moving_variance", f"{norm}.var"),
            ]
        table += _variable_rules(f"{scope}/{names.dense}", f"{head}.stack.fc")
        table += _variable_rules(f"{scope}/{last}", f"{head}.out")
    table += _variable_rules("frame/frame_probs", "frame_out")
    for scope, ours in _LSTMS.items():
        for short, direction in _DIRECTIONS.items():
            cell = f"{scope}/{names.lstm.format(short)}"
            table += [
                Rule(f"{cell}/{leaf}", f"{ours}.{direction}.{leaf}", "lstm_gates_ijfo")
                for leaf in ("input_kernel", "recurrent_kernel", "bias")
            ]
    return tuple(table)


def _variable_rules(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}/weights", f"{ours}.kernel"), Rule(f"{theirs}/biases", f"{ours}.bias")]


def _split_lstms(variables: Mapping[str, np.ndarray], names: _Names) -> dict[str, np.ndarray]:
    """The variables with each LSTM as input_kernel, recurrent_kernel and bias.

    Their kernel multiplies input and state side by side, (D + H, 4H), gates i, j, f, o. What the
    cell adds to the forget gate goes into the bias.
    """
    found = dict(variables)
    for scope in _LSTMS:
        for short in _DIRECTIONS:
            cell = f"{scope}/{names.lstm.format(short)}"
            kernel, bias = found.pop(f"{cell}/kernel", None), found.pop(f"{cell}/bias", None)
            if kernel is not None and kernel.ndim == 2:
                width = kernel.shape[0] - kernel.shape[1] // 4
                found[f"{cell}/input_kernel"] = kernel[:width]
                found[f"{cell}/recurrent_kernel"] = kernel[width:]
            if bias is not None and bias.ndim == 1:
                forget = np.repeat(
                    np.array([0, 0, names.forget_bias, 0], bias.dtype), len(bias) // 4
                )
                found[f"{cell}/bias"] = bias + forget
    return found


def from_variables(
    variables: Mapping[str, np.ndarray], tag: str, config: OnsetsFramesConfig | None = None
) -> tuple[OnsetsFrames, OnsetsFramesConfig]:
    """The model for the variables of a Magenta checkpoint; its widths are read from the shapes.

    `tag` is "magenta" for the code of 2019 (and later), "paper2018" for that of 2018.
    """
    names = _NAMES[tag]
    if config is None:
        asked = [f"onsets/{conv}/weights" for conv in names.convolutions]
        asked += [f"onsets/{names.dense}/weights", f"onsets/{names.lstm.format('fw')}/kernel"]
        if missing := [name for name in asked if name not in variables]:
            raise WeightsError(
                f"the checkpoint has no variable {missing[0]}: it is not one of Magenta's Onsets "
                f"and Frames as onsets_frames.{tag} is ({' and '.join(_NAMES)} have different "
                f"names). It begins with {', '.join([*variables][:3])}."
            )
        *channels, dense, lstm = (variables[name].shape[-1] for name in asked)
        config = replace(
            get_config(tag),
            conv_channels=(channels[0], channels[1], channels[2]),
            fc_units=dense,
            lstm_units=lstm // 4,
        )
    return _filled(_split_lstms(variables, names), config, magenta_rules(names), IGNORED_VARIABLES)


# Either ---------------------------------------------------------------------------------------


def _filled(
    weights: Mapping[str, np.ndarray],
    config: OnsetsFramesConfig,
    table: tuple[Rule, ...],
    ignore: Mapping[str, str],
) -> tuple[OnsetsFrames, OnsetsFramesConfig]:
    graph, abstract = nnx.split(nnx.eval_shape(lambda: OnsetsFrames(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(weights, abstract, table, ignore=ignore)), config


def convert(path: Path, tag: str = "port") -> tuple[OnsetsFrames, OnsetsFramesConfig]:
    """The model in a public checkpoint.

    `port`: a state dict of the port, or the published pickled module. `magenta`, `paper2018`: a
    TensorFlow checkpoint, by the common beginning of its files (`model.ckpt`) or its folder.
    Raises WeightsError when it cannot be read safely or does not hold that network.
    """
    if tag == "port":
        return from_state_dict(read_state_dict(path, records=RECORDS))
    if tag in _NAMES:
        return from_variables(read_bundle(path, leave=IGNORED_VARIABLES), tag)
    raise WeightsError(
        f"onsets_frames.{tag} has no foreign checkpoints; convert with --model "
        f"onsets_frames.port, or onsets_frames.{' or onsets_frames.'.join(_NAMES)}."
    )
