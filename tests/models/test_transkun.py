"""Transkun: parity with the authors' package at tiny width, stitching, labels and loss."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.decode.semicrf import best_intervals, follow, log_partition, marginals
from musicjax.errors import ConfigError, DataError, WeightsError
from musicjax.hub import LoadedModel
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.transkun import SYSTEM
from musicjax.models.transkun.config import TranskunConfig, get_config, label_room
from musicjax.models.transkun.convert import convert, from_state_dict
from musicjax.models.transkun.events import EventReader, decode
from musicjax.models.transkun.labels import targets
from musicjax.models.transkun.model import (
    Transkun,
    continuous_bernoulli_log_prob,
    continuous_bernoulli_mean,
    loss,
)
from musicjax.notes import Notes, Pedal
from musicjax.tasks.transcribe import Transcriber

FIXTURES = Path(__file__).parent.parent / "fixtures" / "transkun"
TINY = get_config("tiny")
FRAME_S = 512 / 16000
SYMBOLS = (0, 1, 2, 41, 89)


@pytest.fixture(scope="module")
def theirs():
    with np.load(FIXTURES / "tiny.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def model():
    return from_state_dict(read_state_dict(FIXTURES / "tiny.pt"), TINY)[0]


@pytest.fixture(scope="module")
def found(model, theirs):
    """All that is compared for one segment, by one compiled program."""

    @jax.jit
    def run(audio):
        features = model.features(audio)
        context = model.encode(features)
        scores = model.scores(context)
        return {
            "features": features[0],
            "context": context[0],
            "best": best_intervals(scores),
            "log_partition": log_partition(scores),
            "marginals": marginals(scores),
        }

    return run(theirs["mono"][None, : 4 * 16000] / np.float32(32768))


def test_parameters_and_variants():
    make = nnx.eval_shape(lambda: Transkun(get_config("v2"), rngs=nnx.Rngs(0)))
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(make, nnx.Param)))
    assert count == 13_613_711 == SYSTEM.cards["v2"].parameters
    with pytest.raises(ConfigError, match="no variant 'v3'; choose v2, small or tiny"):
        get_config("v3")
    with pytest.raises(ConfigError, match="segments must overlap"):
        TranskunConfig(segment_hop_s=16.0)


# Parity with the authors' package --------------------------------------------------------------


def test_features_of_one_channel_and_of_two(model, found, theirs):
    # The package's filterbank is rounded to float32 before its sides are drawn.
    np.testing.assert_allclose(found["features"], theirs["features"], atol=2e-5)
    stereo = jnp.asarray(theirs["stereo"][None] / np.float32(32768))
    features = jax.jit(model.features)(stereo)
    np.testing.assert_allclose(features[0], theirs["stereo_features"], atol=2e-5)


def test_contexts(found, theirs):
    context = found["context"][np.array(SYMBOLS)]
    np.testing.assert_allclose(context, theirs["context"], rtol=1e-4, atol=1e-4)


def test_best_intervals_and_partition(found, theirs):
    best = found["best"]
    paths = follow(np.asarray(best.next_end), np.asarray(best.single))
    rows = [(s, *pair) for s, path in enumerate(paths) for pair in path]
    np.testing.assert_array_equal(rows, theirs["intervals"])
    assert len(rows) > 200
    np.testing.assert_allclose(found["log_partition"], theirs["log_partition"], rtol=1e-4)


def test_marginals_are_the_gradient_of_log_z(found, theirs):
    np.testing.assert_allclose(found["marginals"].start, theirs["start"], atol=5e-4)
    np.testing.assert_allclose(found["marginals"].end, theirs["end"], atol=5e-4)


def transcribed(model, samples):
    loaded = LoadedModel(model, model.config, None, "tiny", SYSTEM)
    return Transcriber(loaded, batch_size=2).transcribe(samples, 16000)


def test_notes_of_a_recording_of_several_segments(model, theirs):
    result = transcribed(model, theirs["mono"])
    want = theirs["notes"]
    keys = want[want[:, 2] > 0]
    keys = keys[np.lexsort((keys[:, 2], keys[:, 1], keys[:, 0]))]
    order = np.lexsort((result.notes.pitch, result.notes.offset_s, result.notes.onset_s))
    notes = result.notes[order]
    np.testing.assert_allclose(notes.onset_s, keys[:, 0], atol=1e-4)
    np.testing.assert_allclose(notes.offset_s, keys[:, 1], atol=1e-4)
    np.testing.assert_array_equal(notes.pitch, keys[:, 2])
    np.testing.assert_array_equal(notes.velocity, np.maximum(keys[:, 3], 1))
    pedals = want[want[:, 2] < 0]
    down = result.notes.pedal[result.notes.pedal.value > 0]
    np.testing.assert_allclose(np.sort(down.time_s), np.sort(pedals[:, 0]), atol=1e-4)
    assert len(keys) > 100 and len(pedals) > 2
    sureness, number = (result.activations[name] for name in ("sureness", "number"))
    assert result.confidence == pytest.approx(float(sureness[number >= 0].mean()), rel=1e-5)
    assert 1 / 128 < sureness.min() < sureness.max() < 1


def test_log_likelihood_of_notes(model, theirs):
    """The package's figure for the truth of `make_tiny.py`, symbols added up."""
    notes = Notes.from_arrays(
        [0.1, 0.62, 0.5, -0.3, 3.0], [0.62, 0.63, 2.0, 1.0, 4.5], [60, 60, 64, 67, 72],
        [70, 30, 90, 20, 100],
        pedal=Pedal.from_arrays(
            [0.4, 1.7, 1.7, 1.71, -1.0, 3.9999], [127, 0] * 3, [64, 64, 64, 64, 67, 67]
        ),
    )  # fmt: skip
    labels = targets(notes, 0.0, 64000, TINY)
    # Theirs is released at the very end of the clip, and inside it.
    batch = {"audio": theirs["mono"][None, :64000], **{k: v[None] for k, v in labels.items()}}
    total, parts = jax.jit(lambda b: loss(model, b, key=None, train=False))(batch)
    assert float(total) == pytest.approx(-theirs["log_likelihood"].sum() / 4.0, rel=1e-4)
    assert float(total) == pytest.approx(sum(float(p) for p in parts.values()), rel=1e-5)


