"""CREPE, trained on recordings of one voice or instrument at a time.

| variant | command | hardware | time | score |
|---|---|---|---|---|
| tiny | `musicjax train crepe tiny` | any CPU | minutes | a check that all works |
| small | `musicjax train crepe small` | eight CPU cores | a day | not run here |
| base | `musicjax train crepe base` | one GPU | a day | the paper's form, not run here |

tiny needs no file: the built-in composer plays the built-in piano, and of notes that sound together
the last begun is the label. The other two read the records that `musicjax data render` writes from
one-voice MIDI into `data/voices`; `--data.train` names other folders.
"""

from musicjax.data.pipeline import DataConfig
from musicjax.errors import ConfigError
from musicjax.models.crepe.model import get_config as model_config
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig


def get_config(variant: str = "base") -> RunConfig:
    """The run of that variant: tiny, small or base. Raises ConfigError for another name.

    Kim et al. 2018, section 3: Adam at 2e-4, batches of 32 frames; a batch here has as many clips
    as fill a step on its machine, a hundred frames each.
    """
    runs = {
        "tiny": (("composer:",), 2, 100, 3e-4),
        "small": (("data/voices/train",), 16, 50_000, 2e-4),
        "base": (("data/voices/train",), 32, 150_000, 2e-4),
    }
    if variant not in runs:
        raise ConfigError(f"crepe has no recipe {variant!r}; there are {', '.join(runs)}.")
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
