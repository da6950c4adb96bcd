"""Eight virtual devices: what the step computes on them, printed as one JSON line."""

import functools
import json

import jax
import numpy as np
from flax import nnx
from little_system import Batches, Little, LittleConfig, loss

from musicjax.train.config import MeshConfig, OptimConfig
from musicjax.train.mesh import make_mesh, on_mesh, put_batch, sharded_init
from musicjax.train.state import make_optimizer, new_state, split_definition
from musicjax.train.step import apply_gradients, gradients, make_step

# A bias before batch norm has a gradient of rounding errors, which a small eps would blow up.
OPTIM = OptimConfig(lr=1e-2, warmup_steps=0, name="adamw", eps=1e-3)
STEPS = 3


def numbers(state, metrics):
    flat = np.concatenate([np.ravel(x) for x in jax.tree.leaves((state.params, state.ema))])
    return {"loss": float(np.ravel(metrics["loss"])[0]), "values": flat.tolist()}


def sharded(model, mesh_config, devices=None, accumulate=1):
    mesh = make_mesh(mesh_config, devices)
    config = OptimConfig(**{**vars(OPTIM), "accumulate": accumulate})
    optimizer = make_optimizer(config, 100)
    with on_mesh(mesh):
        graphdef = split_definition(lambda: Little(model, rngs=nnx.Rngs(0)))
    state, shardings = sharded_init(
        lambda: new_state(Little(model, rngs=nnx.Rngs(0)), optimizer, config),
        mesh,
        whole_below_bytes=4096 if model.annotated else 4 * 2**20,
    )
    step = jax.jit(
        make_step(graphdef, loss, optimizer, config, 0),
        donate_argnums=0,
        out_shardings=(shardings, None),
    )
    batches = Batches(16)
    for _ in range(STEPS):
        state, metrics = step(state, put_batch(next(batches), mesh))
    kernel = "first"
    return numbers(state, metrics) | {
        "compiles": step._cache_size(),
        "params": list(state.params[kernel].kernel[...].sharding.spec),
        "ema": list(state.ema[kernel].kernel[...].sharding.spec),
        "moments": sorted(
            {
                tuple(x.sharding.spec)
                for x in jax.tree.leaves(state.opt_state)
                if x.shape == state.params[kernel].kernel.shape
            }
        ),
    }


def replicated_by_pmap(model):
    optimizer = make_optimizer(OPTIM, 100)
    state = new_state(Little(model, rngs=nnx.Rngs(0)), optimizer, OPTIM)
    graphdef = split_definition(lambda: Little(model, rngs=nnx.Rngs(0)))

    @functools.partial(jax.pmap, axis_name="data")
    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(0), state.step)
        grads, rest, metrics = gradients(
            graphdef, loss, state.params, state.model_state, batch, key
        )
        grads, metrics = jax.lax.pmean((grads, metrics), "data")
        after, _ = apply_gradients(state, grads, rest, metrics["loss"], optimizer, OPTIM)
        return after, metrics

    many = jax.tree.map(lambda x: np.stack([x] * 8), state)
    batches = Batches(16)
    for _ in range(STEPS):
        batch = {k: v.reshape(8, 2, *v.shape[1:]) for k, v in next(batches).items()}
        many, metrics = step(many, batch)
    return numbers(jax.tree.map(lambda x: x[0], many), metrics)


if __name__ == "__main__":
    plain, full = LittleConfig(norm=False, noise=0.0), LittleConfig()
    named = LittleConfig(annotated=True)
    results = {
        "pmap": replicated_by_pmap(plain),
        "plain": sharded(plain, MeshConfig()),
        "one": sharded(full, MeshConfig(), jax.devices()[:1]),
        "eight": sharded(full, MeshConfig()),
        "parts_one": sharded(full, MeshConfig(), jax.devices()[:1], accumulate=2),
        "parts_eight": sharded(full, MeshConfig(), accumulate=2),
        "cut": sharded(named, MeshConfig(data=2, fsdp=2, tensor=2)),
    }
    print("RESULTS " + json.dumps(results))
