"""Onsets and Frames: parity with the PyTorch port and with Magenta, labels and loss."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import musicjax.models.onsets_frames.model as module
from musicjax.errors import ConfigError, WeightsError
from musicjax.hub.pytorch import read_state_dict
from musicjax.hub.tensorflow import read_bundle
from musicjax.models.onsets_frames import SYSTEM
from musicjax.models.onsets_frames.convert import (
    RECORDS,
    convert,
    from_state_dict,
    from_variables,
)
from musicjax.models.onsets_frames.labels import targets
from musicjax.models.onsets_frames.model import OnsetsFrames, get_config, loss
from musicjax.nn import BatchNormReLU
from musicjax.notes import Notes, Pedal

FIXTURES = Path(__file__).parent.parent / "fixtures" / "onsets_frames"
PORT = get_config("tiny")
FRAME_S = 512 / 16000


def parameters(config):
    model = nnx.eval_shape(lambda: OnsetsFrames(config, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_parameter_counts():
    """The port's counts are published; the others are those of its layer table."""
    assert parameters(get_config("base")) == 26_491_256
    assert parameters(get_config("small")) == 3_204_856
    assert parameters(get_config("tiny")) == 93_328
    for tag, card in SYSTEM.cards.items():
        assert parameters(get_config(tag)) == card.parameters, tag
    assert hash(get_config("base")) == hash(get_config("port"))


def test_unknown_variants_list_the_known_ones():
    with pytest.raises(ConfigError, match="no variant 'huge'; choose one of base"):
        get_config("huge")


# Parity with the port ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted():
    weights = read_state_dict(FIXTURES / "port_tiny.pt")
    sizes = {"conv_channels": (2, 2, 4), "fc_units": 32, "lstm_units": 16, "num_pitches": 5}
    frontend = replace(PORT.frontend, num_bins=37)
    config = replace(PORT, frontend=frontend, **sizes)
    return from_state_dict(weights, config)[0]


def capture(model, features):
    """Outputs of every norm (after its ReLU), recurrence and dense layer, by our names."""
    names = {id(part): ".".join(map(str, path)) for path, part in nnx.iter_modules(model)}
    kept = {}

    def keep(call):
        def wrapped(self, *args, **kwargs):
            kept[names[id(self)]] = y = call(self, *args, **kwargs)
            return y

        return wrapped

    def keep_all(layers, inputs, mask=None):
        outputs = bilstms(layers, inputs, mask)
        kept.update({names[id(layer)]: y for layer, y in zip(layers, outputs, strict=True)})
        return outputs

    bilstms = module.bilstms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "bilstms", keep_all)
        patch.setattr("musicjax.nn.recurrent.bilstms", keep_all)
        for kind in (BatchNormReLU, nnx.Linear):
            patch.setattr(kind, "__call__", keep(kind.__call__))
        model(features)
    return kept


HEADS = {
    "onset_stack": "onset",
    "offset_stack": "offset",
    "frame_stack": "activation",
    "velocity_stack": "velocity",
}


def our_name(theirs):
    stack, _, rest = theirs.partition(".")
    if stack == "combined_stack":
        return {"0": "frame_lstm", "1": "frame_out"}[rest]
    parts = {"0.cnn.2": "norm1", "0.cnn.5": "norm2", "0.cnn.10": "norm3", "0.fc.0": "fc"}
    if rest in parts:
        return f"{HEADS[stack]}.stack.{parts[rest]}"
    last = "2" if stack in ("onset_stack", "offset_stack") else "1"
    return f"{HEADS[stack]}.{'out' if rest == last else 'lstm'}"


