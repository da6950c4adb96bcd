"""Saving and restoring a run: Orbax for the whole state, safetensors for finished weights.

A checkpoint holds the training state, the position of every process's data iterator and a little
JSON, so that the continued run repeats the uninterrupted one bit for bit.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub import save_weights
from musicjax.registry import System
from musicjax.train.config import (
    CheckpointConfig,
    MeshConfig,
    RunConfig,
    load_run_config,
    system_of,
)
from musicjax.train.mesh import make_mesh, on_mesh
from musicjax.train.rules import state_shardings
from musicjax.train.state import (
    TrainState,
    averaged_model,
    make_optimizer,
    new_state,
    split_definition,
)
from musicjax.types import computing_in
from musicjax.version import __version__

StoredDtype = Literal["float32", "float16", "bfloat16"]

FOLDER = "checkpoints"
BEST = "best.safetensors"
FINAL = "final.safetensors"


class Checkpoints:
    """The checkpoints of one run directory; use as a context manager."""

    def __init__(self, run_dir: str | os.PathLike[str], config: CheckpointConfig) -> None:
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers as policies

        self._ocp = ocp
        sign = 1.0 if config.mode == "max" else -1.0
        worst = float("-inf")

        def rank(metrics: Mapping[str, float]) -> float:
            return sign * metrics[config.metric] if config.metric in metrics else worst

        keep = [policies.LatestN(n=config.keep)]
        if config.keep_best:
            # The newest are kept whatever they score: a run must be able to go on from its end.
            keep.append(
                policies.BestN(
                    get_metric_fn=rank, n=config.keep_best, keep_checkpoints_without_metrics=False
                )
            )
        self._manager = ocp.CheckpointManager(
            Path(run_dir).resolve() / FOLDER,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(keep),
                enable_async_checkpointing=config.asynchronous,
                best_fn=rank,
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self._manager.close()

    @property
    def latest(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    @property
    def steps(self) -> list[int]:
        """Steps of all complete checkpoints."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        data: Any,
        meta: Mapping[str, Any],
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Start saving; `data` is this process's iterator state. Returns before it is on disk."""
        args = self._ocp.args
        # The next step donates this state. Orbax copies it off an accelerator before returning,
        # but on a CPU "off" is the same memory.
        if jax.default_backend() == "cpu":
            state = jax.tree.map(lambda x: x.copy(), state)
        self._manager.save(
            step,
            args=args.Composite(
                state=args.StandardSave(state),
                data=args.JsonSave({"processes": gather_json(data)}),
                meta=args.JsonSave({"version": __version__, **meta}),
            ),
            metrics=dict(metrics or {}),
            force=True,
        )

    def restore(
        self, abstract: TrainState, step: int | None = None
    ) -> tuple[TrainState, Any, dict[str, Any]]:
        """State (laid out as `abstract` says), this process's iterator state, and the JSON."""
        args, step = self._ocp.args, self.latest if step is None else step
        try:
            found = self._manager.restore(
                step,
                args=args.Composite(
                    state=args.StandardRestore(abstract),
                    data=args.JsonRestore(),
                    meta=args.JsonRestore(),
                ),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"the checkpoint of step {step} does not fit this configuration "
                f"({_first_line(error)}): use the configuration it was made with, or another "
                "--output."
            ) from error
        processes = found["data"]["processes"]
        if len(processes) != jax.process_count():
            raise WeightsError(
                f"the checkpoint was written by {len(processes)} processes and is read by "
                f"{jax.process_count()}: start as many as before."
            )
        return found["state"], processes[jax.process_index()], found["meta"]

    def wait(self) -> None:
        """Block until all started saves are on disk."""
        self._manager.wait_until_finished()

    def asked_to_stop(self, step: int) -> bool:
        """Whether the cluster is about to take this job's machines (all processes agree)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)


def gather_json(value: Any) -> list[Any]:
    """One JSON value per process, known to all. Collective when there are many."""
    text = json.dumps(value)
    if jax.process_count() == 1:
        return [json.loads(text)]
    from jax.experimental import multihost_utils

    raw = np.frombuffer(text.encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array([raw.size], np.int32)).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(bytes(row[:n])) for row, n in zip(rows, sizes, strict=True)]


def abstract_state(state: Any, shardings: Any) -> Any:
    """Shapes, dtypes and shardings of a state: what a restore is given as its target."""
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
    )


def save_model(
    path: Path,
    model: nnx.Module,
    config: RunConfig,
    extra: Mapping[str, Any] | None = None,
    dtype: StoredDtype = "float16",
) -> Path:
    """Write finished weights as safetensors with their configuration and `extra`."""
    save_weights(path, model, config.model, system=config.system, dtype=dtype, extra=extra)
    return path


def export_checkpoint(
    run_dir: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    step: int | None = None,
    dtype: StoredDtype = "float16",
    compute_dtype: Literal["float32", "bfloat16"] | None = None,
    system: System | None = None,
) -> Path:
    """Write the averaged weights of a run's checkpoint (the newest, or `step`) to `out`.

    They are stored in `dtype`, and their model computes in `compute_dtype`, which is what it was
    trained in unless it is given: bfloat16 trains fast on a GPU and is slow on a CPU.
    The file tells by `read_header` of which run and step it is.
    Raises ConfigError if `run_dir` holds no run, WeightsError if it has no such checkpoint.
    """
    config = load_run_config(run_dir, system)
    model, meta = _restored(run_dir, config, step, system)
    config = replace(config, model=computing_in(config.model, compute_dtype))
    extra = {"run": Path(run_dir).resolve().name, "step": meta["step"]}
    return save_model(Path(out), model, config, extra, dtype)


def checkpoint_model(
    run_dir: str | os.PathLike[str],
    config: RunConfig,
    *,
    step: int | None = None,
    system: System | None = None,
) -> nnx.Module:
    """The model with the averaged weights of a run's checkpoint, on one device."""
    return _restored(run_dir, config, step, system)[0]


def _restored(
    run_dir: str | os.PathLike[str], config: RunConfig, step: int | None, system: System | None
) -> tuple[nnx.Module, dict[str, Any]]:
    """The averaged model of a checkpoint, and its JSON."""
    model_class = (system or system_of(config)).resolve("model")
    optimizer = make_optimizer(config.optim, config.steps)

    def make() -> TrainState:
        return new_state(model_class(config.model, rngs=nnx.Rngs(0)), optimizer, config.optim)

    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    with on_mesh(mesh):
        graphdef = split_definition(lambda: model_class(config.model, rngs=nnx.Rngs(0)))
        abstract = jax.eval_shape(make)
    with Checkpoints(run_dir, config.checkpoint) as checkpoints:
        if checkpoints.latest is None or (step is not None and step not in checkpoints.steps):
            known = ", ".join(map(str, checkpoints.steps)) or "none"
            raise WeightsError(
                f"{run_dir} has no checkpoint of step {step or 'any'}; its checkpoints: {known}."
            )
        target = abstract_state(abstract, state_shardings(abstract, mesh))
        state, _, meta = checkpoints.restore(target, step)
    return averaged_model(graphdef, state), meta


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
