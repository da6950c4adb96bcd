"""The training state: one explicit pytree, created sharded, saved whole."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import nnx
from jaxtyping import Array, Int

from musicjax.train.config import OptimConfig

_ADAMS_SIZE = 0.2  # root mean square of an update of Adam's, at a rate of 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that changes while training.

    `params` are the trained variables, `model_state` all others of the model (batch statistics),
    `ema` the float32 running average of the parameters (None without averaging). `skipped` counts
    steps without effect because of a non-finite loss or gradient, `skipped_in_row` the newest run
    of them.
    """

    step: Int[Array, ""]
    params: nnx.State
    model_state: nnx.State
    opt_state: Any
    ema: nnx.State | None
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]


def learning_rate(config: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then cosine to `final_fraction * lr` at `steps`, or constant."""
    warmup = min(config.warmup_steps, max(steps - 1, 0))
    if config.schedule == "constant":
        after: optax.Schedule = optax.constant_schedule(config.lr)
    else:
        after = optax.cosine_decay_schedule(
            config.lr, max(steps - warmup, 1), alpha=config.final_fraction
        )
    if not warmup:
        return after
    # The first update already moves: it uses lr / warmup, not zero.
    rise = optax.linear_schedule(config.lr / warmup, config.lr, max(warmup - 1, 1))
    return optax.join_schedules([rise, after], [warmup])


def make_optimizer(config: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm, then Adam, AdamW, Adafactor or Muon.

    AdamW lets tensors of two or more axes decay. Adafactor is T5X's: no momentum, no decay of
    weights, updates clipped to a root mean square of 1 for each tensor.
    """
    rate = learning_rate(config, steps)
    if config.name == "adamw":
        update = optax.adamw(
            rate,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        )
    elif config.name == "adafactor":
        update = optax.adafactor(
            rate,
            min_dim_size_to_factor=config.factored_from,
            decay_rate=config.decay_exponent,
        )
    elif config.name == "muon":
        update = optax.contrib.muon(
            rate,
            adam_b1=config.b1,
            adam_b2=config.b2,
            eps=config.eps,
            consistent_rms=_ADAMS_SIZE,
            muon_weight_dimension_numbers=_as_matrices,
        )
    else:
        update = optax.adam(rate, b1=config.b1, b2=config.b2, eps=config.eps)
    if not config.clip_norm:
        return update
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update)


def _as_matrices(params: Any) -> Any:
    """How Muon sees tensors: the last axis is what comes out, all others what goes in."""

    def axes(x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        last = x.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), last) if last > 0 else None

    return jax.tree.map(axes, params)


def new_state(
    model: nnx.Module, optimizer: optax.GradientTransformation, config: OptimConfig
) -> TrainState:
    """The state before the first step, from a model's variables. Pure: may be traced."""
    _, params, rest = nnx.split(model, nnx.Param, ...)
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        params=params,
        model_state=rest,
        opt_state=optimizer.init(params),
        ema=average_start(params) if config.ema_decay else None,
        skipped=zero,
        skipped_in_row=zero,
    )


def average_start(params: nnx.State) -> nnx.State:
    """A float32 copy of the parameters, the running average before the first update."""
    return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def split_definition(make_model: Callable[[], nnx.Module]) -> nnx.GraphDef:
    """The static half of a model, made without allocating its arrays."""
    graphdef, _, _ = nnx.split(nnx.eval_shape(make_model), nnx.Param, ...)
    return graphdef


def averaged_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """The model as it should be used: averaged weights if there are any, else the raw ones."""
    params = state.params
    if state.ema is not None:
        params = jax.tree.map(lambda a, p: a.astype(p.dtype), state.ema, state.params)
    return nnx.merge(graphdef, params, state.model_state, copy=True)
