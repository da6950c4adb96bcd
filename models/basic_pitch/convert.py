"""The authors' published weights, from the ONNX file of their package, for this network.

The file holds the network as it runs: the batch normalisations after the first convolutions of
contours and onsets are folded into kernel and bias, and that of the spectrogram is one factor and
one summand. Filters have unit norm before folding, so that their norm tells the factor.
"""

import re
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule
from musicjax.hub.convert import convert as fill
from musicjax.hub.onnx import OnnxGraph, read_onnx
from musicjax.models.basic_pitch.model import BasicPitch, BasicPitchConfig, get_config

# How the name of the convolution begins in the file, and which one it is here.
_LAYERS = {
    "model_1/re_lu_1/Relu": "contour_conv",
    "model_1/contours-reduced/BiasAdd": "contour_out",
    "model_1/re_lu_2/Relu": "note_conv",
    "model_1/conv2d_3/BiasAdd": "note_out",
    "model_1/re_lu_3/Relu": "onset_conv",
    "model_1/conv2d_5/BiasAdd": "onset_out",
}
_FOLDED = {"contour_conv": "contour_norm", "onset_conv": "onset_norm"}
_SPECTROGRAM_NORM = "model_1/batch_normalization/FusedBatchNormV3"

RULES = (
    Rule(r"(\w+_(?:conv|out))\.weight", r"\1.kernel", "conv2d_oihw"),
    Rule(r"(\w+_(?:conv|out))\.bias", r"\1.bias"),
    Rule(r"((?:\w+_)?norm)\.(scale|bias|mean|var)", r"\1.\2"),
)


def from_onnx(
    graph: OnnxGraph, config: BasicPitchConfig | None = None
) -> tuple[BasicPitch, BasicPitchConfig]:
    """The model in the authors' ONNX graph. Raises WeightsError when it holds another network."""
    config = config or get_config("icassp2022")
    weights: dict[str, np.ndarray] = {}
    for begin, layer in _LAYERS.items():
        weight, bias = _constants(graph, begin, "Conv")
        if layer in _FOLDED:
            norm = np.sqrt((weight.astype(np.float64) ** 2).sum(axis=(1, 2, 3)))
            weights[f"{layer}.weight"] = weight / norm[:, None, None, None]
            weights.update(_running_norm(_FOLDED[layer], norm, bias, config))
        else:
            weights[f"{layer}.weight"], weights[f"{layer}.bias"] = weight, bias
    (factor,) = _constants(graph, _SPECTROGRAM_NORM, "Mul")
    (summand,) = _constants(graph, _SPECTROGRAM_NORM, "Add")
    weights.update(_running_norm("norm", factor.reshape(-1), summand.reshape(-1), config))
    skeleton, abstract = nnx.split(nnx.eval_shape(lambda: BasicPitch(config, rngs=nnx.Rngs(0))))
    return nnx.merge(skeleton, fill(weights, abstract, RULES)), config


def _running_norm(
    name: str, factor: np.ndarray, summand: np.ndarray, config: BasicPitchConfig
) -> dict[str, np.ndarray]:
    """A batch normalisation that multiplies by `factor` and adds `summand` when it runs."""
    return {
        f"{name}.scale": factor,
        f"{name}.bias": summand,
        f"{name}.mean": np.zeros_like(factor),
        f"{name}.var": np.full_like(factor, 1 - config.norm_epsilon),
    }


def _constants(graph: OnnxGraph, begin: str, kind: str) -> list[np.ndarray]:
    """The stored tensors that go into the one node of a kind whose name begins so."""
    nodes = [n for n in graph.nodes if n.kind == kind and n.name.startswith(begin)]
    if len(nodes) != 1:
        raise WeightsError(
            f"the file has {len(nodes)} {kind} nodes whose names begin with {begin!r} where Basic "
            "Pitch has one; give the nmp.onnx of basic-pitch 0.3 or 0.4."
        )
    return [graph.tensors[name] for name in nodes[0].inputs if name in graph.tensors]


def convert(path: Path, tag: str = "icassp2022") -> tuple[BasicPitch, BasicPitchConfig]:
    """The model in the authors' `nmp.onnx`.

    Raises WeightsError when the file cannot be read or does not hold that network.
    """
    if form := _other_form(path):
        raise WeightsError(
            f"{path} is {form}, another of the forms that the authors publish; the same weights "
            "are read from nmp.onnx, which lies beside it in their package: give that file."
        )
    return from_onnx(read_onnx(path))


def _other_form(path: Path) -> str:
    """What a published file or folder is that is not ONNX: a phrase; empty where it may be ONNX."""
    if path.is_dir():
        return "a folder of CoreML" if path.suffix == ".mlpackage" else "a folder"
    if path.name == "saved_model.pb":
        return "the graph of a TensorFlow SavedModel"
    in_parts = path.suffix == ".index" or re.search(r"\.data-\d+-of-\d+$", path.name)
    if in_parts or path.with_name(f"{path.name}.index").is_file():
        return "a part of a TensorFlow checkpoint"
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError:  # the reader says what is wrong
        return ""
    return "a TensorFlow Lite file" if head[4:] == b"TFL3" else ""
