"""What a training run is: frozen dataclasses, overridden from the command line, stored as JSON.

A file in `configs/` returns a `RunConfig`; `parse_overrides` changes single fields of it
(`--optim.lr 3e-4`); `load_run_config` reads back what a run wrote into its directory.
"""

import dataclasses
import difflib
import json
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from musicjax.data.options import read_options
from musicjax.data.pipeline import DataConfig
from musicjax.errors import ConfigError
from musicjax.hub.typed_json import from_json
from musicjax.registry import System, find_system


@dataclass(frozen=True)
class OptimConfig:
    """How the parameters move.

    The rate rises linearly for `warmup_steps` and falls as a cosine to `final_fraction * lr` at
    the last step ("constant" stays at `lr`). Gradients are clipped to a global norm of
    `clip_norm` (0: not clipped). A batch is split into `accumulate` micro-batches whose gradients
    are averaged before one update. `ema_decay` is the decay of the averaged weights (0: none),
    lowered to (1 + t) / (10 + t) while t updates are few. A step whose loss or gradient is not
    finite changes nothing and is counted; `max_skipped` of them in a row stop the run.

    With adafactor (Shazeer and Stern, 2018) `lr` is a share of the root mean square of a tensor, or
    of 1e-3 where that is less: T5 and MT3 train with a constant 1e-3 and without `clip_norm`. Its
    other settings are T5X's, so that a checkpoint goes from one to the other.

    With muon (Jordan, 2024) the momentum of a tensor of two or more axes is made orthogonal before
    it moves anything, the last axis against all others; tensors of one axis move as with Adam
    that looks ahead (Nesterov). Updates have the size of Adam's (Liu et al., 2025,
    arXiv:2502.16982), so that `lr` may be the same. A step costs some products of matrices
    more, also for heads that do not learn.
    """

    name: Literal["adam", "adamw", "adafactor", "muon"] = "adam"
    lr: float = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 200
    final_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-4  # adamw only; tensors of two or more axes
    decay_exponent: float = 0.8  # adafactor: it forgets as 1 - t ** -decay_exponent
    factored_from: int = 128  # adafactor: both of the longest axes at least so long
    clip_norm: float = 3.0
    accumulate: int = 1
    ema_decay: float = 0.999
    max_skipped: int = 20

    def __post_init__(self) -> None:
        _require(self.lr > 0, "optim.lr", self.lr, "above 0")
        _require(self.warmup_steps >= 0, "optim.warmup_steps", self.warmup_steps, "0 or more")
        _require(0 <= self.final_fraction <= 1, "optim.final_fraction", self.final_fraction, "0..1")
        _require(self.decay_exponent > 0, "optim.decay_exponent", self.decay_exponent, "above 0")
        _require(self.factored_from >= 1, "optim.factored_from", self.factored_from, "1 or more")
        _require(self.clip_norm >= 0, "optim.clip_norm", self.clip_norm, "0 (no clipping) or more")
        _require(self.accumulate >= 1, "optim.accumulate", self.accumulate, "1 or more")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", self.ema_decay, "0 (none) up to 1")
        _require(self.max_skipped >= 1, "optim.max_skipped", self.max_skipped, "1 or more")