def test_every_layer_of_the_port(converted):
    reference = np.load(FIXTURES / "port_tiny.npz")
    graph, state = nnx.split(converted)
    ours = jax.jit(lambda state, x: capture(nnx.merge(graph, state), x))(
        state, reference["features"]
    )
    names = [name for name in reference.files if name != "features"]
    assert len(names) == 24
    for name in names:
        expected = reference[name]
        if ".cnn." in name:
            expected = expected.transpose(0, 2, 3, 1)  # channels last
        got = np.asarray(ours[our_name(name)])
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_checkpoint_tells_its_size_and_misfits_are_all_told(tmp_path):
    with pytest.raises(WeightsError, match="not those of the PyTorch port"):
        convert(FIXTURES / "reader_zip.pt")
    with pytest.raises(WeightsError, match=r"onsets_frames\.small has no foreign checkpoints"):
        convert(FIXTURES / "port_tiny.pt", "small")
    # 37 bins and 5 pitches are not what the port has, and every layer that minds is named.
    with pytest.raises(WeightsError, match=r"in 16 places.*velocity\.out\.bias is \(88,\)"):
        convert(FIXTURES / "port_tiny.pt")


def test_the_published_kind_of_file_holds_the_same():
    """A pickled module under the port's class names, which are not importable here."""
    weights = read_state_dict(FIXTURES / "port_tiny.pt")
    module_weights = read_state_dict(FIXTURES / "port_module.pt", records=RECORDS)
    assert set(module_weights) == set(weights)
    for name, array in weights.items():
        np.testing.assert_array_equal(module_weights[name], array, err_msg=name)
    with pytest.raises(WeightsError, match=r"wants onsets_and_frames\.transcriber"):
        read_state_dict(FIXTURES / "port_module.pt")


# Parity with Magenta --------------------------------------------------------------------------


def tiny_form(tag):
    config = get_config(tag)
    return replace(
        config,
        frontend=replace(config.frontend, num_bins=37),
        conv_channels=(2, 3, 4),
        fc_units=6,
        lstm_units=5,
        num_pitches=5,
    )


