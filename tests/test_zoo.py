"""One sweep over every system of the registry, at its tiny size.

A new system is tested here without a line of new code: only the parts that `registry.System` names
are used, and the protocol that they share: `Model(config, rngs=)`, `model(features, mask=)`,
`model.activations(audio)`, `config.frontend`, `config.policy`.
"""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax import registry
from musicjax.audio import Audio
from musicjax.types import Policy

SYSTEMS = sorted(registry.systems())


def symbols(task):
    """A little of what a system of that task writes down: its training truth."""
    if task in ("transcribe", "pitch"):
        from musicjax.notes import Notes

        return Notes.from_arrays([0.05, 0.1, 0.2], [0.3, 0.15, 0.5], [60, 64, 67], [40, 80, 120])
    if task == "caption":
        return "A calm piano piece with few notes."
    raise NotImplementedError(f"say here what the truth of a {task} system looks like")


def build(config, system):
    """A model with random numbers everywhere, running statistics too, cheaper than its own init."""
    make = system.resolve("model")
    graph, abstract = nnx.split(nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(0)
    leaves = []
    for keys, variable in nnx.to_flat_state(abstract):
        spec = variable.get_value()
        if isinstance(variable, nnx.RngState):
            fresh = jax.random.key(0) if isinstance(variable, nnx.RngKey) else jnp.uint32(0)
            leaves.append((keys, variable.replace(fresh)))
            continue
        if len(spec.shape) > 1:
            values = rng.normal(size=spec.shape) / np.sqrt(np.prod(spec.shape[:-1]))
        else:
            centre = float(keys[-1] in ("scale", "var"))
            values = rng.uniform(centre - 0.2, centre + 0.2, spec.shape)
        leaves.append((keys, variable.replace(jnp.asarray(values, spec.dtype))))
    return graph, nnx.from_flat_state(leaves)


def make_batch(system, config, size, seconds):
    """Noise with the targets of `symbols`, as the trainer gets them."""
    rate = config.frontend.sample_rate
    count = round(seconds * rate)
    labels = system.resolve("targets")(symbols(system.task), 0.0, count, config)
    batch = {name: jnp.asarray(np.stack([roll] * size)) for name, roll in labels.items()}
    audio = np.random.default_rng(1).normal(scale=3000, size=(size, count))
    return {"audio": jnp.asarray(audio.astype(np.int16)), **batch}


def training_step(system, graph):
    """(state, batch, key) -> (loss, parts, gradients), to be jitted."""
    loss = system.resolve("loss")

    def step(state, batch, key):
        params, rest = nnx.split_state(state, nnx.Param, ...)

        def value(params):
            model = nnx.merge(graph, params, rest, copy=True)
            return loss(model, batch, key=key, train=True)

        (total, parts), gradients = jax.value_and_grad(value, has_aux=True)(params)
        return total, parts, gradients

    return step


@pytest.fixture(scope="module", params=SYSTEMS)
def zoo(request):
    """The system, its tiny config, its split model and the jitted functions of the sweep."""
    system = registry.find_system(request.param)
    config = system.resolve("config")("tiny")
    graph, state = build(config, system)
    heard = jax.jit(lambda state, audio: nnx.merge(graph, state).activations(audio))
    rate = config.frontend.sample_rate
    audio = np.random.default_rng(2).normal(scale=0.1, size=(2, rate // 2)).astype(np.float32)
    return SimpleNamespace(
        system=system, config=config, graph=graph, state=state, heard=heard, audio=audio
    )


def written(model, audio):
    """What a model that writes tokens makes of a recording."""
    from musicjax.infer import SequenceRunner, hear

    runner = SequenceRunner(model, slots=2, grammar=model.grammar)
    rate = model.config.frontend.sample_rate
    (heard,) = hear(runner, [Audio(audio, rate)], rate)
    assert heard.error is None
    return heard.activations


def close(a, b, tolerance=1e-5):
    def compare(x, y):
        np.testing.assert_allclose(np.float32(x), np.float32(y), rtol=tolerance, atol=tolerance)

    jax.tree.map(compare, a, b)


def finite(tree):
    return all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(tree))


def test_every_tag_has_a_config_and_a_complete_card(zoo):
    assert zoo.system.cards
    for tag, card in zoo.system.cards.items():
        config = zoo.system.resolve("config")(tag)
        assert hash(config) == hash(zoo.system.resolve("config")(tag))
        assert card.sample_rate == config.frontend.sample_rate
        make = zoo.system.resolve("model")
        model = nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0)))  # noqa: B023 - called here
        count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        assert card.parameters == count, tag
        assert card.summary and card.paper and card.licence and card.training_data


def test_init_is_finite_and_repeats(zoo):
    make = zoo.system.resolve("model")
    init = jax.jit(lambda key: nnx.state(make(zoo.config, rngs=nnx.Rngs(key))))
    # These draws compile in no time; the usual ones take up to twenty seconds a model.
    keys = (jax.random.key(seed, impl="unsafe_rbg") for seed in (3, 3, 4))
    state, again, other = (init(key) for key in keys)
    assert finite(state)
    assert jax.tree.structure(state) == jax.tree.structure(zoo.state)
    close(state, again, 0)
    leaves = zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)


