"""The published checkpoints of LP-MusicCaps: pretrain.pth, transfer.pth, supervised.pth."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule
from musicjax.hub.convert import convert as fill
from musicjax.hub.pytorch import read_state_dict
from musicjax.hub.transformers_layouts import LAYOUTS
from musicjax.models.lp_musiccaps.model import Captioner, CaptionerConfig, get_config

_RULES, _TWICE = LAYOUTS["bart"].rules, LAYOUTS["bart"].ignore


def rules(config: CaptionerConfig) -> tuple[Rule, ...]:
    """The table from the published names to ours."""
    table = []
    for i in range(len(config.strides)):
        theirs = rf"audio_encoder\.conv_stack\.{i - 1}" if i else r"audio_encoder\.conv1"
        table.append(Rule(rf"{theirs}\.weight", f"convolutions.{i}.kernel", "conv1d_oiw"))
        table.append(Rule(rf"{theirs}\.bias", f"convolutions.{i}.bias"))
    prefixed = (Rule(rf"bart\.{r.source}", f"transformer.{r.target}", r.transform) for r in _RULES)
    return (*table, *prefixed)


IGNORED = {
    r"audio_encoder\.positional_embedding": "sinusoids, which are computed",
    r"audio_encoder\.mel_encoder\..*": "the front-end's constants, which the preset computes",
    **{rf"bart\.{name}": why for name, why in _TWICE.items()},
}
_FIRST, _TABLE = "audio_encoder.conv1.weight", "bart.model.shared.weight"
_BIAS = "bart.final_logits_bias"


def from_state_dict(
    weights: Mapping[str, np.ndarray], config: CaptionerConfig | None = None
) -> tuple[Captioner, CaptionerConfig]:
    """The model for a published state dict; widths and layers are read from the shapes.

    Names may begin with `module.`, as those of distributed runs do. The number of heads cannot be
    seen in shapes: it is one for every 64 of the width, as published, unless `config` says so.
    Raises WeightsError with everything that does not fit.
    """
    weights = {name.removeprefix("module."): a for name, a in weights.items()}
    missing = [name for name in (_FIRST, _TABLE) if name not in weights]
    if missing:
        raise WeightsError(
            f"the weights have no {' and no '.join(missing)}: they are not those of LP-MusicCaps. "
            f"They begin with {', '.join([*weights][:3]) or 'nothing'}."
        )
    config = config or config_of(weights)
    if _BIAS in weights:  # a row
        weights[_BIAS] = weights[_BIAS].reshape(-1)
    graph, state = nnx.split(nnx.eval_shape(lambda: Captioner(config, rngs=nnx.Rngs(0))))
    return nnx.merge(graph, fill(weights, state, rules(config), ignore=IGNORED)), config


def config_of(weights: Mapping[str, np.ndarray], *, head_dim: int = 64) -> CaptionerConfig:
    """The config that shapes tell of, with heads of that width."""
    published = get_config("base")
    vocabulary, width = weights[_TABLE].shape

    def layers(side: str) -> int:
        names = [n.split(".")[4] for n in weights if n.startswith(f"bart.model.{side}.layers.")]
        return len(set(names))

    positions = weights.get("bart.model.decoder.embed_positions.weight")
    hidden = weights.get("bart.model.decoder.layers.0.fc1.weight")
    stack = {n.split(".")[2] for n in weights if n.startswith("audio_encoder.conv_stack.")}
    text = replace(
        published.transformer,
        vocab_size=vocabulary,
        d_model=width,
        num_heads=max(width // head_dim, 1),
        head_dim=head_dim,
        mlp_dim=4 * width if hidden is None else hidden.shape[0],
        num_encoder_layers=layers("encoder"),
        num_decoder_layers=layers("decoder"),
        max_positions=1024 if positions is None else positions.shape[0] - 2,
        logit_bias=_BIAS in weights,
    )
    bins = weights[_FIRST].shape[1]
    return replace(
        published,
        frontend=replace(published.frontend, num_bins=bins),
        strides=(1, *[2] * len(stack)),
        transformer=text,
        max_tokens=min(published.max_tokens, text.max_positions),
    )


def convert(path: str | Path, tag: str = "base") -> tuple[Captioner, CaptionerConfig]:
    """The model and its config for a published file ({epoch, state_dict, optimizer}) of `tag`.

    The tokenizer is not in it: put facebook/bart-base's `tokenizer.json` (or its `vocab.json` and
    `merges.txt`) beside the converted weights.
    Raises WeightsError when it cannot be read safely or does not hold that network.
    """
    if tag != "base":
        raise WeightsError(
            f"lp_musiccaps.{tag} has no foreign checkpoints; convert to lp_musiccaps.base."
        )
    return from_state_dict(read_state_dict(path))