@pytest.mark.parametrize(("tag", "layers"), [("magenta", 24), ("paper2018", 18)])
def test_every_layer_of_magenta(tag, layers):
    """Against the network of either paper, written out in NumPy."""
    reference = np.load(FIXTURES / f"{tag}_tiny.npz")
    variables = read_bundle(FIXTURES / f"{tag}_tiny")
    model, _ = from_variables(variables, tag, tiny_form(tag))
    graph, state = nnx.split(model)
    ours = jax.jit(lambda state, x: capture(nnx.merge(graph, state), x))(
        state, reference["features"]
    )
    names = [name for name in reference.files if name != "features"]
    assert len(names) == layers
    for name in names:
        got = np.asarray(ours[name])
        np.testing.assert_allclose(got, reference[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_magenta_checkpoint_is_read_by_name_and_its_widths_are_seen():
    # 37 bins and 5 pitches are not what the form has; filters, dense layers and LSTMs fit.
    with pytest.raises(WeightsError, match=r"in 16 places.*offset\.stack\.fc\.kernel is"):
        convert(FIXTURES / "magenta_tiny.index", "magenta")
    with pytest.raises(WeightsError, match=r"no variable onsets/conv0/weights.*onsets_frames\.mag"):
        convert(FIXTURES / "paper2018_tiny", "magenta")


# Labels ---------------------------------------------------------------------------------------


def random_notes(seed, count=60, length_s=3.0):
    rng = np.random.default_rng(seed)
    onset = rng.uniform(0, length_s, count)
    return Notes.from_arrays(
        onset_s=onset,
        offset_s=onset + rng.uniform(0.005, 0.7, count),
        pitch=rng.integers(58, 64, count),
        velocity=rng.integers(1, 128, count),
    ).sorted()


def port_labels(notes, count):
    """One note after the other, as the port writes them."""
    label, velocity = np.zeros((count, 88), np.uint8), np.zeros((count, 88), np.float32)
    for on, off, pitch, v in zip(
        notes.onset_s, notes.offset_s, notes.pitch, notes.velocity, strict=True
    ):
        left, right = round(on / FRAME_S), min(count, round(off / FRAME_S))
        column = pitch - 21
        label[left : left + 1, column] = 3
        label[left + 1 : right, column] = 2
        label[right : right + 1, column] = 1
        velocity[left : max(right, left + 1), column] = v / 128
    return label, velocity


def test_labels_of_the_port():
    notes, count = random_notes(0), 100
    labels = targets(notes, 0.0, count * 512, PORT)
    state, velocity = port_labels(notes.sustained().sorted(), count)
    np.testing.assert_array_equal(labels["onset"], state == 3)
    np.testing.assert_array_equal(labels["offset"], state == 1)
    np.testing.assert_array_equal(labels["frame"], state > 1)
    np.testing.assert_allclose(labels["velocity"], velocity)
    assert labels["onset"].sum() > 30


def test_labels_of_a_clip_are_those_of_the_piece():
    notes = random_notes(1)
    whole = targets(notes, 0.0, 120 * 512, PORT)
    clip = targets(notes, 30 * FRAME_S, 50 * 512, PORT)
    for name, roll in clip.items():
        np.testing.assert_allclose(roll, whole[name][30:80], err_msg=name)


def test_labels_of_magenta():
    from note_seq import sequences_lib

    from musicjax.notes import to_note_sequence

    config = replace(PORT, labels="32ms", frame_weight=5.0)
    notes, count = random_notes(2, count=25).sustained(), 140
    labels = targets(notes, 0.0, count * 512, config)
    rolls = sequences_lib.sequence_to_pianoroll(
        to_note_sequence(notes),
        frames_per_second=1 / FRAME_S,
        min_pitch=21,
        max_pitch=108,
        onset_mode="length_ms",
        onset_length_ms=32,
        offset_length_ms=32,
        onset_upweight=5.0,
        max_velocity=int(notes.velocity.max()),
    )
    length = min(count, len(rolls.active))
    np.testing.assert_array_equal(labels["frame"][:length], rolls.active[:length])
    np.testing.assert_array_equal(labels["onset"][:length], rolls.onsets[:length])
    # The last 32 ms of a sequence are moved there in note-seq; a clip has no such end.
    np.testing.assert_array_equal(labels["offset"][: length - 3], rolls.offsets[: length - 3])
    np.testing.assert_allclose(
        (labels["velocity"] * labels["onset"])[:length], rolls.onset_velocities[:length], rtol=1e-6
    )
    np.testing.assert_allclose(labels["frame_weight"][:length], rolls.weights[:length], rtol=1e-6)


def test_the_pedal_extends_labels():
    pedal = Pedal.from_arrays([0.0, 1.0], [127, 0])
    notes = Notes.from_arrays([0.1], [0.2], [60], [64], pedal=pedal)
    frames = targets(notes, 0.0, 64 * 512, PORT)["frame"][:, 39]
    assert frames.sum() == round(1.0 / FRAME_S) - round(0.1 / FRAME_S)


def test_no_notes_give_empty_labels():
    labels = targets(Notes.from_arrays([], [], []), 0.0, 512 * 8, PORT)
    assert all(roll.shape == (8, 88) and not roll.any() for roll in labels.values())


# Loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["per_onset", "per_frame"])
def test_loss_by_its_formula(form, tiny_model, monkeypatch):
    _, config = tiny_model
    rng = np.random.default_rng(0)
    names = ("onset", "offset", "activation", "frame", "velocity")
    out = {name: rng.normal(size=(2, 6, 88)).astype(np.float32) for name in names}

    class Fixed(OnsetsFrames):
        def __init__(self):
            self.config = replace(config, velocity_loss=form, onset_weight=2.0)

        def __call__(self, features, **_):
            return module.OnsetsFramesOutput(**{k: jnp.asarray(v) for k, v in out.items()})

    label = {k: (rng.random((2, 6, 88)) < 0.1).astype(np.uint8) for k in names[:2] + names[3:4]}
    batch = {**label, "velocity": rng.random((2, 6, 88)).astype(np.float32)}
    batch["audio"] = rng.integers(-9, 9, (2, 6 * 512)).astype(np.int16)
    batch = {name: jnp.asarray(value) for name, value in batch.items()}
    total, parts = jax.jit(lambda batch: loss(Fixed(), batch, key=None))(batch)

    def entropy(name, weight=1.0):
        p, y = 1 / (1 + np.exp(-out[name].astype(np.float64))), label[name]
        return -(weight * y * np.log(p) + (1 - y) * np.log(1 - p)).mean()

    squared = label["onset"] * (np.asarray(batch["velocity"]) - out["velocity"]) ** 2
    expected = {
        "onset": entropy("onset", 2.0),
        "offset": entropy("offset"),
        "frame": entropy("frame"),
        "velocity": squared.sum() / label["onset"].sum()
        if form == "per_onset"
        else squared.sum(-1).mean(),
    }
    assert set(parts) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(total, sum(expected.values()), rtol=1e-5)


# Training heads apart ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "heads, moving",
    [
        (("onset",), {"onset"}),
        (("frame",), {"activation", "frame_lstm", "frame_out"}),
        (("offset", "velocity"), {"offset", "velocity"}),
    ],
)
def test_heads_that_are_not_trained_stay_as_they_are(heads, moving, tiny_batch, untrained):
    """Neither gradients nor batch statistics reach them, and the losses are those of the whole."""
    state, expected = untrained
    part = replace(PORT, train_heads=heads)
    graph = nnx.split(nnx.eval_shape(lambda: OnsetsFrames(part, rngs=nnx.Rngs(0))))[0]

    @jax.jit
    def train(state, batch):
        params, rest = nnx.split_state(state, nnx.Param, ...)

        def value(params):
            model = nnx.merge(graph, params, rest, copy=True)
            _, found = loss(model, batch, key=None, train=False)
            total, _ = loss(model, batch, key=jax.random.key(0), train=True)
            return total, (found, nnx.state(model, nnx.BatchStat))

        (_, kept), grads = jax.value_and_grad(value, has_aux=True)(params)
        return *kept, grads

    found, after, grads = train(state, tiny_batch)
    assert set(found) == set(heads)
    for name in heads:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)
    moved = {path[0] for path, g in nnx.to_flat_state(grads) if np.abs(g[...]).max() > 0}
    assert moved == moving
    before = dict(nnx.to_flat_state(nnx.filter_state(state, nnx.BatchStat)))
    still = [
        p[0] for p, new in nnx.to_flat_state(after) if np.array_equal(before[p][...], new[...])
    ]
    assert set(still) == {path[0] for path in before} - moving


