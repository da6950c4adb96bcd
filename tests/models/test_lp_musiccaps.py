"""LP-MusicCaps: parity with torch and transformers layer by layer, then loss, then sentences."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.audio.frontend import spectrogram
from musicjax.decode import beam_search, generate
from musicjax.errors import ConfigError, DataError, WeightsError
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.lp_musiccaps import SYSTEM
from musicjax.models.lp_musiccaps.convert import config_of, convert, from_state_dict
from musicjax.models.lp_musiccaps.model import Captioner, decode, get_config, loss, targets
from musicjax.nn import shift_right

FIXTURES = Path(__file__).parent.parent / "fixtures" / "lp_musiccaps"


@pytest.fixture(scope="module")
def weights():
    return read_state_dict(FIXTURES / "tiny.pth")


@pytest.fixture(scope="module")
def model(weights):
    config = replace(config_of(weights, head_dim=8), max_tokens=14, tokenizer="bytes")
    return from_state_dict(weights, config)[0]


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURES / "tiny.npz") as file:
        arrays = {name: file[name] for name in file.files}
    arrays["audio"] = arrays["audio"].astype(np.float32)
    return arrays


def close(ours, theirs, tolerance):
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


def test_every_layer_of_the_published_network(model, reference):
    """Each convolution on what the original heard, the encoder and the logits; then from sound."""

    def run(model, audio, features, read, tokens):
        kept = [features]
        for convolution in model.convolutions:
            kept.append(jax.nn.gelu(convolution(kept[-1]), approximate=False))
        positions, _ = model.positions(features)
        encoded = model.transformer.encode(read)
        logits = model.transformer.decode(shift_right(tokens, 2), encoded)
        heard = model.activations(audio)["encoded"]
        return (
            spectrogram(audio, model.config.frontend),
            kept[1:],
            positions,
            encoded,
            logits,
            heard,
        )

    features, kept, positions, encoded, logits, heard = nnx.jit(run)(
        model,
        reference["audio"],
        jnp.asarray(reference["layer0"].swapaxes(1, 2)),
        reference["layer7"],
        jnp.asarray(reference["tokens"], jnp.int32),
    )
    for number, layer in enumerate(kept, start=1):
        theirs = reference[f"layer{number}"].swapaxes(1, 2)
        scale = np.abs(theirs).max()
        close(layer / scale, theirs / scale, 1e-5)
    scale = np.abs(reference["layer7"]).max()
    close(positions / scale, reference["layer7"] / scale, 1e-5)
    close(encoded, reference["encoded"], 1e-5)
    close(logits, reference["logits"], 1e-4)
    # A real part near zero has decibels that hang on its last bits.
    close(features, reference["layer0"].swapaxes(1, 2), 2e-3)
    close(heard, reference["encoded"], 1e-3)


def test_the_loss_is_the_published_one(model, reference):
    """Torch's smoothed cross-entropy, less the entropy of the smoothed label."""
    batch = {"audio": reference["audio"], "tokens": jnp.asarray(reference["tokens"], jnp.int32)}
    batch["left_out"] = jnp.zeros(len(batch["audio"]), jnp.uint8)
    ours, parts = nnx.jit(lambda m, b: loss(m, b, key=None, train=False))(model, batch)
    classes = model.config.transformer.vocab_size
    share = 0.1 / classes
    entropy = -(0.9 + share) * np.log(0.9 + share) - (classes - 1) * share * np.log(share)
    close(ours, reference["cost"] - entropy, 1e-4)
    assert set(parts) == {"tokens", "left_out"}


def test_sentences_are_those_of_transformers(model, reference):
    """Greedy and by five beams, with the rules of the published config."""
    settings = model.rules(max_length=13)

    @nnx.jit
    def both(model, audio):
        cache = model.prefill(audio, None, 13)
        greedy = generate(model.step, cache, settings)
        return greedy.tokens, beam_search(model.step, cache, settings, model.beams(5)).tokens[:, 0]

    greedy, beams = both(model, reference["audio"])
    np.testing.assert_array_equal(greedy, reference["greedy"][:, 1:])
    np.testing.assert_array_equal(beams, reference["beams"][:, 1:])


def test_published_sizes(weights):
    """Shapes of the published state dict, by its own names; the count is that of the card."""
    config = get_config("base")
    whole = nnx.eval_shape(lambda: Captioner(config, rngs=nnx.Rngs(0)))
    state = nnx.state(whole, nnx.Param)
    shapes = {".".join(map(str, k)): v.get_value().shape for k, v in nnx.to_flat_state(state)}
    assert shapes["convolutions.0.kernel"] == (3, 128, 768)
    assert shapes["convolutions.5.kernel"] == (3, 768, 768)
    assert shapes["transformer.token_embedder.embedding"] == (50_265, 768)
    assert shapes["transformer.decoder.position_embedder.embedding"] == (1026, 768)
    assert shapes["transformer.decoder.layers.5.mlp.wi.kernel"] == (768, 3072)
    found = config_of(weights, head_dim=8)
    assert found.strides == config.strides and found.transformer.num_heads == 3
    # BART-base has 139,420,416, and its head a bias of 50,265 that is not trained there.
    convolutions = 768 * (3 * 128 + 1) + 5 * 768 * (3 * 768 + 1)
    assert SYSTEM.cards["base"].parameters == 139_420_416 + 50_265 + convolutions


