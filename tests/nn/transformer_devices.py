"""The Transformer on eight virtual devices: what it computes there, and what it sends around."""

import json
import re
from functools import partial

import jax
import numpy as np
from flax import nnx

from musicjax.decode import GenerateConfig, generate
from musicjax.nn.forms import form
from musicjax.nn.transformer import Transformer
from musicjax.train.config import MeshConfig
from musicjax.train.mesh import batch_sharding, make_mesh, on_mesh
from musicjax.train.rules import state_shardings

SIZES = {"vocab_size": 32, "d_model": 16, "num_heads": 2, "head_dim": 4, "mlp_dim": 32}
ONE = {"num_encoder_layers": 1, "num_decoder_layers": 1}
TWO = {"num_encoder_layers": 2, "num_decoder_layers": 2}
BATCH = 8
GREEDY = GenerateConfig(max_length=6, end_tokens=(1,))


def batch(config):
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 32, (BATCH, 6)).astype(np.int32)
    if config.input_dim:
        return {"inputs": rng.normal(size=(BATCH, 10, 12)).astype(np.float32), "tokens": tokens}
    return {"inputs": rng.integers(0, 32, (BATCH, 10)).astype(np.int32), "tokens": tokens}


def logits_of(graph, state, batch):
    model = nnx.merge(graph, state)
    return model.decode(batch["tokens"], model.encode(batch["inputs"]))


def trained(graph, state, batch):
    """Loss and gradients of a batch, dropout included."""

    def loss(state):
        model = nnx.merge(graph, state)
        encoded = model.encode(batch["inputs"], train=True, key=jax.random.key(1))
        logits = model.decode(batch["tokens"], encoded, train=True, key=jax.random.key(2))
        return -jax.nn.log_softmax(logits)[..., 3].mean()

    return jax.value_and_grad(loss)(state)


def decoded(graph, state, batch):
    """The likeliest tokens, from a cache."""
    model = nnx.merge(graph, state)
    cache = model.init_cache(model.encode(batch["inputs"]), max_length=GREEDY.max_length)
    return generate(model.step, cache, GREEDY).tokens


def gathered(text):
    """How many all-gathers a compiled program holds."""
    return len(re.findall(r" all-gather(?:-start)?\(", text))


def compare(name, mesh_config, **fields):
    config = form(name, **SIZES, **fields)
    graph, state = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))
    given = batch(config)
    mesh = make_mesh(mesh_config)
    shardings = state_shardings(state, mesh, whole_below_bytes=0)
    spread, cut = jax.device_put(state, shardings), jax.device_put(given, batch_sharding(mesh))
    report = {}
    for f in (logits_of, decoded, trained):
        alone = jax.jit(partial(f, graph))(state, given)
        with on_mesh(mesh):
            compiled = jax.jit(partial(f, graph)).lower(spread, cut).compile()
        gaps = jax.tree.map(
            lambda a, b: float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()),
            jax.tree.leaves(alone),
            jax.tree.leaves(compiled(spread, cut)),
        )
        report[f.__name__] = {"gap": max(gaps), "gathered": gathered(compiled.as_text())}
        if f is decoded:
            report["kinds"] = len(np.unique(np.asarray(alone)))
    kernel = spread["encoder"]["layers"][0]["attention"]["query"]["kernel"][...]
    return report | {"query": list(kernel.sharding.spec)}


if __name__ == "__main__":
    cut = MeshConfig(data=2, fsdp=2, tensor=2)
    whole = {"dropout": 0.0}
    results = {
        "data": compare("t5.1.1", MeshConfig(), **ONE, **whole),
        "cut": compare("t5.1.1", cut, **ONE),
        "scanned": compare(
            "mt3", cut, **TWO, **whole, input_dim=12, scan_layers=True, remat="full"
        ),
        "bart": compare("bart", cut, **ONE, **whole, max_positions=16),
    }
    print("RESULTS " + json.dumps(results))
