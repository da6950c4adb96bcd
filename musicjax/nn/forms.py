"""The forms in which the one Transformer was published, as one config."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from musicjax.errors import ConfigError
from musicjax.types import Policy


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that distinguishes one form from another. Hashable, static.

    The defaults are T5 1.1 at the size of MT3.
    """

    vocab_size: int  # rows of the token table, padding rows included; 0: no tokens
    d_model: int = 512
    num_heads: int = 6
    head_dim: int = 64  # num_heads * head_dim need not be d_model
    mlp_dim: int = 1024
    num_encoder_layers: int = 8  # 0: decoder only, without cross-attention
    num_decoder_layers: int = 8  # 0: encoder only
    # Inputs. Tokens, or (B, S, F) frames: projected from `input_dim` without a bias, or with None
    # taken as they are, F = d_model.
    input_dim: int | None = None
    token_types: int = 0  # rows of a second table added to the encoder's tokens (BERT)
    embedding_scale: float = 1.0  # factor on token embeddings
    embedding_norm: bool = False  # a norm after all embeddings are added
    positions: Literal["relative", "sinusoid", "learned"] = "relative"
    max_positions: int = 1024  # how many positions are learned
    position_offset: int = 0  # rows of the learned table before position 0
    positions_skip_padding: bool = False  # padding takes row offset - 1 and is not counted
    relative_buckets: int = 32
    relative_distance: int = 128
    # Layers.
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["before", "after"] = "before"  # of sublayers; "after": of the sum
    norm_epsilon: float = 1e-6
    activation: Literal["relu", "gelu", "gelu_tanh"] = "gelu_tanh"
    gated: bool = True  # activation(x wi_0) * (x wi_1), else activation(x wi)
    bias: bool = False  # in every dense layer but the head
    scaled_attention: bool = False  # 1 / sqrt(head_dim) on attention logits
    # Head.
    tied_head: bool = False  # logits by the token table
    logit_scale: float = 1.0  # on the last hidden state, before the head
    logit_bias: bool = False
    # Training.
    dropout: float = 0.1
    init_std: float | None = None  # normal of this width everywhere; None: T5's rules
    scan_layers: bool = False  # compile one layer and loop; the parameters are the same
    remat: Literal["none", "dots", "full"] = "none"  # recompute all but weight products, or all
    # Token ids that mean something.
    pad_id: int = 0
    bos_id: int | None = None
    eos_id: int = 1
    start_id: int = 0  # what a decoder reads first
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def __post_init__(self) -> None:
        if self.num_decoder_layers and not self.vocab_size:
            raise ConfigError(
                "a decoder needs tokens: vocab_size is 0; give the vocabulary's size."
            )
        if not self.num_encoder_layers and not self.num_decoder_layers:
            raise ConfigError(
                "num_encoder_layers and num_decoder_layers are both 0; give at least one side."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; expected a share from 0 to below 1.")


_BART: dict[str, Any] = {
    "positions": "learned",
    "position_offset": 2,
    "embedding_norm": True,
    "norm": "layer",
    "norm_position": "after",
    "norm_epsilon": 1e-5,
    "activation": "gelu",
    "gated": False,
    "bias": True,
    "scaled_attention": True,
    "init_std": 0.02,
}
_FORMS: dict[str, dict[str, Any]] = {
    "t5": {"activation": "relu", "gated": False, "tied_head": True},
    "t5.1.1": {},
    "mt3": {"positions": "sinusoid"},
    "bart": _BART
    | {
        "tied_head": True,
        "logit_bias": True,
        "pad_id": 1,
        "bos_id": 0,
        "eos_id": 2,
        "start_id": 2,
    },
    "roberta": _BART
    | {
        "num_decoder_layers": 0,
        "token_types": 1,
        "max_positions": 512,
        "positions_skip_padding": True,
        "pad_id": 1,
        "bos_id": 0,
        "eos_id": 2,
    },
    "bert": _BART
    | {
        "num_decoder_layers": 0,
        "token_types": 2,
        "max_positions": 512,
        "position_offset": 0,
        "norm_epsilon": 1e-12,
    },
}


def form(name: str, **fields: Any) -> TransformerConfig:
    """The config of a published form: t5, t5.1.1, mt3, bart, roberta or bert; `fields` go over it.

    Sizes are not part of a form; give them. T5 1.0 scales its tied head by 1 / sqrt(d_model).
    """
    if name not in _FORMS:
        raise ConfigError(
            f"there is no Transformer form {name!r}; it is one of {', '.join(_FORMS)}."
        )
    config = TransformerConfig(**_FORMS[name] | fields)
    if name == "t5" and "logit_scale" not in fields:
        config = replace(config, logit_scale=config.d_model**-0.5)
    return config
