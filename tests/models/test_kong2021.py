"""Kong et al.: parity with a twin in PyTorch, labels and decoding by plain loops."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import AudioError, ConfigError, WeightsError
from musicjax.hub.pytorch import read_state_dict
from musicjax.models.kong2021 import SYSTEM
from musicjax.models.kong2021.convert import ENTRY, convert, from_state_dict
from musicjax.models.kong2021.labels import pedal_intervals, targets
from musicjax.models.kong2021.model import NOTE_HEADS, PEDAL_HEADS, Kong2021, get_config, loss
from musicjax.models.kong2021.regression import decode, peaks
from musicjax.notes import Notes, Pedal

FIXTURES = Path(__file__).parent.parent / "fixtures" / "kong2021"
TINY = get_config("tiny")


def count_parameters(config, *parts):
    model = nnx.eval_shape(lambda: Kong2021(config, rngs=nnx.Rngs(0)))
    chosen = [getattr(model, part) for part in parts] or [model]
    return sum(leaf.size for m in chosen for leaf in jax.tree.leaves(nnx.state(m, nnx.Param)))


def test_parameter_counts():
    """Those of the authors' code."""
    base = get_config("base")
    assert count_parameters(base) == SYSTEM.cards["maestro"].parameters == 34_080_055
    assert count_parameters(base, "frame") == 4_664_904
    assert count_parameters(base, "pedal_norm", *PEDAL_HEADS) == 13_861_277
    with pytest.raises(ConfigError, match="no variant 'huge'; choose one of base"):
        get_config("huge")


def test_every_head_of_the_twin():
    weights = read_state_dict(FIXTURES / "tiny.pt", ENTRY)
    config = replace(TINY, frontend=replace(TINY.frontend, num_bins=37), num_pitches=5)
    model, _ = from_state_dict(weights, config)
    graph, state = nnx.split(model)
    reference = np.load(FIXTURES / "twin.npz")
    out = jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, reference["features"])
    for name in (*NOTE_HEADS, *PEDAL_HEADS):
        heard = jax.nn.sigmoid(getattr(out, name))
        assert reference[name].std() > 0.01, name
        np.testing.assert_allclose(heard, reference[name], atol=1e-5, err_msg=name)


def test_a_checkpoint_tells_its_widths_and_misfits_are_told(tmp_path):
    with pytest.raises(WeightsError, match=r"in \d+ places.*frame\.fc\.kernel is \(56, 12\)"):
        convert(FIXTURES / "tiny.pt")  # 37 bins and 5 keys are not what the published one has
    with pytest.raises(WeightsError, match="not the note and pedal model of Kong et al"):
        from_state_dict({"conv.weight": np.zeros(3)})


# Labels ---------------------------------------------------------------------------------------


def labels_by_loops(notes, seconds):
    """Equation 3 and the masks, cell by cell."""
    count = round(seconds * 100) + 1
    rolls = {n: np.zeros((count, 88)) for n in ("onset", "offset", "frame", "struck", "velocity")}
    known = np.ones((count, 88))
    for note in notes.sustained():
        p, end = note.pitch - 21, (count - 1) / 100
        if note.offset_s < 0 or note.onset_s > end:
            continue
        first, last = round(note.onset_s * 100), round(min(note.offset_s, end) * 100)
        for t in range(count):
            if max(first, 0) <= t <= last:
                rolls["frame"][t, p] = 1
                known[t, p] *= note.onset_s >= 0
            if t >= max(first, 0):
                known[t, p] *= note.offset_s <= end
            for name, time_s, inside in (
                ("onset", note.onset_s, note.onset_s >= 0),
                ("offset", note.offset_s, note.offset_s <= end),
            ):
                near = 1 - abs(t / 100 - time_s) / 0.05
                if inside:
                    rolls[name][t, p] = max(rolls[name][t, p], near)
        if note.onset_s >= 0:
            rolls["struck"][first, p], rolls["velocity"][first, p] = 1, note.velocity / 128
    return {**rolls, "known": known}


