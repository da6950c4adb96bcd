"""Names that Hugging Face transformers gives to weights, as tables for the conversion engine.

T5 (1.0 and 1.1), BART, RoBERTa and BERT become `musicjax.nn.transformer.Transformer`. Weights are
a mapping of arrays by name, the description is the family's `config.json`; where they are read
from is no matter here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, convert
from musicjax.nn.forms import TransformerConfig, form
from musicjax.nn.transformer import Transformer
from musicjax.types import Policy


@dataclass(frozen=True)
class Layout:
    """One family: its config, its names, and the names left out with the reason why."""

    config: Callable[[Mapping[str, Any]], TransformerConfig]
    rules: tuple[Rule, ...]
    ignore: Mapping[str, str]


def _dense(source: str, target: str, *, bias: bool) -> list[Rule]:
    rules = [Rule(rf"{source}\.weight", f"{target}.kernel", "transpose")]
    return [*rules, Rule(rf"{source}\.bias", f"{target}.bias")] if bias else rules


def _layer_norm(source: str, target: str) -> list[Rule]:
    """TensorFlow called the two gamma and beta, and the oldest files still do."""
    return [
        Rule(rf"{source}\.(?:weight|gamma)", f"{target}.scale"),
        Rule(rf"{source}\.(?:bias|beta)", f"{target}.bias"),
    ]


# T5 -----------------------------------------------------------------------------------------


def _t5_config(json: Mapping[str, Any]) -> TransformerConfig:
    # Old files have no feed_forward_proj and no tie_word_embeddings: they are T5 1.0.
    projection = json.get("feed_forward_proj", "relu")
    activations = {"relu": "relu", "gelu_new": "gelu_tanh", "gelu": "gelu_tanh"}
    name = projection.removeprefix("gated-")
    if name not in activations:
        raise WeightsError(
            f"feed_forward_proj is {projection!r}; this reader knows relu and gelu, gated or not."
        )
    tied = json.get("tie_word_embeddings", True)
    # transformers 5 writes every config as tied, and keeps apart whether the head is scaled.
    scaled = json.get("scale_decoder_outputs", tied)
    return form(
        "t5",
        vocab_size=json["vocab_size"],
        d_model=json["d_model"],
        num_heads=json["num_heads"],
        head_dim=json["d_kv"],
        mlp_dim=json["d_ff"],
        num_encoder_layers=json["num_layers"],
        num_decoder_layers=json.get("num_decoder_layers") or json["num_layers"],
        relative_buckets=json.get("relative_attention_num_buckets", 32),
        relative_distance=json.get("relative_attention_max_distance", 128),
        activation=activations[name],
        gated=projection != name,
        norm_epsilon=json.get("layer_norm_epsilon", 1e-6),
        tied_head=tied,
        logit_scale=json["d_model"] ** -0.5 if scaled else 1.0,
        dropout=json.get("dropout_rate", 0.1),
        pad_id=json.get("pad_token_id", 0),
        eos_id=json.get("eos_token_id", 1),
        start_id=json.get("decoder_start_token_id", json.get("pad_token_id", 0)),
    )


def _t5_rules() -> tuple[Rule, ...]:
    side = r"(encoder|decoder)\.block\.(\d+)\.layer"
    layer = r"\1.layers.\2"
    heads = {"q": "query", "k": "key", "v": "value", "o": "out"}
    rules = [
        Rule(r"shared\.weight", "token_embedder.embedding"),
        Rule(r"lm_head\.weight", "head", "transpose"),
        Rule(r"(encoder|decoder)\.final_layer_norm\.weight", r"\1.norm.scale"),
        Rule(
            r"(encoder|decoder)\.block\.0\.layer\.0\.SelfAttention\.relative_attention_bias\.weight",
            r"\1.relative_bias.embedding",
            "transpose",
        ),
        Rule(rf"{side}\.0\.layer_norm\.weight", f"{layer}.attention_norm.scale"),
        Rule(
            r"decoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight",
            r"decoder.layers.\1.cross_attention_norm.scale",
        ),
        Rule(r"(encoder)\.block\.(\d+)\.layer\.1\.layer_norm\.weight", f"{layer}.mlp_norm.scale"),
        Rule(r"(decoder)\.block\.(\d+)\.layer\.2\.layer_norm\.weight", f"{layer}.mlp_norm.scale"),
    ]
    for source, target in heads.items():
        rules += _dense(
            rf"{side}\.0\.SelfAttention\.{source}", f"{layer}.attention.{target}", bias=False
        )
        rules += _dense(
            rf"{side}\.1\.EncDecAttention\.{source}",
            f"{layer}.cross_attention.{target}",
            bias=False,
        )
    return (
        *rules,
        *_dense(
            rf"{side}\.[12]\.DenseReluDense\.(wi|wi_0|wi_1|wo)", rf"{layer}.mlp.\3", bias=False
        ),
    )


_T5_TWICE = {
    r"(encoder|decoder)\.embed_tokens\.weight": "the same as shared.weight",
    r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight": (
        "left over from the first release; no model reads it"
    ),
}


# BART ---------------------------------------------------------------------------------------


def _alike(json: Mapping[str, Any], name: str) -> int:
    """A size that the encoder and the decoder must share."""
    sizes = json[f"encoder_{name}"], json[f"decoder_{name}"]
    if sizes[0] != sizes[1]:
        raise WeightsError(
            f"encoder_{name} is {sizes[0]} and decoder_{name} is {sizes[1]}; this Transformer has "
            "the same on both sides."
        )
    return sizes[0]


def _activation(json: Mapping[str, Any], field: str) -> str:
    names = {"gelu": "gelu", "gelu_new": "gelu_tanh", "relu": "relu"}
    if json[field] not in names:
        raise WeightsError(f"{field} is {json[field]!r}; this reader knows {', '.join(names)}.")
    return names[json[field]]


def _bart_config(json: Mapping[str, Any]) -> TransformerConfig:
    if json.get("normalize_before") or not json.get("normalize_embedding", True):
        raise WeightsError(
            "normalize_before or normalize_embedding is not BART's own (mBART?); only post-norm "
            "BART with a norm on its embeddings is read."
        )
    heads = _alike(json, "attention_heads")
    return form(
        "bart",
        vocab_size=json["vocab_size"],
        d_model=json["d_model"],
        num_heads=heads,
        head_dim=json["d_model"] // heads,
        mlp_dim=_alike(json, "ffn_dim"),
        num_encoder_layers=json["encoder_layers"],
        num_decoder_layers=json["decoder_layers"],
        max_positions=json["max_position_embeddings"],
        embedding_scale=json["d_model"] ** 0.5 if json.get("scale_embedding") else 1.0,
        activation=_activation(json, "activation_function"),
        dropout=json.get("dropout", 0.1),
        init_std=json.get("init_std", 0.02),
        pad_id=json.get("pad_token_id", 1),
        bos_id=json.get("bos_token_id", 0),
        eos_id=json.get("eos_token_id", 2),
        start_id=json.get("decoder_start_token_id", 2),
    )


_BIAS = "final_logits_bias"


def _bart_rules() -> tuple[Rule, ...]:
    side, layer = r"(?:model\.)?(encoder|decoder)\.layers\.(\d+)", r"\1.layers.\2"
    rules = [
        Rule(r"(?:model\.)?shared\.weight", "token_embedder.embedding"),
        Rule(_BIAS, "logit_bias"),
        Rule(
            r"(?:model\.)?(encoder|decoder)\.embed_positions\.weight",
            r"\1.position_embedder.embedding",
        ),
        *_layer_norm(r"(?:model\.)?(encoder|decoder)\.layernorm_embedding", r"\1.embedding_norm"),
        *_layer_norm(rf"{side}\.self_attn_layer_norm", f"{layer}.attention_norm"),
        *_layer_norm(rf"{side}\.encoder_attn_layer_norm", f"{layer}.cross_attention_norm"),
        *_layer_norm(rf"{side}\.final_layer_norm", f"{layer}.mlp_norm"),
        *_dense(rf"{side}\.fc1", f"{layer}.mlp.wi", bias=True),
        *_dense(rf"{side}\.fc2", f"{layer}.mlp.wo", bias=True),
    ]
    heads = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
    for source, target in heads.items():
        rules += _dense(rf"{side}\.self_attn\.{source}", f"{layer}.attention.{target}", bias=True)
        rules += _dense(
            rf"{side}\.encoder_attn\.{source}", f"{layer}.cross_attention.{target}", bias=True
        )
    return tuple(rules)


_BART_TWICE = {
    r"(?:model\.)?(encoder|decoder)\.embed_tokens\.weight": "the same as shared.weight",
    r"lm_head\.weight": "the same as shared.weight",
}


# BERT and RoBERTa ---------------------------------------------------------------------------


def _bert_config(json: Mapping[str, Any]) -> TransformerConfig:
    name = json["model_type"]
    rows = json["max_position_embeddings"]
    return form(
        name,
        vocab_size=json["vocab_size"],
        d_model=json["hidden_size"],
        num_heads=json["num_attention_heads"],
        head_dim=json["hidden_size"] // json["num_attention_heads"],
        mlp_dim=json["intermediate_size"],
        num_encoder_layers=json["num_hidden_layers"],
        token_types=json["type_vocab_size"],
        # RoBERTa counts from the row after its padding id.
        max_positions=rows if name == "bert" else rows - json.get("pad_token_id", 1) - 1,
        position_offset=0 if name == "bert" else json.get("pad_token_id", 1) + 1,
        norm_epsilon=json.get("layer_norm_eps", 1e-12),
        activation=_activation(json, "hidden_act"),
        dropout=json.get("hidden_dropout_prob", 0.1),
        pad_id=json.get("pad_token_id", 0 if name == "bert" else 1),
    )


def _bert_rules() -> tuple[Rule, ...]:
    top, layer = r"(?:bert\.|roberta\.)?", r"encoder.layers.\1"
    block = rf"{top}encoder\.layer\.(\d+)"
    return (
        Rule(rf"{top}embeddings\.word_embeddings\.weight", "token_embedder.embedding"),
        Rule(
            rf"{top}embeddings\.position_embeddings\.weight", "encoder.position_embedder.embedding"
        ),
        Rule(rf"{top}embeddings\.token_type_embeddings\.weight", "encoder.type_embedder.embedding"),
        *_layer_norm(rf"{top}embeddings\.LayerNorm", "encoder.embedding_norm"),
        *_dense(
            rf"{block}\.attention\.self\.(query|key|value)", rf"{layer}.attention.\2", bias=True
        ),
        *_dense(rf"{block}\.attention\.output\.dense", f"{layer}.attention.out", bias=True),
        *_layer_norm(rf"{block}\.attention\.output\.LayerNorm", f"{layer}.attention_norm"),
        *_dense(rf"{block}\.intermediate\.dense", f"{layer}.mlp.wi", bias=True),
        *_dense(rf"{block}\.output\.dense", f"{layer}.mlp.wo", bias=True),
        *_layer_norm(rf"{block}\.output\.LayerNorm", f"{layer}.mlp_norm"),
    )


_BERT_BESIDE = {
    r"(?:bert\.|roberta\.)?pooler\..*": "a layer for the task it was trained on",
    r"(?:cls|lm_head|classifier|qa_outputs)\..*": "a layer for the task it was trained on",
    r"(?:bert\.|roberta\.)?embeddings\.(position_ids|token_type_ids)": "a count, not a weight",
}

# By the model_type of config.json.
LAYOUTS: dict[str, Layout] = {
    "t5": Layout(_t5_config, _t5_rules(), _T5_TWICE),
    "bart": Layout(_bart_config, _bart_rules(), _BART_TWICE),
    "roberta": Layout(_bert_config, _bert_rules(), _BERT_BESIDE),
    "bert": Layout(_bert_config, _bert_rules(), _BERT_BESIDE),
}


def transformer_from(
    weights: Mapping[str, np.ndarray],
    description: Mapping[str, Any],
    *,
    policy: Policy = Policy(),  # noqa: B008 - frozen
) -> Transformer:
    """A Transformer with weights named as in transformers and its `config.json` as a mapping.

    A T5 head is free where the config does not tie it, or where the weights hold another one than
    the token table. Raises WeightsError for a family that is not in `LAYOUTS`, and with
    everything at once that does not fit.
    """
    kind = description.get("model_type")
    if kind not in LAYOUTS:
        raise WeightsError(
            f"model_type is {kind!r}; the Transformer is read from {', '.join(LAYOUTS)}."
        )
    layout = LAYOUTS[kind]
    config = replace(layout.config(description), policy=policy)
    ignore = dict(layout.ignore)
    if kind == "t5" and config.tied_head and "lm_head.weight" in weights:
        same = np.array_equal(weights["lm_head.weight"], weights.get("shared.weight", ()))
        config = replace(config, tied_head=same)
        ignore |= {r"lm_head\.weight": "the same as shared.weight"} if same else {}
    if kind == "bart":  # a row; the bare model has none
        config = replace(config, logit_bias=_BIAS in weights)
        weights = {n: a.reshape(-1) if n == _BIAS else a for n, a in weights.items()}
    graph, state = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, convert(weights, state, layout.rules, ignore=ignore))
