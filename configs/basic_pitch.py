"""Basic Pitch by its published recipe: windows of two seconds, Adam, smoothed labels.

But for the rate: it falls as a cosine, where the authors halve it when training stands still.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train basic_pitch tiny` | any CPU | a minute | a check that all works |
| small | `musicjax train basic_pitch small` | two CPU cores | hours | none yet |
| base | `musicjax train basic_pitch base` | one GPU | hours | none yet |

tiny needs no file: the built-in composer plays the built-in piano. The other two read records at
22,050 Hz that `musicjax data render --sample-rate 22050` writes into `data/any`, of as many
instruments as can be had; `--data.train` names other folders and `--init basic_pitch.icassp2022`
goes on from the published weights.
"""

from musicjax.data.pipeline import DataConfig
from musicjax.models.basic_pitch.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe, tiny_run

_SYSTEM = "basic_pitch"
_WINDOW_S = 43_844 / 22_050  # one window of the network


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small or base. Raises ConfigError for another name."""
    recipes = {"tiny": _tiny, "small": _small, "base": _base}
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return tiny_run(_SYSTEM, model_config("tiny"), _WINDOW_S)


def _small() -> RunConfig:
    return RunConfig(
        system=_SYSTEM,
        variant="small",
        model=model_config("small"),
        data=DataConfig(
            train=("data/any/train",), valid=("data/any/valid",), clip_s=_WINDOW_S, batch_size=16
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=100, clip_norm=0.0, ema_decay=0.998),
        checkpoint=CheckpointConfig(save_every=500, metric="onset_f1"),
        steps=10_000,
        eval_every=1000,
        log_every=50,
        output="runs/basic_pitch-small",
    )


def _base() -> RunConfig:
    # The authors' training code: batch 16, Adam at 1e-3, at most 500 epochs of 100 steps, the rate
    # halved when ten epochs bring nothing; here it falls as a cosine. Notes end with their keys.
    return RunConfig(
        system=_SYSTEM,
        variant="base",
        model=model_config("base"),
        data=DataConfig(
            train=("data/any/train",),
            valid=("data/any/valid",),
            clip_s=_WINDOW_S,
            batch_size=16,
            pedal_extended=False,
        ),
        optim=OptimConfig(lr=1e-3, warmup_steps=0, clip_norm=0.0, ema_decay=0.0),
        checkpoint=CheckpointConfig(save_every=1000, metric="onset_f1"),
        steps=50_000,
        eval_every=2000,
        log_every=100,
        output="runs/basic_pitch-base",
    )