def test_labels_are_those_of_the_loops():
    rng = np.random.default_rng(0)
    onset = np.sort(rng.uniform(-0.5, 2.0, 40))
    notes = Notes.from_arrays(
        onset,
        onset + rng.uniform(0.02, 0.6, 40),
        rng.permutation(np.arange(40, 80)),
        rng.integers(1, 128, 40),
        pedal=Pedal.from_arrays([-0.2, 0.31, 0.904, 1.7], [127, 0, 80, 10]),
    )
    got = targets(notes, 0.0, 24_000, TINY)
    for name, expected in labels_by_loops(notes, 1.5).items():
        np.testing.assert_allclose(got[name], expected, atol=1e-5, err_msg=name)
    moved = targets(notes.shift(3.0), 3.0, 24_000, TINY)
    for name in got:
        np.testing.assert_allclose(moved[name], got[name], atol=1e-4, err_msg=name)
    # The pedal: down until .31 and again from .904 past the end.
    assert got["pedal_frame"].shape == (151, 1)
    assert list(np.flatnonzero(np.diff(got["pedal_frame"][:, 0].astype(int)))) == [31, 89]
    np.testing.assert_allclose(got["pedal_offset"][30:33, 0], [0.8, 1.0, 0.8], atol=1e-5)
    np.testing.assert_allclose(got["pedal_onset"][89:92, 0], [0.72, 0.92, 0.88], atol=1e-5)
    assert not got["pedal_onset"][:80].any()
    assert [list(edge) for edge in pedal_intervals(notes)] == [[-0.2, 0.904], [0.31, 1.7]]


def test_loss_by_hand():
    model = Kong2021(TINY, rngs=nnx.Rngs(0))
    graph, state = nnx.split(model)
    notes = Notes.from_arrays([-0.1, 0.1], [0.12, 0.2], [60, 64], [100, 50])
    labels = targets(notes, 0.0, 4000, TINY)
    audio = np.random.default_rng(0).normal(scale=0.1, size=(1, 4000)).astype(np.float32)
    batch = {"audio": audio, **{name: roll[None] for name, roll in labels.items()}}

    def run(state, batch):
        model = nnx.merge(graph, state)
        return loss(model, batch, key=None, train=False), model.activations(batch["audio"])

    (total, parts), heard = jax.jit(run)(state, batch)
    for name in (*NOTE_HEADS, *PEDAL_HEADS):
        p, label = np.asarray(heard[name], np.float64), batch[name]
        cells = -(label * np.log(p) + (1 - label) * np.log(1 - p))
        weight = {"velocity": "struck"}.get(name, "known" if name in NOTE_HEADS else None)
        counted = np.ones_like(cells) if weight is None else batch[weight]
        expected = (cells * counted).sum() / counted.sum()
        np.testing.assert_allclose(parts[name], expected, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(total, sum(parts.values()), rtol=1e-5)
    with pytest.raises(AudioError, match=r"4000 samples give \(1, 26, 88\)"):
        jax.eval_shape(run, state, {**batch, "onset": batch["onset"][:, :5]})


# Decoding -------------------------------------------------------------------------------------


def peaks_by_loops(curve, threshold, neighbours):
    found = {}
    for n in range(neighbours, len(curve) - neighbours):
        falls = all(
            curve[n - i] >= curve[n - i - 1] and curve[n + i] >= curve[n + i + 1]
            for i in range(neighbours)
        )
        if curve[n] > threshold and falls:
            before, top, after = (float(curve[n + d]) for d in (-1, 0, 1))
            slope = top - after if before > after else top - before
            found[n] = (after - before) / slope / 2
    return found


def notes_by_loops(heard, p):
    """The authors' procedure for one key: (onset, offset, velocity) in frames."""
    onset = peaks_by_loops(heard["onset"][:, p], 0.3, 2)
    offset = peaks_by_loops(heard["offset"][:, p], 0.3, 4)
    frame, count = heard["frame"][:, p], len(heard["frame"])
    found = []
    begin = gone = off = None

    def close(end):
        strength = heard["velocity"][begin, p]
        found.append((begin + onset[begin], end + offset.get(end, 0.0), int(strength * 128)))

    for i in range(count):
        if i in onset:
            if begin is not None:
                close(i)
            begin, gone, off = i, None, None
        elif begin is not None:
            gone = i if gone is None and frame[i] <= 0.1 else gone
            off = i if off is None and i in offset else off
            if gone is not None:
                nearer = off is not None and off - begin > gone - off
                close(off if nearer else gone)
                begin = None
            elif i - begin >= 600 or i == count - 1:
                close(i)
                begin = None
    return found


def pedals_by_loops(heard):
    offset = peaks_by_loops(heard["pedal_offset"][:, 0], 0.2, 4)
    frame = heard["pedal_frame"][:, 0]
    found = []
    begin = gone = off = None
    for i in range(1, len(frame)):
        if begin is None and frame[i] >= 0.5 and frame[i] > frame[i - 1]:
            begin = i
        if begin is None or i == begin:
            continue
        gone = i if gone is None and frame[i] <= 0.5 else gone
        off = i if off is None and i in offset else off
        if off is not None:
            found.append((begin, off + offset[off]))
            begin = gone = off = None
        elif gone is not None and i - gone >= 10:
            found.append((begin, gone + offset.get(gone, 0.0)))
            begin = gone = off = None
    return found


def curves(seed, count, keys, width):
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count + width - 1, keys))
    window = np.hanning(width + 2)[1:-1]
    smooth = np.stack(
        [np.convolve(raw[:, p], window / window.sum(), "valid") for p in range(keys)], 1
    )
    return (1 / (1 + np.exp(-4 * smooth))).astype(np.float32)


