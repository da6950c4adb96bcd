"""Transkun, from the start or from the published weights.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train transkun tiny` | any CPU | two minutes | a check that all works |
| finetune | `musicjax train transkun finetune --init transkun.v2` | one GPU | hours | - |
| small | `musicjax train transkun small` | one GPU | a day or two | - |
| base | `musicjax train transkun base` | four GPUs | days | the paper's, on MAESTRO |

tiny needs no file: the built-in composer plays the built-in piano. The others read records at
44.1 kHz in `data/piano44k`; `--data.train` names other folders. Pedals are learned from the
controller events of the data, and notes end where their keys are released.
"""

from dataclasses import replace

from musicjax.data.pipeline import DataConfig
from musicjax.models.transkun.config import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe, tiny_run

_SYSTEM = "transkun"


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small, base or finetune; ConfigError for any other."""
    recipes = {"tiny": _tiny, "small": _small, "base": _base, "finetune": _finetune}
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return tiny_run(
        _SYSTEM, model_config("tiny"), 2.048, optim={"clip_norm": 1.0}, pedal_extended=False
    )


def _base() -> RunConfig:
    # The authors' trainer: clips of 16 s, batch 4 on each of their processes, 180,000 steps, rate
    # 2e-4 after 5 % of warm-up, decay of weights 1e-4. They use AdaBelief, one cosine cycle and
    # clipping at the .8 quantile of past norms; here it is AdamW, a cosine and a fixed norm.
    return RunConfig(
        system=_SYSTEM,
        variant="base",
        model=model_config("v2"),
        data=DataConfig(
            train=("data/piano44k/train",),
            valid=("data/piano44k/valid",),
            clip_s=16.0,
            batch_size=16,
            pedal_extended=False,
        ),
        optim=OptimConfig(name="adamw", lr=2e-4, warmup_steps=9000, clip_norm=1.0),
        checkpoint=CheckpointConfig(save_every=1000, metric="onset_f1"),
        steps=180_000,
        eval_every=5000,
        log_every=100,
        output="runs/transkun-base",
    )


def _small() -> RunConfig:
    run = _base()
    return replace(
        run,
        variant="small",
        model=model_config("small"),
        data=replace(run.data, batch_size=8),
        optim=replace(run.optim, lr=4e-4, warmup_steps=2000),
        steps=60_000,
        output="runs/transkun-small",
    )


def _finetune() -> RunConfig:
    run = _base()
    return replace(
        run,
        variant="finetune",
        data=replace(run.data, batch_size=4),
        optim=replace(run.optim, lr=2e-5, warmup_steps=200),
        steps=5000,
        eval_every=500,
        output="runs/transkun-finetune",
    )