@dataclass(frozen=True)
class MeshConfig:
    """How many devices share each mesh axis.

    `data` splits the batch, `fsdp` splits the batch and the parameters, `tensor` splits wide
    layers. `data = 0` takes all devices that the other two leave: 1 on a single device.
    """

    data: int = 0
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        _require(self.data >= 0, "mesh.data", self.data, "0 (all devices left) or more")
        _require(self.fsdp >= 1, "mesh.fsdp", self.fsdp, "1 or more")
        _require(self.tensor >= 1, "mesh.tensor", self.tensor, "1 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    """When the whole state is saved, and which saves are kept.

    A checkpoint is written every `save_every` steps, after each evaluation, at the end and when
    the run is interrupted. The newest `keep` and the `keep_best` best by `metric` stay.
    """

    save_every: int = 500
    keep: int = 2
    keep_best: int = 1
    metric: str = "onset_f1"
    mode: Literal["max", "min"] = "max"
    asynchronous: bool = True

    def __post_init__(self) -> None:
        _require(self.save_every >= 1, "checkpoint.save_every", self.save_every, "1 or more")
        _require(self.keep >= 1, "checkpoint.keep", self.keep, "1 or more")
        _require(self.keep_best >= 0, "checkpoint.keep_best", self.keep_best, "0 or more")


@dataclass(frozen=True)
class RunConfig:
    """One training run, complete: the same config and seed give the same numbers.

    `model` is the system's own frozen configuration and carries the dtype policy. `init` names
    weights to start from (`system.tag`, a .safetensors file, another run's directory, or "RUN@STEP"
    for one of its checkpoints); empty starts from random weights. `init_names` gives parts of these
    the names that they have here, "onset.stack=stem" for instance. `output` is the run directory; a
    run that finds its own checkpoints there goes on from the newest.
    """

    system: str
    variant: str
    model: Any
    data: DataConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    steps: int = 1000
    eval_every: int = 500  # 0: only at the end, where there is always one
    log_every: int = 20
    seed: int = 0
    init: str = ""
    init_names: tuple[str, ...] = ()
    output: str = "runs/unnamed"
    tensorboard: bool = True

    def __post_init__(self) -> None:
        _require(self.steps >= 1, "steps", self.steps, "1 or more")
        _require(self.eval_every >= 0, "eval_every", self.eval_every, "0 (only at the end) or more")
        _require(self.log_every >= 1, "log_every", self.log_every, "1 or more")
        for pair in self.init_names:
            sides = pair.split("=")
            _require(len(sides) == 2 and all(sides), "init_names", pair, "a pair THERE=HERE")
        size, parts = getattr(self.data, "batch_size", 0), self.optim.accumulate
        if size % parts:
            raise ConfigError(
                f"data.batch_size is {size} and optim.accumulate is {parts}: a batch must split "
                f"into equal micro-batches; make the batch a multiple of {parts}."
            )

    @property
    def sample_rate(self) -> int:
        """Samples per second that the model's front-end expects."""
        return self.model.frontend.sample_rate


def _require(holds: bool, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value!r}; expected {expected}.")


# --- command-line overrides ----------------------------------------------------------------------

Config = TypeVar("Config")


def parse_overrides(config: Config, args: Sequence[str]) -> Config:
    """The config with single fields replaced by `--dotted.name value` arguments.

    Values are parsed by the field's type; `--help` prints every field with its current value and
    exits. Raises ConfigError for an unknown field (with near matches) and for a value of the
    wrong type.
    """
    import tyro

    _check_names(config, args)
    # Optional nested configs keep the kind they have; choosing another is done in Python.
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    return read_options(type(config), args, default=config, config=markers)


def _check_names(config: Any, args: Sequence[str]) -> None:
    known = field_names(config)
    for arg in args:
        if not arg.startswith("--") or arg == "--help":
            continue
        name = arg[2:].split("=")[0].replace("-", "_")
        if name not in known:
            raise ConfigError(
                f"there is no field {arg.split('=')[0]}; {_neighbours(name, known)} "
                "`--help` lists every field."
            )


def _neighbours(name: str, known: Sequence[str]) -> str:
    """Fields that may have been meant: of the same name elsewhere, near it, or beside it."""
    group, _, leaf = name.rpartition(".")
    near = [field for field in known if field.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.75)
    if near:
        return f"did you mean --{' or --'.join(near)}?"
    beside = [field.rpartition(".")[2] for field in known if field.rpartition(".")[0] == group]
    where = f"--{group}" if group else "the run itself"
    return f"{where} has {', '.join(beside)}." if beside else "no field is like it."


def field_names(config: Any, prefix: str = "") -> list[str]:
    """Dotted names of all leaf fields of nested dataclasses."""
    names = []
    for entry in dataclasses.fields(config):
        value, name = getattr(config, entry.name), prefix + entry.name
        if dataclasses.is_dataclass(value):
            names += field_names(value, name + ".")
        else:
            names.append(name)
    return names


# --- the run directory ---------------------------------------------------------------------------


def system_of(config: RunConfig) -> System:
    """The registered system that the config trains. ModelNotFoundError if there is none."""
    return find_system(config.system)


def load_run_config(run_dir: str | os.PathLike[str], system: System | None = None) -> RunConfig:
    """The resolved config that a run wrote into its directory.

    Raises ConfigError if the directory holds no run.
    """
    plain = read_run_json(run_dir)
    if not plain:
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json.")
    system = system or find_system(plain["system"])
    model_type = type(system.resolve("config")(plain["variant"]))
    model = from_json(model_type, plain.pop("model"), "model")
    hints = typing.get_type_hints(RunConfig)
    rest = {k: from_json(hints[k], v, k) for k, v in plain.items() if k in hints}
    return RunConfig(model=model, **rest)


def read_run_json(run_dir: str | os.PathLike[str]) -> dict[str, Any]:
    """The resolved config of a run directory as JSON; empty if there is none."""
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}): restore or remove it.") from error
