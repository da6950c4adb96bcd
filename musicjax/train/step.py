"""One update of the parameters: a pure function of state and batch, jitted once by the loop.

The model is split once outside; inside, it is merged from the state, so that a step costs no
graph traversal on the host and batch statistics come back as values.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from musicjax.train.config import OptimConfig
from musicjax.train.state import TrainState
from musicjax.types import Key

Batch = Mapping[str, Array]
Metrics = dict[str, Float[Array, ""]]


# `(model, batch, *, key, train) -> (scalar, dict of scalars)`, as systems define it.
Loss = Callable[..., tuple[Array, dict[str, Array]]]


def gradients(
    graphdef: nnx.GraphDef,
    loss: Loss,
    params: nnx.State,
    model_state: nnx.State,
    batch: Batch,
    key: Key,
) -> tuple[nnx.State, nnx.State, Metrics]:
    """Gradient of the loss, the model's new non-trained variables, and the loss by parts."""

    def objective(params: nnx.State) -> tuple[Array, tuple[nnx.State, Metrics]]:
        model = nnx.merge(graphdef, params, model_state, copy=True)
        value, parts = loss(model, batch, key=key, train=True)
        _, _, changed = nnx.split(model, nnx.Param, ...)
        metrics = {"loss": value, **{k: v for k, v in parts.items() if k != "loss"}}
        return value.astype(jnp.float32), (changed, metrics)

    grads, (changed, metrics) = jax.grad(objective, has_aux=True)(params)
    return grads, changed, {k: jnp.asarray(v, jnp.float32) for k, v in metrics.items()}


def accumulated_gradients(
    graphdef: nnx.GraphDef,
    loss: Loss,
    params: nnx.State,
    model_state: nnx.State,
    batch: Batch,
    key: Key,
    parts: int,
) -> tuple[nnx.State, nnx.State, Metrics]:
    """As `gradients`, averaged over `parts` micro-batches that run one after the other.

    The batch axis is cut with a stride (example i goes to micro-batch i mod parts), so that a
    batch sharded over devices is cut on each device without moving data.
    """
    if parts == 1:
        return gradients(graphdef, loss, params, model_state, batch, key)
    micro = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )

    def body(carry: tuple[Any, Any], inputs: tuple[Any, Any]) -> tuple[tuple[Any, Any], Metrics]:
        total, model_state = carry
        piece, index = inputs
        grads, model_state, metrics = gradients(
            graphdef, loss, params, model_state, piece, jax.random.fold_in(key, index)
        )
        return (
            jax.tree.map(lambda a, g: a + g.astype(a.dtype), total, grads),
            model_state,
        ), metrics

    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    (total, model_state), metrics = jax.lax.scan(
        body, (zeros, model_state), (micro, jnp.arange(parts))
    )
    grads = jax.tree.map(lambda g, p: (g / parts).astype(p.dtype), total, params)
    return grads, model_state, jax.tree.map(lambda m: jnp.mean(m, 0), metrics)


def apply_gradients(
    state: TrainState,
    grads: nnx.State,
    model_state: nnx.State,
    loss: Float[Array, ""],
    optimizer: optax.GradientTransformation,
    config: OptimConfig,
) -> tuple[TrainState, Metrics]:
    """Move the state by one step, or leave all but the counters if anything is not finite."""
    norm = optax.tree.norm(jax.tree.map(lambda g: g.astype(jnp.float32), grads))
    good = jnp.isfinite(loss) & jnp.isfinite(norm)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        decay = average_decay(config.ema_decay, state.step - state.skipped)
        ema = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p.astype(a.dtype), ema, params)

    def keep(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)

    bad = (~good).astype(jnp.int32)
    after = TrainState(
        step=state.step + 1,
        params=keep(params, state.params),
        model_state=keep(model_state, state.model_state),
        opt_state=keep(opt_state, state.opt_state),
        ema=keep(ema, state.ema),
        skipped=state.skipped + bad,
        skipped_in_row=(state.skipped_in_row + bad) * bad,
    )
    return after, {
        "grad_norm": norm,
        "skipped": after.skipped,
        "skipped_in_row": after.skipped_in_row,
    }


def average_decay(decay: float, updates: Array | int) -> Float[Array, ""]:
    """Decay of the weight average after so many updates: min(decay, (1 + t) / (10 + t)).

    Without the second term an average of .999 is mostly its random start for thousands of steps.
    """
    t = jnp.asarray(updates, jnp.float32)
    return jnp.minimum(decay, (1.0 + t) / (10.0 + t))


def make_step(
    graphdef: nnx.GraphDef,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    config: OptimConfig,
    seed: int,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The training step, not yet jitted.

    Randomness comes from the run's key folded with the step number: a resumed run repeats.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grads, model_state, metrics = accumulated_gradients(
            graphdef, loss, state.params, state.model_state, batch, key, config.accumulate
        )
        after, counted = apply_gradients(
            state, grads, model_state, metrics["loss"], optimizer, config
        )
        return after, {**metrics, **counted}

    return step
