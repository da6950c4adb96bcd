"""LP-MusicCaps (Doh et al. 2023): ten seconds of music to a sentence about them."""

from musicjax.registry import Card, System

_MODULE = "musicjax.models.lp_musiccaps.model"
_PAPER = "https://arxiv.org/abs/2307.16372"

_CARDS = {
    "base": Card(
        summary="A sentence for every ten seconds; convert the published checkpoint to use it.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture; the published checkpoints are CC BY-NC 4.0)",
        training_data="LP-MusicCaps-MSD, then MusicCaps (the published checkpoints)",
        sample_rate=16_000,
        parameters=148_617_561,
    ),
    "small": Card(
        summary="The same with T5 1.1's Transformer, over bytes, to be trained anew.",
        paper=_PAPER,
        licence="Apache-2.0 (architecture)",
        training_data="none: an architecture to train",
        sample_rate=16_000,
        parameters=48_460_160,
    ),
}

SYSTEM = System(
    name="lp_musiccaps",
    task="caption",
    title="LP-MusicCaps",
    model=f"{_MODULE}:Captioner",
    config=f"{_MODULE}:get_config",
    loss=f"{_MODULE}:loss",
    targets=f"{_MODULE}:targets",
    decode=f"{_MODULE}:decode",
    cards=_CARDS,
)
