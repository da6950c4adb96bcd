"""MT3: several instruments, trained on bands, quartets, songs and pianos that are rendered.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train mt3 tiny` | any CPU | two minutes | a check that all works |
| mini | `benchmarks/launch/mt3_mini.sh` | one GPU | an hour, estimated | the card of the tag |
| small | `musicjax train mt3 small` | one GPU | a day | none yet |
| base | `musicjax train mt3 base` | eight GPUs | days | none yet |

tiny needs no file: the built-in composer plays the built-in band. The others read the records that
`musicjax data render --ensemble` writes into `data/ensemble`; `--data.train` names other folders,
such as real recordings brought in by `musicjax data import`. Corpora of different sizes are mixed
with MT3's temperature. mini learns to hear first, from the piano model's convolutions, and then to
write; without the first of these commands the decoder learns for long beside an encoder that is
deaf. `benchmarks/launch/mt3_mini.sh` renders what they read, runs both, and exports the weights:

    musicjax train mt3 mini --model.token-weight 0 --steps 10000 --output runs/mt3-ears
        --init onsets_frames.small --init-names onset.stack=stem
    musicjax train mt3 mini --init runs/mt3-ears

On one GPU both are estimated to take about an hour; nobody has measured it yet. The best of mini is
chosen by families of instruments, of which alone it tells. `small` and `mini` speak a language of
their own, so they cannot begin at the published weights; `base` and any other `MT3Config` of the
published language can, with `--init`.
"""

from dataclasses import replace

from musicjax.data.augment import AugmentConfig
from musicjax.data.pipeline import DataConfig
from musicjax.models.mt3.config import MT3Config
from musicjax.models.mt3.config import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.train.recipes import find_recipe
from musicjax.types import Policy

_SYSTEM = "mt3"
_TEMPERATURE = 10 / 3  # of the mixture of corpora, section 4.1 of the paper


def get_config(variant: str = "mini") -> RunConfig:
    """The run of that variant: tiny, mini, small or base. Raises ConfigError for another name."""
    recipes = {"tiny": _tiny, "mini": _mini, "small": _small, "base": _base}
    return find_recipe(_SYSTEM, variant, recipes)


def _segment_s(model: MT3Config) -> float:
    return model.segment_samples / model.frontend.sample_rate


def _data(model: MT3Config, batch_size: int) -> DataConfig:
    return DataConfig(
        train=("data/ensemble/train", "data/piano/train"),
        valid=("data/ensemble/valid",),
        temperature=_TEMPERATURE,
        clip_s=_segment_s(model),
        batch_size=batch_size,
        audio_dtype="int16",
        augment=AugmentConfig(strength=0.7),
        workers=8,
        prefetch=4,
    )


def _tiny() -> RunConfig:
    model = model_config("tiny")
    return RunConfig(
        system=_SYSTEM,
        variant="tiny",
        model=model,
        data=DataConfig(
            train=("composer:band",),
            valid=("composer:band",),
            clip_s=_segment_s(model),
            batch_size=8,
            augment=None,
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=20, clip_norm=1.0),
        checkpoint=CheckpointConfig(save_every=100),
        steps=200,
        eval_every=200,
        log_every=20,
        output="runs/mt3-tiny",
    )


def _mini() -> RunConfig:
    model = replace(model_config("mini"), policy=Policy(dtype="bfloat16"))
    return RunConfig(
        system=_SYSTEM,
        variant="mini",
        model=model,
        data=_data(model, 128),
        optim=OptimConfig(
            name="adamw", lr=1e-3, b2=0.98, warmup_steps=1000, clip_norm=1.0, weight_decay=0.01
        ),
        checkpoint=CheckpointConfig(save_every=1000, metric="onset_family_f1"),
        steps=40_000,
        eval_every=4000,
        log_every=50,
        output="runs/mt3-mini",
    )


def _published(variant: str, batch_size: int, steps: int) -> RunConfig:
    # Section 4.1 and gin/train.gin of the original: Adafactor at a constant 1e-3, batch 256.
    model = replace(model_config(variant), policy=Policy(dtype="bfloat16"))
    return RunConfig(
        system=_SYSTEM,
        variant=variant,
        model=model,
        data=_data(model, batch_size),
        optim=OptimConfig(
            name="adafactor", lr=1e-3, schedule="constant", warmup_steps=0, clip_norm=0.0
        ),
        checkpoint=CheckpointConfig(save_every=2000, metric="onset_program_f1"),
        steps=steps,
        eval_every=10_000,
        log_every=100,
        output=f"runs/mt3-{variant}",
    )


def _small() -> RunConfig:
    return _published("small", 256, 400_000)


def _base() -> RunConfig:
    return _published("base", 1024, 500_000)
