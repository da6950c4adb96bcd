"""Weights of the authors' published checkpoint for these two networks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, Transform
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.kong2021.model import Kong2021, Kong2021Config, get_config

# The checkpoint is {"model": {"note_model": …, "pedal_model": …}}, beside counters.
ENTRY = "model"
_HEADS = {
    "note_model.frame_model": "frame",
    "note_model.reg_onset_model": "onset",
    "note_model.reg_offset_model": "offset",
    "note_model.velocity_model": "velocity",
    "pedal_model.reg_pedal_onset_model": "pedal_onset",
    "pedal_model.reg_pedal_offset_model": "pedal_offset",
    "pedal_model.reg_pedal_frame_model": "pedal_frame",
}
_NORM_LEAVES = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
_GRU_LEAVES: dict[str, tuple[str, Transform]] = {
    "weight_ih": ("input_kernel", "transpose"),
    "weight_hh": ("recurrent_kernel", "transpose"),
    "bias_ih": ("bias", "same"),
    "bias_hh": ("recurrent_bias", "same"),
}

IGNORED = {
    r".*\.num_batches_tracked": "counts training steps; the momentum of the norm is fixed",
    r".*\.(spectrogram|logmel)_extractor\..*": "the front-end's constants, made by the preset",
}


def rules(config: Kong2021Config) -> tuple[Rule, ...]:
    """The table from the authors' names to ours."""
    table = _norm_rules(r"note_model\.bn0", "norm")
    table += _norm_rules(r"pedal_model\.bn0", "pedal_norm")
    for theirs, ours in _HEADS.items():
        head = theirs.replace(".", r"\.")
        for block in (1, 2, 3, 4):
            for layer in (1, 2):
                source, target = rf"{head}\.conv_block{block}", f"{ours}.block{block}"
                conv = Rule(rf"{source}\.conv{layer}\.weight", f"{target}.conv{layer}.kernel",
                            "conv2d_oihw")  # fmt: skip
                table += [conv, *_norm_rules(rf"{source}\.bn{layer}", f"{target}.norm{layer}")]
        channels = config.conv_channels[-1]
        table.append(
            Rule(rf"{head}\.fc5\.weight", f"{ours}.fc.kernel", "dense_after_flatten", channels)
        )
        table += _norm_rules(rf"{head}\.bn5", f"{ours}.fc_norm")
        table += _gru_rules(rf"{head}\.gru", 0, f"{ours}.gru1")
        table += _gru_rules(rf"{head}\.gru", 1, f"{ours}.gru2")
        table += _linear_rules(rf"{head}\.fc", f"{ours}.out")
    for name in ("onset", "frame"):
        theirs = rf"note_model\.{'reg_onset' if name == 'onset' else name}"
        table += _gru_rules(rf"{theirs}_gru", 0, f"{name}_gru")
        table += _linear_rules(rf"{theirs}_fc", f"{name}_out")
    return tuple(table)


def _norm_rules(theirs: str, ours: str) -> list[Rule]:
    return [Rule(rf"{theirs}\.{leaf}", f"{ours}.{name}") for leaf, name in _NORM_LEAVES.items()]


def _linear_rules(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.weight", f"{ours}.kernel", "transpose"),
        Rule(rf"{theirs}\.bias", f"{ours}.bias"),
    ]


def _gru_rules(theirs: str, layer: int, ours: str) -> list[Rule]:
    """Gates are r, z, n on both sides, and the two biases stay two."""
    return [
        Rule(rf"{theirs}\.{leaf}_l{layer}{suffix}", f"{ours}.{direction}.{name}", transform)
        for suffix, direction in (("", "forward"), ("_reverse", "backward"))
        for leaf, (name, transform) in _GRU_LEAVES.items()
    ]


def from_state_dict(
    weights: dict[str, np.ndarray], config: Kong2021Config | None = None
) -> tuple[Kong2021, Kong2021Config]:
    """The model for the authors' state dicts, note and pedal; widths are read from the shapes."""
    if config is None:
        first = "note_model.frame_model"
        convs = [f"{first}.conv_block{block}.conv1.weight" for block in (1, 2, 3, 4)]
        needed = (*convs, f"{first}.fc5.weight", f"{first}.gru.weight_hh_l0")
        missing = [name for name in needed if name not in weights]
        if missing:
            raise WeightsError(
                f"the weights have no entry {missing[0]}: they are not the note and pedal model of "
                f"Kong et al. They begin with {', '.join([*weights][:3])}."
            )
        sizes = {
            "conv_channels": tuple(weights[name].shape[0] for name in convs),
            "fc_units": weights[f"{first}.fc5.weight"].shape[0],
            "gru_units": weights[f"{first}.gru.weight_hh_l0"].shape[1],
        }
        config = replace(get_config("maestro"), **sizes)
    skeleton, abstract = nnx.split(nnx.eval_shape(lambda: Kong2021(config, rngs=nnx.Rngs(0))))
    state = fill(weights, abstract, rules(config), ignore=IGNORED)
    return nnx.merge(skeleton, state), config


def convert(path: Path, tag: str = "maestro") -> tuple[Kong2021, Kong2021Config]:
    """The model in the published checkpoint (`CRNN_note_F1=0.9677_pedal_F1=0.9186.pth`).

    Raises WeightsError when the file cannot be read safely or does not hold these networks.
    """
    return from_state_dict(read_state_dict(path, ENTRY))