def test_activations_are_finite_and_decode(zoo):
    heard = zoo.heard(zoo.state, zoo.audio)
    assert finite(heard)
    for name, roll in heard.items():
        assert roll.shape[0] == len(zoo.audio), name
        assert roll.dtype == jnp.float32, name
    model = nnx.merge(zoo.graph, zoo.state)
    if hasattr(model, "hear"):  # it decides in segments, which its own tests read
        return
    heard = {name: np.asarray(roll[0]) for name, roll in heard.items()}
    if hasattr(model, "prefill"):  # it writes tokens, one segment after the other
        heard = written(model, zoo.audio[0])
    zoo.system.resolve("decode")(heard, zoo.config)


def test_jit_equals_eager(zoo):
    audio = jnp.asarray(zoo.audio[:, : zoo.audio.shape[1] // 3])
    eager = nnx.merge(zoo.graph, zoo.state).activations(audio)
    close(eager, zoo.heard(zoo.state, audio))


def test_an_item_does_not_hear_its_batch(zoo):
    close(
        jax.tree.map(lambda roll: roll[:1], zoo.heard(zoo.state, zoo.audio)),
        zoo.heard(zoo.state, zoo.audio[:1]),
    )


def test_padding_is_not_heard(zoo):
    frames, shape = 9, getattr(zoo.config, "feature_shape", (zoo.config.frontend.num_bins,))
    rng = np.random.default_rng(3)
    features = rng.normal(size=(2, frames, *shape)).astype(np.float32)
    padding = 100 * rng.normal(size=(2, 5, *shape)).astype(np.float32)
    mask = np.arange(frames + 5) < np.full((2, 1), frames)
    run = jax.jit(lambda state, x, mask: nnx.merge(zoo.graph, state)(x, mask=mask))
    alone = run(zoo.state, features, None)
    padded = run(zoo.state, np.concatenate([features, padding], 1), mask)
    close(jax.tree.map(lambda roll: roll[:, :frames], padded), alone)


def test_bfloat16_runs_and_hears_about_the_same(zoo):
    config = dataclasses.replace(zoo.config, policy=Policy(dtype="bfloat16"))
    graph = nnx.split(
        nnx.eval_shape(lambda: zoo.system.resolve("model")(config, rngs=nnx.Rngs(0)))
    )[0]
    heard = jax.jit(lambda state, audio: nnx.merge(graph, state).activations(audio))(
        zoo.state, zoo.audio
    )
    assert all(roll.dtype == jnp.float32 for roll in heard.values())
    close(heard, zoo.heard(zoo.state, zoo.audio), 0.05)


def test_gradients_are_finite_and_reach_every_parameter(zoo):
    batch = make_batch(zoo.system, zoo.config, 2, 0.5)
    step = jax.jit(training_step(zoo.system, zoo.graph))
    for seed in range(3):
        total, parts, gradients = step(zoo.state, batch, jax.random.key(seed))
        assert finite((total, parts, gradients))
    assert step._cache_size() == 1, "a second call with the same shapes compiled again"
    close(total, sum(parts.values()))
    assert total.dtype == jnp.float32
    silent = [
        ".".join(map(str, keys))
        for keys, gradient in nnx.to_flat_state(gradients)
        if not np.any(np.asarray(gradient.get_value()))
    ]
    # The bias of a convolution before batch statistics has no effect, and so no gradient.
    assert all("conv" in name and name.endswith("bias") for name in silent), silent


def test_a_saved_model_comes_back_the_same(zoo, tmp_path):
    from musicjax.hub import load_model, save_weights

    path = tmp_path / "model.safetensors"
    model = nnx.merge(zoo.graph, zoo.state)
    save_weights(path, model, zoo.config, system=zoo.system.name, dtype="float32")
    loaded = load_model(path)
    assert loaded.config == zoo.config
    assert loaded.system.name == zoo.system.name
    close(nnx.state(loaded.model), zoo.state, 0)


def test_eight_devices_give_what_one_gives(zoo):
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": "8",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path.cwd()), os.getenv("PYTHONPATH")])),
    }
    run = subprocess.run(
        [sys.executable, __file__, zoo.system.name],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout.splitlines()[-1])
    assert report["devices"] == 8
    assert report["batch_shards"] == 8
    # Devices add up the same numbers in another order. Of a mean float32 keeps six digits then, and
    # three or more of a gradient through a dozen batch norms, which subtract large numbers.
    assert report["loss_difference"] < 2e-6
    assert report["largest_gradient_difference"] < 5e-4


def compare_devices(name):
    """Loss and gradients of one batch on one device and sharded over all; prints differences."""
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    system = registry.find_system(name)
    config = system.resolve("config")("tiny")
    graph, state = build(config, system)
    step = jax.jit(training_step(system, graph))
    batch = make_batch(system, config, 8, 0.25)
    one = step(state, batch, jax.random.key(0))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    split = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    many = step(state, split, jax.random.key(0))

    def furthest(a, b, floor):
        """The largest difference in any tensor, as a part of that tensor's largest number.

        Tensors whose numbers lie below `floor` of the largest of all count as if they reached that.
        """
        pairs = list(zip(*(map(np.asarray, jax.tree.leaves(t)) for t in (a, b)), strict=True))
        least = floor * max(np.abs(x).max() for x, _ in pairs)
        return float(max(np.abs(x - y).max() / max(np.abs(x).max(), least) for x, y in pairs))

    report = {
        "devices": jax.device_count(),
        "batch_shards": len(split["audio"].addressable_shards),
        "loss_difference": furthest(one[:2], many[:2], 1.0),
        "largest_gradient_difference": furthest(one[2], many[2], 1e-3),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    compare_devices(sys.argv[1])
