"""The autoregressive multi-state piano model, trained on scores rendered, played in rooms.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train piano_ar tiny` | any CPU | a minute | a check that all works |
| small | `musicjax train piano_ar small` | one CPU core | hours | the card of the tag |
| small_fast | `musicjax train piano_ar small_fast` | one CPU core | an hour | the card of the tag |
| base | `musicjax train piano_ar base` | one GPU | a day | the paper's recipe |

tiny needs no file: the built-in composer plays the built-in piano. The others read the records that
`musicjax data render` writes into `data/piano`; `--data.train` names other folders. small
begins with the acoustic models of `onsets_frames.small`. These can be left as they are at first,
which is twice as fast: `--model.frozen stack frame_stack`, and then a second run from what the
first one made, `--init runs/FIRST --init-names`, with `--model.frozen` and a lower rate. small_fast
begins with `piano_ar.small`, as if what it no longer hears of the future were as the present.
"""

from dataclasses import replace

from musicjax.data.pipeline import DataConfig
from musicjax.models.piano_ar.config import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe, tiny_run
from musicjax.types import Policy

_SYSTEM = "piano_ar"


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small, small_fast or base. Raises ConfigError for another."""
    recipes = {
        "tiny": _tiny,
        "small": _small,
        "small_fast": _small_fast,
        "base": _base,
    }
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return tiny_run(_SYSTEM, model_config("tiny"), 2.048)


def _small() -> RunConfig:
    # Products in bfloat16, which CPUs with matrix units multiply many times faster; a recurrent
    # step multiplies as fast for sixteen clips as for one.
    model = replace(model_config("small"), policy=Policy(dtype="bfloat16"))
    return RunConfig(
        system=_SYSTEM,
        variant="small",
        model=model,
        data=DataConfig(
            train=("data/piano/train",), valid=("data/piano/valid",), clip_s=5.12, batch_size=16
        ),
        optim=OptimConfig(lr=1.5e-3, warmup_steps=100, clip_norm=1.0, ema_decay=0.998),
        checkpoint=CheckpointConfig(save_every=200, metric="onset_f1"),
        steps=4000,
        eval_every=500,
        log_every=20,
        init="onsets_frames.small",
        init_names=("onset.stack=stack", "activation.stack=frame_stack"),
        output="runs/piano_ar-small",
    )


def _small_fast() -> RunConfig:
    # It knows nearly all; a mean over few steps lets it forget soon what it began with.
    return RunConfig(
        system=_SYSTEM,
        variant="small_fast",
        model=model_config("small_fast"),
        data=DataConfig(
            train=("data/piano/train",), valid=("data/piano/valid",), clip_s=5.12, batch_size=8
        ),
        optim=OptimConfig(lr=8e-4, warmup_steps=30, clip_norm=1.0, ema_decay=0.99),
        checkpoint=CheckpointConfig(save_every=100, metric="onset_f1"),
        steps=1500,
        eval_every=500,
        log_every=20,
        init="piano_ar.small",
        output="runs/piano_ar-small_fast",
    )


def _base() -> RunConfig:
    # Kwon et al. 2020 and their code: 10 s clips, batch 32, Adam at 6e-4, 200,000 steps, gradients
    # clipped to 3. Their rate falls by 5 % every 5,000 steps; here it falls as a cosine.
    return RunConfig(
        system=_SYSTEM,
        variant="base",
        model=model_config("base"),
        data=DataConfig(
            train=("data/piano/train",), valid=("data/piano/valid",), clip_s=10.24, batch_size=32
        ),
        optim=OptimConfig(lr=6e-4, warmup_steps=1000, clip_norm=3.0, ema_decay=0.9999),
        checkpoint=CheckpointConfig(save_every=2000, metric="onset_f1"),
        steps=200_000,
        eval_every=5000,
        log_every=100,
        output="runs/piano_ar-base",
    )