def test_files_of_other_networks_are_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no entry backbone\.upConv1dSkip\.weight"):
        from_state_dict({"a.weight": np.zeros((2, 2), np.float32)})
    with pytest.raises(WeightsError, match=r"do not fit the model in \d+ places"):
        from_state_dict(read_state_dict(FIXTURES / "tiny.pt"))
    with pytest.raises(WeightsError, match=r"convert with --model transkun\.v2"):
        convert(FIXTURES / "tiny.pt", "tiny")


# Times inside a frame --------------------------------------------------------------------------


def test_continuous_bernoulli_by_integration():
    logits = jnp.asarray([-9.0, -1.0, -0.11, -0.09, 0.0, 0.05, 0.3, 4.0])
    x = jnp.linspace(0.0, 1.0, 20_001)
    density = jnp.exp(continuous_bernoulli_log_prob(*jnp.broadcast_arrays(logits[:, None], x)))
    np.testing.assert_allclose(jnp.trapezoid(density, x), 1.0, atol=1e-4)
    np.testing.assert_allclose(
        jnp.trapezoid(x * density, x), continuous_bernoulli_mean(logits), atol=1e-4
    )


# Stitching -------------------------------------------------------------------------------------


def events(*rows):
    """number, onset, offset, velocity, has onset, has offset of each event."""
    names = ("number", "onset_s", "offset_s", "velocity", "has_onset", "has_offset")
    return {n: np.array(column) for n, column in zip(names, zip(*rows, strict=True), strict=True)}


def spans(notes):
    return [(n.pitch, round(n.onset_s, 3), round(n.offset_s, 3), n.velocity) for n in notes]


def test_a_note_cut_at_a_border_is_joined():
    found = decode(events((60, 1.0, 8.0, 70, True, False), (60, 7.9, 9.0, 99, False, True)), TINY)
    assert spans(found) == [(60, 1.0, 9.0, 70)]


def test_what_the_later_segment_hears_begin_replaces():
    found = decode(events((60, 1.0, 2.0, 70, True, True), (60, 1.5, 3.0, 80, True, True)), TINY)
    assert spans(found) == [(60, 1.5, 3.0, 80)]


def test_ends_without_beginning_and_beginnings_without_end_are_left_out():
    rows = (
        (60, 0.0, 1.0, 70, False, True),
        (60, 2.0, 3.0, 71, True, False),
        (60, 4.0, 5.0, 72, True, True),
        (64, 6.0, 7.0, 73, True, False),
    )
    # The last event of a key is kept: the recording ended before it did.
    assert spans(decode(events(*rows), TINY)) == [(60, 4.0, 5.0, 72), (64, 6.0, 7.0, 73)]