@pytest.fixture(scope="module")
def untrained(tiny_model, tiny_batch):
    """The state of the whole, and its losses."""
    graph, state = nnx.split(tiny_model[0])
    run = jax.jit(lambda state, batch: loss(nnx.merge(graph, state), batch, key=None, train=False))
    return state, run(state, tiny_batch)[1]


@pytest.fixture(scope="module")
def tiny_batch():
    rng = np.random.default_rng(0)
    shape = (2, 16, 88)
    names = ("onset", "offset", "frame")
    batch = {name: jnp.asarray(rng.random(shape) < 0.1, jnp.uint8) for name in names}
    batch["velocity"] = jnp.asarray(rng.random(shape), jnp.float32)
    return batch | {"audio": jnp.asarray(0.1 * rng.standard_normal((2, 16 * 512)), jnp.float32)}


def test_heads_cannot_be_trained_apart_when_gradients_flow_between_them():
    with pytest.raises(ConfigError, match="stop_gradient is off"):
        replace(get_config("paper2018"), train_heads=("frame",))


def test_the_activation_has_a_loss_of_its_own_when_asked(tiny_model, tiny_batch, untrained):
    state, bare = untrained
    config = replace(PORT, activation_weight=0.5)
    graph = nnx.split(nnx.eval_shape(lambda: OnsetsFrames(config, rngs=nnx.Rngs(0))))[0]
    run = jax.jit(lambda state, batch: loss(nnx.merge(graph, state), batch, key=None, train=False))
    total, parts = run(state, tiny_batch)
    assert "activation" not in bare
    np.testing.assert_allclose(total, sum(bare.values()) + parts["activation"], rtol=1e-6)
