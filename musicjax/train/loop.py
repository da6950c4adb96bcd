"""The training loop: batches in, parameters moved, progress told, everything resumable.

The host prepares batch n + 1 while the device works on step n; the numbers of step n - 1 are read
only after step n was dispatched, so that the device never waits for the log.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import jax
from flax import nnx
from jax.sharding import Mesh

from musicjax.errors import ConfigError, TrainingError, TrainingStopped
from musicjax.hub.typed_json import to_json
from musicjax.registry import System
from musicjax.train.checkpoints import (
    BEST,
    FINAL,
    FOLDER,
    Checkpoints,
    abstract_state,
    save_model,
)
from musicjax.train.config import RunConfig, read_run_json, system_of
from musicjax.train.feed import Prefetch
from musicjax.train.interrupt import Signals
from musicjax.train.launch import connect
from musicjax.train.logs import RunLog, write_run_files
from musicjax.train.mesh import check_batch_size, make_mesh, on_mesh, replicated, sharded_init
from musicjax.train.meter import Meter
from musicjax.train.state import (
    TrainState,
    average_start,
    averaged_model,
    make_optimizer,
    new_state,
    split_definition,
)
from musicjax.train.step import make_step
from musicjax.train.warmstart import adapted, load_matching, read_weights, renamed

Evaluate = Callable[[nnx.Module], Mapping[str, float]]


def train(
    config: RunConfig,
    system: System | None = None,
    evaluate: Evaluate | None = None,
    *,
    batches: Any = None,
    show: bool = True,
) -> Path:
    """Train as `config` says and return the path of the weights to use.

    Args:
      system: the system to train; None looks `config.system` up in the registry.
      evaluate: `(model) -> {metric: value}`, called every `config.eval_every` steps and at the
        end on the averaged weights; the best by `config.checkpoint.metric` are exported.
      batches: an iterator of `{name: array (B, …)}` with `get_state` and `set_state`; None reads
        `config.data`.
      show: whether to tell progress on the terminal.

    Returns `best.safetensors` in `config.output` if there was an evaluation, else
    `final.safetensors`. A run directory with checkpoints is continued from the newest one.

    Raises ConfigError, TrainingError if too many steps in a row are not finite, and
    TrainingStopped (after saving) on SIGTERM or Ctrl-C.
    """
    connect()
    system = system or system_of(config)
    _check_output(config)
    run, out = _prepare(config, system, batches), Path(config.output)
    with (
        Checkpoints(config.output, config.checkpoint) as checkpoints,
        RunLog(config, start_step=checkpoints.latest or 0, show=show) as log,
        Signals() as signals,
    ):
        _start(run, checkpoints, log)
        write_run_files(config)
        finished = run.step >= config.steps and (out / FINAL).is_file()
        if not finished:
            _steps(run, checkpoints, log, signals, evaluate)
            _conclude(run, checkpoints, log, evaluate)
        checkpoints.wait()
    return out / BEST if (out / BEST).is_file() else out / FINAL


@dataclass
class _Run:
    """What the loop carries: the compiled step, the moving state and the place in the data."""

    config: RunConfig
    system: System
    mesh: Mesh
    graphdef: nnx.GraphDef
    step_fn: Callable[..., Any]
    state: TrainState
    shardings: Any
    batches: Any
    data_state: Any = None
    step: int = 0
    best: float = -math.inf
    saved: int = 0  # step of the newest checkpoint
    evaluated: int = -1  # step of the newest evaluation
    metrics: dict[str, float] = field(default_factory=dict)  # what it found

    @property
    def scores(self) -> dict[str, float]:
        """Metrics of the model as it is now; empty if it was not evaluated."""
        return self.metrics if self.evaluated == self.step else {}

    def model(self) -> nnx.Module:
        """The model with averaged weights, whole on every device. Collective."""
        return averaged_model(self.graphdef, replicated(self.state, self.mesh))

    def export(self, name: str, model: nnx.Module) -> None:
        """Write finished weights into the run directory."""
        if jax.process_index() == 0:
            extra = {"step": self.step, "scores": self.scores}
            save_model(Path(self.config.output) / name, model, self.config, extra)


def _prepare(config: RunConfig, system: System, batches: Any) -> _Run:
    mesh = make_mesh(config.mesh)
    check_batch_size(config.data.batch_size, config.optim.accumulate, mesh)
    optimizer = make_optimizer(config.optim, config.steps)
    make_model = functools.partial(_make_model, system, config)
    with on_mesh(mesh):
        graphdef = split_definition(make_model)

    def make() -> TrainState:
        return new_state(make_model(), optimizer, config.optim)

    state, shardings = sharded_init(make, mesh)
    step = make_step(graphdef, system.resolve("loss"), optimizer, config.optim, config.seed)
    compiled = jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))

    def step_on_mesh(state: TrainState, batch: Any) -> Any:
        with on_mesh(mesh):  # models that name the axes of their activations lay them out by it
            return compiled(state, batch)

    if batches is None:
        batches = _batches(config, system)
    return _Run(config, system, mesh, graphdef, step_on_mesh, state, shardings, batches)


def _make_model(system: System, config: RunConfig) -> nnx.Module:
    return system.resolve("model")(config.model, rngs=nnx.Rngs(config.seed))


def _batches(config: RunConfig, system: System) -> Any:
    from musicjax.data.pipeline import train_iterator

    targets = functools.partial(system.resolve("targets"), config=config.model)
    return train_iterator(
        config.data,
        targets,
        config.sample_rate,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def _check_output(config: RunConfig) -> None:
    out = Path(config.output)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"the run directory {out} cannot be made ({error.strerror}): choose another --output."
        ) from error
    before = read_run_json(out) if (out / FOLDER).is_dir() else {}
    for name in ("system", "model"):
        if name not in before:
            continue
        if change := _difference(name, before[name], to_json(getattr(config, name))):
            raise ConfigError(
                f"{out} holds a run of another {name} ({change}): to continue it, use its "
                "settings; to start anew, choose another --output."
            )


def _changes(config: RunConfig) -> list[str]:
    """What a continued run does otherwise than before, in words."""
    before, now = read_run_json(config.output), to_json(config)
    names = [n for n in ("data", "optim", "mesh", "steps", "seed") if n in before]
    return [c for n in names if (c := _difference(n, before[n], now[n]))]


def _difference(name: str, old: Any, new: Any) -> str:
    """The first setting that differs between two configs as JSON, in words; empty if none does.

    Settings that only one of them has are passed over: versions of the library may differ.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        parts = (_difference(f"{name}.{key}", old[key], new[key]) for key in old if key in new)
        return next(filter(None, parts), "")
    return "" if old == new else f"{name} was {old!r}, now {new!r}"


