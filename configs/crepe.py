"""CREPE, trained on recordings of one voice or instrument at a time.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train crepe tiny` | any CPU | minutes | a check that all works |
| small | `musicjax train crepe small` | eight CPU cores | a day | not run here |
| ours | `musicjax train crepe ours` | one CPU core with AMX | an hour | on the card |
| base | `musicjax train crepe base` | one GPU | a day | the paper's form, not run here |

tiny needs no file: the built-in composer plays the built-in piano, and of notes that sound together
the last begun is the label. The other two read the records that `musicjax data render` writes from
one-voice MIDI into `data/voices`; `--data.train` names other folders.

ours needs no file either: it hears voices and instruments that are made up as it goes, with their
pitch known, silence and noise among them. The weights of the zoo heard two sound fonts as well:

    musicjax train crepe ours --data.weights 0.7 0.15 0.15 --data.train voices: \\
        voices:/usr/share/sounds/sf2/FluidR3_GM.sf2 \\
        voices:/usr/share/sounds/sf3/MuseScore_General_Full.sf3
"""

from dataclasses import replace

from musicjax.data.pipeline import DataConfig
from musicjax.errors import ConfigError
from musicjax.models.crepe.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small, ours or base. Raises ConfigError for another name.

    Kim et al. 2018, section 3: Adam at 2e-4, batches of 32 frames; a batch here has as many clips
    as fill a step on its machine, a hundred frames each.
    """
    if variant == "ours":
        return _ours()
    runs = {
        "tiny": (("composer:",), 2, 100, 3e-4),
        "small": (("data/voices/train",), 16, 50_000, 2e-4),
        "base": (("data/voices/train",), 32, 150_000, 2e-4),
    }
    if variant not in runs:
        raise ConfigError(f"crepe has no recipe {variant!r}; there are ours, {', '.join(runs)}.")
    train, batch_size, steps, rate = runs[variant]
    return RunConfig(
        system="crepe",
        variant=variant,
        model=model_config(variant),
        data=DataConfig(train=train, valid=(), clip_s=1.0, batch_size=batch_size),
        optim=OptimConfig(lr=rate, schedule="constant", warmup_steps=10),
        checkpoint=CheckpointConfig(save_every=50 if variant == "tiny" else 1000),
        steps=steps,
        eval_every=0,
        log_every=10,
        output=f"runs/crepe-{variant}",
    )


def _ours() -> RunConfig:
    """Frames lie 60 ms apart, so that a batch holds many different sounds."""
    model = model_config("ours")
    frontend = replace(model.frontend, hop_length=960)
    return RunConfig(
        system="crepe",
        variant="ours",
        model=replace(model, frontend=frontend, form="halves"),
        data=DataConfig(
            train=("voices:",), valid=(), clip_s=1.2, batch_size=12, threads=1, prefetch=4
        ),
        optim=OptimConfig(lr=2e-3, warmup_steps=200, ema_decay=0.998),
        checkpoint=CheckpointConfig(save_every=100),
        steps=3800,
        eval_every=0,
        log_every=10,
        output="runs/crepe-ours",
    )
