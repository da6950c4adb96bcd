"""Names that T5X gives to the parameters of T5 and of MT3, beside those of our Transformer.

The kernels are the same on both sides, (in, out) with joined heads, so that parameters and the
slots of an optimizer go over unchanged. Names are those of t5x/examples/t5/network.py and
mt3/network.py, with layers that are not scanned.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule
from musicjax.hub.t5x import T5XCheckpoint, fill
from musicjax.nn.forms import TransformerConfig
from musicjax.nn.transformer import Transformer

# Sublayers of one layer, T5X's name to ours: attentions, and the norms before all sublayers.
_ATTENTIONS = {
    "encoder": {"attention": "attention"},
    "decoder": {"self_attention": "attention", "encoder_decoder_attention": "cross_attention"},
}
_NORMS = {
    "encoder": {"pre_attention": "attention", "pre_mlp": "mlp"},
    "decoder": {
        "pre_self_attention": "attention",
        "pre_cross_attention": "cross_attention",
        "pre_mlp": "mlp",
    },
}


def t5x_names(config: TransformerConfig) -> dict[str, str]:
    """Every parameter of a Transformer of this form: T5X's path below `target` to ours.

    >>> t5x_names(config)["encoder/layers_0/pre_attention_layer_norm/scale"]
    'encoder.layers.0.attention_norm.scale'

    Raises WeightsError for a form that T5X's T5 does not have: BART's, BERT's, a decoder alone.
    """
    theirs = config.norm == "rms" and config.norm_position == "before" and not config.bias
    if not theirs or config.positions == "learned" or not config.num_encoder_layers:
        raise WeightsError(
            "T5X has names for Transformers of T5's form only, with an encoder; this one has "
            f"{config.positions} positions, a {config.norm} norm {config.norm_position} each "
            f"sublayer and {config.num_encoder_layers} encoder layers."
        )
    names = {}
    if config.input_dim is None:  # T5: one table for both sides
        names["token_embedder/embedding"] = "token_embedder.embedding"
    else:  # MT3: the encoder reads frames
        names["encoder/continuous_inputs_projection/kernel"] = "input_projection.kernel"
        names["decoder/token_embedder/embedding"] = "token_embedder.embedding"
    names |= _side(config, "encoder", config.num_encoder_layers)
    if config.num_decoder_layers:
        names |= _side(config, "decoder", config.num_decoder_layers)
        if not config.tied_head:
            names["decoder/logits_dense/kernel"] = "head"
    return names


def _side(config: TransformerConfig, side: str, layers: int) -> dict[str, str]:
    names = {f"{side}/{side}_norm/scale": f"{side}.norm.scale"}
    if config.positions == "relative":
        names[f"{side}/relpos_bias/rel_embedding"] = f"{side}.relative_bias.embedding"
    for i in range(layers):
        there, here = f"{side}/layers_{i}", f"{side}.layers.{i}"
        for theirs, ours in _ATTENTIONS[side].items():
            for part in ("query", "key", "value", "out"):
                names[f"{there}/{theirs}/{part}/kernel"] = f"{here}.{ours}.{part}.kernel"
        for part in ("wi_0", "wi_1", "wo") if config.gated else ("wi", "wo"):
            names[f"{there}/mlp/{part}/kernel"] = f"{here}.mlp.{part}.kernel"
        for theirs, ours in _NORMS[side].items():
            names[f"{there}/{theirs}_layer_norm/scale"] = f"{here}.{ours}_norm.scale"
    return names


def t5x_rules(config: TransformerConfig, *, prefix: str = "") -> tuple[Rule, ...]:
    """`t5x_names` as rules for the conversion engine.

    prefix: what stands before our names when the Transformer is a part of a model
    ("transformer.").
    """
    names = t5x_names(config)
    return tuple(Rule(re.escape(theirs), prefix + ours) for theirs, ours in names.items())


def transformer_from_t5x(
    checkpoint: T5XCheckpoint,
    config: TransformerConfig,
    *,
    vocabularies: Mapping[int, str] | None = None,
) -> Transformer:
    """A Transformer of this form with the parameters of a checkpoint; its optimizer is left out.

    vocabularies: what the vocabularies of published models are called, by their rows in the token
    table; a checkpoint of another one than the config's is then told by name.
    Raises one WeightsError with everything that is damaged or does not fit.
    """
    check_vocabulary(checkpoint, config, vocabularies or {})
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(checkpoint, state, t5x_rules(config)))


def check_vocabulary(
    checkpoint: T5XCheckpoint, config: TransformerConfig, vocabularies: Mapping[int, str]
) -> None:
    """Raise WeightsError when a checkpoint has another of these vocabularies than the config."""
    ours = "token_embedder.embedding"
    name = next(theirs for theirs, mine in t5x_names(config).items() if mine == ours)
    rows = getattr(checkpoint.part("target").get(name), "shape", (0,))[0]
    if rows in vocabularies and rows != config.vocab_size:
        wanted = vocabularies.get(config.vocab_size, f"one of {config.vocab_size} rows")
        raise WeightsError(
            f"the checkpoint {checkpoint.folder} has {rows} token rows, the vocabulary of "
            f"{vocabularies[rows]}; the model that it should become has {wanted}. Convert it to "
            "the model that it is of."
        )


def t5x_target(
    model: nnx.Module | nnx.State, config: TransformerConfig, *, prefix: str = ""
) -> dict[str, np.ndarray]:
    """The parameters of a Transformer by T5X's paths, for the `target` of `write_t5x`.

    config, prefix: as for `t5x_rules`. Dtypes are kept. Raises WeightsError when the model is not
    of that form.
    """
    state = model if isinstance(model, nnx.State) else nnx.state(model, nnx.Param)
    ours = {
        ".".join(map(str, keys)): variable.get_value()
        for keys, variable in nnx.to_flat_state(state)
        if isinstance(variable, nnx.Param)
    }
    return by_t5x_names(ours, config, prefix=prefix)


def by_t5x_names(
    ours: Mapping[str, Any], config: TransformerConfig, *, prefix: str = ""
) -> dict[str, Any]:
    """Anything that is kept for each parameter, from our dotted names to T5X's paths.

    jax arrays become NumPy's. Raises WeightsError with the names that one side has alone.
    """
    names = {prefix + mine: theirs for theirs, mine in t5x_names(config).items()}
    faults = [f"{name} has no name in T5X" for name in ours.keys() - names.keys()]
    faults += [f"{name} is missing" for name in names.keys() - ours.keys()]
    if faults:
        raise WeightsError(
            f"the model is not of T5X's form in {len(faults)} places: {'; '.join(sorted(faults))}."
        )
    found = {theirs: ours[mine] for mine, theirs in names.items()}
    return {k: np.asarray(v) if isinstance(v, jax.Array) else v for k, v in found.items()}
