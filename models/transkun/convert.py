"""Weights of the authors' package transkun 2.0 for this network."""

import re
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.transkun.config import TranskunConfig, get_config
from musicjax.models.transkun.model import Transkun

_UPSAMPLE = "backbone.upConv1dSkip.weight"

IGNORED = {
    r"framewiseFeatureExtractor\.freq2mels": "the mel filterbank, which the preset computes",
    r"framewiseFeatureExtractor\.spectrogramExtractor\.win": "Hann's window, likewise",
}


def rules() -> tuple[Rule, ...]:
    """The table from the package's names to ours."""
    windows = r"framewiseFeatureExtractor\.spectrogramExtractor\.winGen"
    table = [
        Rule(rf"{windows}\.sigma", "windows.width"),
        Rule(rf"{windows}\.center", "windows.centre"),
        *_convolution(r"backbone\.inputConv", "convs.conv_in"),
        *_positions(r"backbone\.posEmbedBuilder", "convs.positions"),
        *_positions(r"backbone\.posEmbedBuilderAttnTF", "heard_positions"),
        *_positions(r"backbone\.posEmbedBuilderAttnTE", "symbol_positions"),
        Rule(re.escape(_UPSAMPLE), "upsample.kernel"),
        Rule(r"backbone\.upConv1dSkip\.bias", "upsample_bias"),
        *_dense(r"scorer\.map\.0", "scorer"),
    ]
    for number, index in enumerate((1, 5, 9, 13), 1):  # places in the package's nn.Sequential
        table += _convolution(rf"backbone\.downConv\.{index}", f"convs.conv{number}")
        norm = rf"backbone\.downConv\.{index + 1}"
        table.append(Rule(rf"{norm}\.weight", f"convs.norm{number}.scale"))
        table.append(Rule(rf"{norm}\.bias", f"convs.norm{number}.bias"))
    heads = (("velocityPredictor", "velocity_head"), ("refinedOFPredictor", "times_head"))
    for theirs, ours in heads:
        table += _dense(rf"{theirs}\.0", f"{ours}.hidden") + _dense(rf"{theirs}\.3", f"{ours}.out")
    for axis, name in (("F", "frequency"), ("T", "time")):
        layer = r"backbone\.encoderLayers\.(\d+)"
        attend, mlp = rf"{layer}\.mhaBlock{axis}", rf"{layer}\.fnnBlock{axis}"
        ours = rf"layers.\1.attend_{name}"
        for part, kind in (("q", "query"), ("k", "key"), ("v", "value")):
            table.append(Rule(rf"{attend}\.module\.{part}_proj_weight", f"{ours}.{kind}"))
        table += _dense(rf"{attend}\.module\.out_proj", ours)
        table.append(Rule(rf"{attend}\.scale", f"{ours}_scale"))
        ours = rf"layers.\1.mlp_{name}"
        table += _dense(rf"{mlp}\.module\.0", f"{ours}.hidden")
        table += _dense(rf"{mlp}\.module\.3", f"{ours}.out")
        table.append(Rule(rf"{mlp}\.scale", f"{ours}_scale"))
    return tuple(table)


def _dense(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.weight", f"{ours}.kernel", "transpose"),
        Rule(rf"{theirs}\.bias", f"{ours}.bias"),
    ]


def _convolution(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.weight", f"{ours}.kernel", "conv2d_oihw"),
        Rule(rf"{theirs}\.bias", f"{ours}.bias"),
    ]


def _positions(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(rf"{theirs}\.proj\.weight", f"{ours}.frequency", "transpose"),
        Rule(rf"{theirs}\.proj\.bias", f"{ours}.phase"),
        *_dense(rf"{theirs}\.mlp\.0", f"{ours}.hidden"),
        *_dense(rf"{theirs}\.mlp\.3", f"{ours}.out"),
    ]


def from_state_dict(
    weights: dict[str, np.ndarray], config: TranskunConfig | None = None
) -> tuple[Transkun, TranskunConfig]:
    """The model for a state dict of the package. Raises WeightsError when it does not fit."""
    config = config or get_config("v2")
    if _UPSAMPLE not in weights:
        raise WeightsError(
            f"the weights have no entry {_UPSAMPLE}: they are not those of Transkun V2. They begin "
            f"with {', '.join([*weights][:3])}."
        )
    upsample = weights[_UPSAMPLE]  # (in, out, frames) to (in, frames * out)
    dense = upsample.transpose(0, 2, 1).reshape(len(upsample), -1)
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Transkun(config, rngs=nnx.Rngs(0))))
    state = fill({**weights, _UPSAMPLE: dense}, abstract, rules(), ignore=IGNORED)
    return nnx.merge(graph, state), config


def convert(path: Path, tag: str = "v2") -> tuple[Transkun, TranskunConfig]:
    """The model in a checkpoint of the package (2.0.pt, or one that its trainer wrote).

    Raises WeightsError when the file cannot be read safely or does not hold that network.
    """
    if tag != "v2":
        raise WeightsError(
            f"transkun.{tag} has no foreign checkpoints; convert with --model transkun.v2."
        )
    return from_state_dict(read_state_dict(path))
