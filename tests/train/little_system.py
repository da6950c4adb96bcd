"""A system small enough that the trainer's tests take milliseconds: it learns how loud a clip is.

It has what the trainer must take care of: batch statistics, randomness from the step's key, a
dtype policy and a nested configuration.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from musicjax.data.pipeline import DataConfig
from musicjax.registry import Card, System
from musicjax.train.config import CheckpointConfig, OptimConfig, RunConfig
from musicjax.types import Policy

SAMPLES = 64


@dataclass(frozen=True)
class LittleFrontend:
    sample_rate: int = 16000


@dataclass(frozen=True)
class LittleConfig:
    frontend: LittleFrontend = LittleFrontend()
    width: int = 16
    norm: bool = True
    noise: float = 0.1
    annotated: bool = False  # whether parameters carry the names of their axes
    policy: Policy = Policy()  # noqa: RUF009


class Little(nnx.Module):
    def __init__(self, config: LittleConfig, *, rngs: nnx.Rngs):
        policy = config.policy
        dtypes = {"dtype": policy.compute, "param_dtype": policy.param, "rngs": rngs}
        self.config = config
        names = {"kernel_metadata": {"out_sharding": ("embed", "mlp")}} if config.annotated else {}
        self.first = nnx.Linear(SAMPLES, config.width, **names, **dtypes)
        self.norm = nnx.BatchNorm(config.width, momentum=0.9, rngs=rngs) if config.norm else None
        self.last = nnx.Linear(config.width, 1, **dtypes)

    def __call__(self, audio: jax.Array, *, train: bool = False, key: Any = None) -> jax.Array:
        x = self.first(audio)
        if self.norm is not None:
            x = self.norm(x, use_running_average=not train)
        if train and self.config.noise:
            x = x + self.config.noise * jax.random.normal(key, x.shape, x.dtype)
        return self.last(jax.nn.relu(x))[:, 0].astype(jnp.float32)


def loss(
    model: Little, batch: Mapping[str, jax.Array], *, key: Any, train: bool = True
) -> tuple[jax.Array, dict[str, jax.Array]]:
    error = model(batch["audio"], train=train, key=key) - batch["level"]
    value = jnp.mean(error**2)
    return value, {"error": jnp.mean(jnp.abs(error))}


def get_config(variant: str = "tiny") -> LittleConfig:
    return LittleConfig()


SYSTEM = System(
    name="little",
    task="level",
    title="Little",
    model="little_system:Little",
    config="little_system:get_config",
    loss="little_system:loss",
    targets="little_system:targets",
    decode="little_system:decode",
    cards={"tiny": Card("for tests", "", "Apache-2.0", "noise", 16000, 0)},
)


class Batches:
    """Endless batches that follow from their number, with the state a grain iterator has.

    From batch `bad_from` up to `bad_to` the audio holds a NaN.
    """

    def __init__(self, size: int = 8, bad_from: int = 0, bad_to: int = 0) -> None:
        self.size, self.next, self.bad = size, 0, range(bad_from, bad_to)

    def __iter__(self) -> "Batches":
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([7, self.next])
        level = rng.uniform(0.1, 1.0, self.size).astype(np.float32)
        audio = level[:, None] * rng.standard_normal((self.size, SAMPLES)).astype(np.float32)
        if self.next in self.bad:
            audio[0, 0] = np.nan
        self.next += 1
        return {"audio": audio, "level": level}

    def get_state(self) -> dict[str, int]:
        return {"next": self.next}

    def set_state(self, state: dict[str, int]) -> None:
        self.next = state["next"]


def run_config(output: Path | str, **changes: Any) -> RunConfig:
    """Twenty short steps; `optim` and `model` may be given as dictionaries of changes."""
    optim = replace(OptimConfig(lr=1e-2, warmup_steps=4), **changes.pop("optim", {}))
    model = replace(LittleConfig(), **changes.pop("model", {}))
    checkpoint = CheckpointConfig(save_every=5, metric="score")
    checkpoint = replace(checkpoint, **changes.pop("checkpoint", {}))
    settings: dict[str, Any] = {
        "system": "little",
        "variant": "tiny",
        "model": model,
        "data": DataConfig(batch_size=8, clip_s=SAMPLES / 16000),
        "optim": optim,
        "checkpoint": checkpoint,
        "steps": 20,
        "eval_every": 0,
        "log_every": 1,
        "output": str(output),
        "tensorboard": False,
    }
    return RunConfig(**{**settings, **changes})
