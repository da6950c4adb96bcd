"""High-resolution piano transcription with pedals, by its published recipe.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train kong2021 tiny` | any CPU | a minute | a check that all works |
| small | `musicjax train kong2021 small` | one GPU | a day | none yet: half as wide |
| base | `musicjax train kong2021 base` | one GPU | a week | none yet: the published recipe |

tiny needs no file: the built-in composer plays the built-in piano. The other two read the records
that `musicjax data render` writes into `data/piano`, with their pedals; `--data.train` names other
folders. Note and pedal network share no parameter and are trained side by side.
"""

from musicjax.data.pipeline import DataConfig
from musicjax.models.kong2021.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe, tiny_run

_SYSTEM = "kong2021"


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small or base. Raises ConfigError for another name."""
    recipes = {"tiny": _tiny, "small": _small, "base": _base}
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return tiny_run(_SYSTEM, model_config("tiny"), 2.0, pedal_extended=False)


def _large(variant: str, batch_size: int, steps: int) -> RunConfig:
    # Section IV-B: 10 s clips, batch 12, Adam at 5e-4, 300,000 steps. Their rate falls by a tenth
    # every 10,000 steps and their Adam keeps the largest second moment; here it falls as a cosine.
    return RunConfig(
        system=_SYSTEM,
        variant=variant,
        model=model_config(variant),
        data=DataConfig(
            train=("data/piano/train",),
            valid=("data/piano/valid",),
            clip_s=10.0,
            batch_size=batch_size,
            pedal_extended=False,
        ),
        optim=OptimConfig(lr=5e-4, warmup_steps=1000, clip_norm=3.0, ema_decay=0.9999),
        checkpoint=CheckpointConfig(save_every=2000, metric="onset_f1"),
        steps=steps,
        eval_every=5000,
        log_every=100,
        output=f"runs/kong2021-{variant}",
    )


def _small() -> RunConfig:
    return _large("small", 12, 100_000)


def _base() -> RunConfig:
    return _large("base", 12, 300_000)