def heard_by_chance(seed, count=1500, keys=4):
    heard = {
        "onset": curves(seed, count, keys, 25) ** 2,
        "offset": curves(seed + 100, count, keys, 31) ** 2,
        "frame": np.clip(3 * curves(seed + 200, count, keys, 81) - 0.9, 0, 1),
        "velocity": curves(seed + 300, count, keys, 41),
        "pedal_onset": curves(seed + 400, count, 1, 41),
        "pedal_offset": curves(seed + 500, count, 1, 61) ** 2,
        "pedal_frame": curves(seed + 600, count, 1, 61),
    }
    heard["frame"][:, 0] = 1.0  # one key that is never heard to end
    heard["onset"][700:, 0] = 0
    return heard


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("at_once", [1 << 21, 2000])
def test_notes_and_pedals_are_those_of_the_loops(seed, at_once, monkeypatch):
    monkeypatch.setattr("musicjax.models.kong2021.regression._CELLS_AT_ONCE", at_once)
    heard = heard_by_chance(seed)
    notes = decode(heard, TINY)
    expected = sorted(
        (max(on, 0) / 100, off / 100, p + 21, max(v, 1))
        for p in range(4)
        for on, off, v in notes_by_loops(heard, p)
    )
    got = sorted((n.onset_s, n.offset_s, n.pitch, n.velocity) for n in notes)
    assert len(got) == len(expected) > 40
    np.testing.assert_allclose(got, expected, atol=1e-6)
    pedals = pedals_by_loops(heard)
    assert len(pedals) > 4
    down = notes.pedal.value > 0
    np.testing.assert_allclose(notes.pedal.time_s[down], [a / 100 for a, _ in pedals], atol=1e-6)
    np.testing.assert_allclose(notes.pedal.time_s[~down], [b / 100 for _, b in pedals], atol=1e-6)
    assert decode(heard, TINY, pedal=False).pedal is None


def test_a_triangle_tells_where_its_top_is():
    exact = np.array([30.0, 50.27, 69.61])
    frame = np.arange(100)
    curve = np.clip(1 - np.abs(frame[:, None] - exact) / 5, 0, 1).max(axis=1).astype(np.float32)
    is_peak, shift = peaks(curve[:, None], 0.3, 2)
    found = np.flatnonzero(is_peak)
    np.testing.assert_allclose(found + shift[found, 0], exact, atol=1e-5)


def test_labels_decode_to_their_notes_between_frames():
    notes = Notes.from_arrays(
        [0.1037, 0.3, 0.7513], [0.2962, 0.6571, 1.1249], [60, 60, 72], [100, 41, 64],
        pedal=Pedal.from_arrays([0.2, 0.6571], [127, 0]),
    )  # fmt: skip
    labels = targets(notes, 0.0, 24_000, TINY)
    heard = {name: np.asarray(roll, np.float32) for name, roll in labels.items()}
    got = decode(heard, TINY)
    wanted = notes.sustained()
    np.testing.assert_allclose(got.onset_s, wanted.onset_s, atol=1e-4)
    np.testing.assert_allclose(got.offset_s, wanted.offset_s, atol=6e-3)
    assert list(got.pitch) == [60, 60, 72] and list(got.velocity) == [100, 41, 64]
    np.testing.assert_allclose(got.pedal.time_s, [0.2, 0.6571], atol=6e-3)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 8, 9])
def test_silence_of_any_length_has_no_notes(count):
    heard = {name: np.zeros((count, 88), np.float32) for name in NOTE_HEADS}
    heard |= {name: np.zeros((count, 1), np.float32) for name in PEDAL_HEADS}
    notes = decode(heard, TINY)
    assert len(notes) == 0 and notes.pedal is None