def _start(run: _Run, checkpoints: Checkpoints, log: RunLog) -> None:
    """Continue from the newest checkpoint, or from given weights, or from random ones."""
    if checkpoints.latest is not None:
        target = abstract_state(run.state, run.shardings)
        run.state, run.data_state, meta = checkpoints.restore(target)
        run.batches.set_state(run.data_state)
        run.step = run.saved = int(meta["step"])
        run.best = -math.inf if meta["best"] is None else meta["best"]
        log.say(f"continuing {run.config.output} from step {run.step} of {run.config.steps}")
        for change in _changes(run.config):
            log.say(f"from here on: {change}")
        return
    run.data_state = run.batches.get_state()
    if run.config.init:
        weights = read_weights(run.config.init, run.system)
        source = renamed(adapted(weights, run.system, run.config.model), run.config.init_names)
        both, report = load_matching(
            nnx.merge_state(run.state.params, run.state.model_state), source, run.config.init
        )
        params, rest = nnx.split_state(both, nnx.Param, ...)
        ema = average_start(params) if run.state.ema is not None else None
        fresh = TrainState(
            step=run.state.step,
            params=params,
            model_state=rest,
            opt_state=run.state.opt_state,
            ema=ema,
            skipped=run.state.skipped,
            skipped_in_row=run.state.skipped_in_row,
        )
        run.state = jax.device_put(fresh, run.shardings)
        log.say(str(report))