def test_pedals_become_controller_events_and_short_notes_can_go():
    rows = (
        (-64, 1.0, 2.0, 127, True, True),
        (-64, 2.0, 2.5, 127, True, True),
        (-67, 0.5, 3.0, 100, True, True),
        (60, 1.0, 1.01, 0, True, True),
    )
    found = decode(events(*rows), TINY)
    assert spans(found) == [(60, 1.0, 1.01, 1)]
    sustain = found.pedal[found.pedal.number == 64]
    assert sustain.value.tolist() == [127, 0, 127, 0]
    assert sustain.time_s.tolist() == [1.0, 2.0, 2.0, 2.5]
    assert found.pedal[found.pedal.number == 67].value.tolist() == [100, 0]
    assert len(decode(events(*rows), TINY, min_duration_s=0.05)) == 0


def test_nothing_heard_is_no_notes():
    empty = {name: column[:0] for name, column in events((60, 0.0, 1.0, 1, True, True)).items()}
    assert len(decode(empty, TINY)) == 0


def test_a_reader_goes_on_where_the_segment_before_ended():
    reader = EventReader(TINY, 64000, 32256, 32000)  # a hop of 63 frames
    count = TINY.num_symbols
    next_end, single = np.full((count, 126), -1), np.zeros((count, 126), bool)
    next_end[41, [70, 100]] = 100, 110
    next_end[41, 30] = 65  # before the silence ends: not read
    found = reader.intervals(next_end, single)
    rows = [tuple(map(int, row)) for row in zip(*found, strict=True)]
    assert rows == [(41, 70, 100), (41, 100, 110)]
    heard = reader.events(
        found, np.array([50, 60]), np.zeros((2, 2)), np.ones((2, 2)), np.array([0.2, 0.1])
    )
    np.testing.assert_allclose(heard["sureness"], [0.2, 0.1])
    np.testing.assert_allclose(heard["onset_s"], np.array([70, 100]) * FRAME_S - 2.0)
    next_end[:] = -1
    next_end[41, [40, 47]] = 46, 90  # 110 - 63 = 47
    assert [int(x[0]) for x in reader.intervals(next_end, single)] == [41, 47, 90]


# Labels ----------------------------------------------------------------------------------------


def rows_of(labels):
    keep = labels["exists"] > 0
    names = ("symbol", "start", "end", "velocity")
    return [tuple(int(labels[n][k]) for n in names) for k in np.flatnonzero(keep)]


def test_labels_of_a_clip():
    notes = Notes.from_arrays(
        [0.9, 1.1, 1.3, 5.0], [1.25, 1.5, 9.0, 6.0], [60, 64, 60, 60], [10, 20, 30, 40],
        pedal=Pedal.from_arrays([1.2, 1.4], [127, 0], 64),
    )  # fmt: skip
    labels = targets(notes, 1.0, 32000, TINY)
    assert labels["symbol"].shape == (label_room(32000, TINY),)
    assert rows_of(labels) == [(0, 6, 12, 127), (41, 0, 8, 10), (41, 9, 62, 30), (45, 3, 16, 20)]
    inside = labels["inside"][labels["exists"] > 0].tolist()
    assert inside == [[1, 1], [0, 1], [1, 0], [1, 1]]
    exact = labels["start"][2] + labels["shift"][2, 0]
    assert exact * FRAME_S == pytest.approx(0.3)


def test_notes_that_frames_cannot_tell_apart_become_one():
    notes = Notes.from_arrays(
        [1.0, 1.001, 1.1, 1.2], [1.001, 1.002, 1.2, 1.3], [60, 60, 64, 64], [10, 20, 30, 40]
    )
    labels = targets(notes, 0.0, 32000, TINY)
    assert rows_of(labels) == [(41, 31, 31, 10), (45, 34, 38, 30), (45, 38, 41, 40)]


def test_a_key_struck_again_ends_its_note():
    notes = Notes.from_arrays([0.1, 0.5], [1.0, 0.8], [60, 60])
    labels = targets(notes, 0.0, 32000, TINY)
    assert [row[1:3] for row in rows_of(labels)] == [(3, 16), (16, 25)]


def test_too_many_events_are_an_error():
    onset = np.arange(0, 2, 0.002)
    notes = Notes.from_arrays(onset, onset + 0.5, np.arange(len(onset)) % 88 + 21)
    with pytest.raises(DataError, match=r"room for 244; raise model\.max_events_per_s"):
        targets(notes, 0.0, 16000, TINY)
