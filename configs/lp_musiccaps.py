"""LP-MusicCaps, trained on recordings and sentences about them.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train lp_musiccaps tiny` | any CPU | a minute | a check that all works |
| small | `musicjax train lp_musiccaps small` | one GPU | a day | T5's form, over bytes |
| base | `musicjax train lp_musiccaps base` | several GPUs | days | the paper's form |

tiny needs no file: the composer plays, and sentences tell of pace, loudness, register and texture.
The other two read JSON lines, `{"audio": "a.flac", "text": "A calm piano piece."}`, from
`data/captions`; `--data.train` names other files. base also needs the `tokenizer.json` of
facebook/bart-base, which `--model.tokenizer` names. Times were not measured.
"""

from dataclasses import replace

from musicjax.data.augment import AugmentConfig
from musicjax.data.pipeline import DataConfig
from musicjax.models.lp_musiccaps.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe

_SYSTEM = "lp_musiccaps"


def _saved(every: int) -> CheckpointConfig:
    return CheckpointConfig(save_every=every, metric="token_nats", mode="min")


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small or base. Raises ConfigError for another name."""
    recipes = {"tiny": _tiny, "small": _small, "base": _base}
    return find_recipe(_SYSTEM, variant, recipes)


def _tiny() -> RunConfig:
    return RunConfig(
        system=_SYSTEM,
        variant="tiny",
        model=replace(model_config("tiny"), clip_s=5.0),
        data=DataConfig(
            train=("captions:",), valid=("captions:",), clip_s=5.0, batch_size=8, augment=None
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=10, ema_decay=0.98),
        checkpoint=_saved(50),
        steps=100,
        eval_every=100,
        log_every=10,
        output="runs/lp_musiccaps-tiny",
    )


def _data(batch_size: int) -> DataConfig:
    return DataConfig(
        train=("data/captions/train.jsonl",),
        valid=("data/captions/valid.jsonl",),
        clip_s=10.0,
        batch_size=batch_size,
        # A sentence may tell of the sound and of the pitch, so these stay nearly as they are.
        augment=AugmentConfig(strength=0.2),
        audio_dtype="int16",
    )


def _small() -> RunConfig:
    return RunConfig(
        system=_SYSTEM,
        variant="small",
        model=model_config("small"),
        data=_data(64),
        optim=OptimConfig(
            name="adafactor", lr=1e-3, schedule="constant", warmup_steps=1000, clip_norm=0.0
        ),
        checkpoint=_saved(1000),
        steps=100_000,
        eval_every=2000,
        log_every=100,
        output="runs/lp_musiccaps-small",
    )


def _base() -> RunConfig:
    # The published pre-training: batches of 256, AdamW at 1e-4 falling as half a cosine, 4,096
    # rounds of 8,192 drawn clips, of which 125 are warm-up.
    return RunConfig(
        system=_SYSTEM,
        variant="base",
        model=model_config("base"),
        data=replace(_data(256), augment=None),
        optim=OptimConfig(name="adamw", lr=1e-4, warmup_steps=4000, ema_decay=0.0),
        checkpoint=_saved(1000),
        steps=131_072,
        eval_every=4000,
        log_every=100,
        output="runs/lp_musiccaps-base",
    )
