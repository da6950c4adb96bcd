"""Onsets and Frames, trained on scores that are rendered, played in rooms and recorded badly.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train onsets_frames tiny` | any CPU | a minute | a check that all works |
| small | `musicjax train onsets_frames small` | two CPU cores | hours | the card of the tag |
| base | `musicjax train onsets_frames base` | one GPU | a day | the paper's form |

tiny needs no file: the built-in composer plays the built-in piano. The other two read the records
that `musicjax data render` writes into `data/piano`; `--data.train` names other folders.
"""

from musicjax.data.pipeline import DataConfig
from musicjax.models.onsets_frames.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe, tiny_run

_SYSTEM = "onsets_frames"


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small or base. Raises ConfigError for another name."""
    recipes = {"tiny": _tiny, "small": _small, "base": _base}
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return tiny_run(_SYSTEM, model_config("tiny"), 2.048)


def _small() -> RunConfig:
    return RunConfig(
        system=_SYSTEM,
        variant="small",
        model=model_config("small"),
        data=DataConfig(
            train=("data/piano/train",), valid=("data/piano/valid",), clip_s=5.12, batch_size=8
        ),
        optim=OptimConfig(lr=1.2e-3, warmup_steps=300, clip_norm=1.0, ema_decay=0.998),
        checkpoint=CheckpointConfig(save_every=300, metric="onset_f1"),
        steps=12_000,
        eval_every=1000,
        log_every=20,
        output="runs/onsets_frames-small",
    )


def _base() -> RunConfig:
    # Hawthorne et al. 2018, section 4: batch 8, rate 6e-4, clip 3, 20 s, 50,000 steps. Their rate
    # falls by 2 % every 10,000 steps; here it falls as a cosine.
    return RunConfig(
        system=_SYSTEM,
        variant="base",
        model=model_config("base"),
        data=DataConfig(
            train=("data/piano/train",), valid=("data/piano/valid",), clip_s=20.48, batch_size=8
        ),
        optim=OptimConfig(lr=6e-4, warmup_steps=1000, clip_norm=3.0, ema_decay=0.9999),
        checkpoint=CheckpointConfig(save_every=1000, metric="onset_f1"),
        steps=50_000,
        eval_every=2000,
        log_every=100,
        output="runs/onsets_frames-base",
    )