def _steps(
    run: _Run,
    checkpoints: Checkpoints,
    log: RunLog,
    signals: Signals,
    evaluate: Evaluate | None,
) -> None:
    config, meter, pending = run.config, Meter(run.config), None
    with Prefetch(run.batches, run.mesh, run.step, config.steps) as prefetch:
        while run.step < config.steps:
            try:
                batch, data_state = _next(prefetch, pending, meter)
            except Exception:
                with _keeping(run, checkpoints):
                    _finish(run, pending, meter, log)
                    if signals.received:  # Ctrl-C also ends the processes that prepare data
                        _stop(run, checkpoints, signals)
                    raise
            run.state, metrics = run.step_fn(run.state, batch)
            run.step, run.data_state = run.step + 1, data_state
            _finish(run, pending, meter, log)
            pending = (run.step, metrics)
            due = config.eval_every and run.step % config.eval_every == 0
            stop = signals.received or checkpoints.asked_to_stop(run.step)
            if due or stop or run.step % config.checkpoint.save_every == 0:
                _finish(run, pending, meter, log)
                pending = None
                if due and evaluate is not None and not stop:
                    with meter.paused(), _keeping(run, checkpoints):
                        _evaluate(run, evaluate, log)
                _save(run, checkpoints)
            if stop:
                _stop(run, checkpoints, signals)
    _finish(run, pending, meter, log)


def _stop(run: _Run, checkpoints: Checkpoints, signals: Signals) -> NoReturn:
    """Save, then say so by TrainingStopped."""
    _save(run, checkpoints)
    checkpoints.wait()
    raise TrainingStopped(
        f"training was stopped by {signals.name} after step {run.step} of {run.config.steps}; "
        f"everything is saved in {run.config.output}: run the same command again to go on.",
        signals.exit_code,
    )


def _conclude(run: _Run, checkpoints: Checkpoints, log: RunLog, evaluate: Evaluate | None) -> None:
    """The last evaluation, the final weights and the last checkpoint."""
    if evaluate is not None and run.evaluated != run.step:
        with _keeping(run, checkpoints):
            _evaluate(run, evaluate, log)
    run.export(FINAL, run.model())
    _save(run, checkpoints)


def _next(prefetch: Prefetch, pending: Any, meter: Meter) -> tuple[Any, Any]:
    """The next batch. Waiting counts as input stall only while the device is idle."""
    ready = prefetch.take(block=False)
    if ready is not None:
        return ready
    if pending is not None:
        jax.block_until_ready(pending[1])
    start = time.perf_counter()
    ready = prefetch.take(block=True)
    meter.stalled_s += time.perf_counter() - start
    return ready


def _finish(run: _Run, pending: tuple[int, Any] | None, meter: Meter, log: RunLog) -> None:
    """Read a finished step's numbers; log them if it is time; stop if training has broken."""
    if pending is None:
        return
    step, metrics = pending
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    meter.add(values)
    if values["skipped_in_row"] >= run.config.optim.max_skipped:
        raise TrainingError(
            f"the loss or gradient was not finite in {values['skipped_in_row']:.0f} steps in a row "
            f"up to step {step}; parameters are as before them. Lower --optim.lr, raise "
            "--optim.warmup_steps, or look for NaN in the training audio."
        )
    log.advance(step)
    if step % run.config.log_every == 0 or step == run.config.steps:
        log.write("train", step, meter.summary(step))


def _evaluate(run: _Run, evaluate: Evaluate, log: RunLog) -> None:
    start, model = time.perf_counter(), run.model()
    run.metrics = {k: float(v) for k, v in evaluate(model).items()}
    run.evaluated = run.step
    log.write("valid", run.step, {**run.metrics, "seconds": time.perf_counter() - start})
    checkpoint = run.config.checkpoint
    if checkpoint.metric not in run.metrics:
        raise ConfigError(
            f"checkpoint.metric is {checkpoint.metric!r}, which the evaluation does not report; it "
            f"reports {', '.join(run.metrics)}."
        )
    score = run.metrics[checkpoint.metric] * (1 if checkpoint.mode == "max" else -1)
    if score > run.best:
        run.best = score
        run.export(BEST, model)


@contextlib.contextmanager
def _keeping(run: _Run, checkpoints: Checkpoints) -> Iterator[None]:
    """Data or an evaluation that fails must not cost the steps before it."""
    try:
        yield
    except BaseException:
        # Saving takes all processes, and the others know nothing of this failure.
        if jax.process_count() == 1:
            run.evaluated = -1
            _save(run, checkpoints)
        raise


def _save(run: _Run, checkpoints: Checkpoints) -> None:
    if run.saved == run.step:
        return
    best = run.best if math.isfinite(run.best) else None
    meta = {"step": run.step, "best": best}
    checkpoints.save(run.step, run.state, run.data_state, meta, run.scores)
    run.saved = run.step