def test_checkpoints_of_distributed_runs_and_of_others(weights, model):
    config = model.config
    again, _ = from_state_dict({f"module.{n}": a for n, a in weights.items()}, config)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(model))
    with pytest.raises(WeightsError, match=r"no audio_encoder\.conv1\.weight and no bart"):
        from_state_dict({"encoder.weight": np.zeros(3)})
    broken = dict(weights)
    broken["bart.model.decoder.layers.1.fc9.weight"] = broken.pop("audio_encoder.conv1.bias")
    with pytest.raises(WeightsError, match=r"fc9.*by no rule.*convolutions\.0\.bias .* by nothing"):
        from_state_dict(broken, config)
    with pytest.raises(WeightsError, match=r"small has no foreign checkpoints"):
        convert(FIXTURES / "tiny.pth", "small")


def test_targets_and_their_sentences():
    config = get_config("tiny")
    text = "A calm piano piece with few notes."
    row = targets(text, 0.0, 16_000, config)["tokens"]
    assert row.shape == (40,) and row[0] == 0 and list(row).count(2) == 1
    assert decode({"tokens": row[None]}, config) == [text]
    assert decode({"encoded": np.zeros((3, 32))}, config) == []
    t5 = replace(config, transformer=get_config("tiny_t5").transformer)
    row = targets(text, 0.0, 16_000, t5)["tokens"]
    assert row[0] >= 4 and list(row).count(1) == 1 and row[-1] == 0
    with pytest.raises(DataError, match=r"shape \(2, 3, 4\); expected"):
        decode({"tokens": np.zeros((2, 3, 4))}, config)


def test_a_sentence_that_is_too_long_is_left_out_whole_and_counted():
    config = replace(get_config("tiny"), max_tokens=8)
    rows = [targets(text, 0.0, 4000, config) for text in ("a soft low piano.", "a " * 9)]
    assert [int(row["left_out"]) for row in rows] == [0, 1]
    assert set(rows[1]["tokens"]) == {config.transformer.pad_id}
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch["audio"] = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (2, 4000)), jnp.float32)
    graph, state = nnx.split(nnx.jit(lambda: Captioner(config, rngs=nnx.Rngs(0)))())
    cost = jax.jit(lambda state, b: loss(nnx.merge(graph, state), b, key=None, train=False))
    total, parts = cost(state, batch)
    assert parts["left_out"] == 0.5
    swapped = batch | {"audio": batch["audio"].at[1].set(0.0)}
    np.testing.assert_allclose(cost(state, swapped)[0], total, rtol=1e-5)


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="bytes has 260 ids and the model 128"):
        targets("calm", 0.0, 1, replace(get_config("tiny"), tokenizer="bytes"))
    with pytest.raises(ConfigError, match="no variant 'huge'; choose one of base"):
        get_config("huge")
    with pytest.raises(ConfigError, match="max_tokens is 2000, but the decoder learns 1024"):
        replace(get_config("base"), max_tokens=2000)
    with pytest.raises(ConfigError, match="max_tokens is 2; a sentence"):
        replace(get_config("tiny"), max_tokens=2)


def test_t5s_form_learns_two_sentences():
    """Some steps on two clips: the loss falls, and what is written is what was said."""
    import optax

    rng = np.random.default_rng(0)
    time = np.arange(4000) / 16_000
    audio = np.stack([np.sin(2 * np.pi * 200 * time), rng.normal(scale=0.3, size=4000)])
    said = ["a soft low piano.", "a loud busy piece."]
    config = replace(get_config("tiny_t5"), max_tokens=10)
    rows = [targets(text, 0.0, 4000, config) for text in said]
    batch = {name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]}
    batch["audio"] = jnp.asarray(audio, jnp.float32)
    graph, state = nnx.split(nnx.jit(lambda: Captioner(config, rngs=nnx.Rngs(0)))())
    optimizer = optax.adam(1e-2)

    def learn(carry, _):
        def cost(state):
            return loss(nnx.merge(graph, state), batch, key=None, train=False)[0]

        value, gradient = jax.value_and_grad(cost)(carry[0])
        change, memory = optimizer.update(gradient, carry[1])
        return (optax.apply_updates(carry[0], change), memory), value

    @jax.jit
    def learned(state):
        (state, _), costs = jax.lax.scan(learn, (state, optimizer.init(state)), None, length=60)
        model = nnx.merge(graph, state)
        cache = model.prefill(batch["audio"], None, 9)
        return costs, generate(model.step, cache, model.generation).tokens

    costs, tokens = learned(state)
    assert costs[-1] < costs[0] / 4
    assert decode({"tokens": np.asarray(tokens)}, config) == [
        "A soft low piano.",
        "A loud busy piece.",
    ]
