"""MT3: framing, targets, checkpoints, tokens of whole recordings, and that it learns."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import musicjax
from musicjax.audio import Audio, load_audio, save_audio
from musicjax.audio.frontend import spectrogram
from musicjax.decode import GenerateConfig
from musicjax.errors import AudioError, ConfigError, DataError, WeightsError
from musicjax.hub import LoadedModel
from musicjax.hub.t5x import open_t5x, unflatten, write_t5x
from musicjax.hub.t5x_layouts import t5x_target
from musicjax.infer.segments import Segmentation, segments
from musicjax.metrics import note_scores
from musicjax.models.mt3 import SYSTEM
from musicjax.models.mt3.config import MT3Config, get_config
from musicjax.models.mt3.convert import convert, from_checkpoint
from musicjax.models.mt3.evidence import Evidence
from musicjax.models.mt3.model import MT3, loss
from musicjax.models.mt3.tokens import decode, targets
from musicjax.notes import Notes, read_midi
from musicjax.notes.codec import Codec
from musicjax.notes.vocabulary import TokenClass
from musicjax.tasks.files import plan, transcribe_files
from musicjax.tasks.transcribe import Transcriber

TINY = get_config("tiny")
RATE = 16_000


def model_of(config, seed=0):
    return MT3(config, rngs=nnx.Rngs(seed))


@pytest.fixture(scope="module")
def tiny():
    return model_of(TINY)


def band():
    """Seconds 0 to 1.5: a piano, a bass that sounds on over segments, a violin and drums."""
    return Notes.from_arrays(
        [0.1, 0.2, 0.6, 0.7, 0.1, 0.9, 1.1],
        [0.4, 1.3, 0.9, 1.4, 0.11, 0.91, 1.11],
        [60, 40, 64, 76, 36, 38, 42],
        [127] * 7,
        program=[0, 33, 0, 40, 0, 0, 0],
        is_drum=[False] * 4 + [True] * 3,
    )


# Framing --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "count", "last"), [(32767, 1, 32767), (32768, 2, 0), (70000, 3, 4464), (1, 1, 1)]
)
def test_a_recording_that_fills_its_segments_has_one_more(samples, count, last):
    plan = Segmentation(32768, 32768, 0, 1, beyond=1)
    found = list(segments([np.ones(samples, np.float32)], plan))
    assert [w.is_last for w in found] == [False] * (count - 1) + [True]
    assert found[-1].frames == last
    assert [w.first_frame for w in found] == [32768 * i for i in range(count)]


def test_the_original_puts_zeros_behind_the_log_where_a_recording_has_ended():
    config = dataclasses.replace(TINY, padding="zero_rows")
    audio = np.random.default_rng(0).normal(0, 0.1, (3, 8192)).astype(np.float32)
    lengths = np.array([8192, 640, 641])
    audio *= np.arange(8192) < lengths[:, None]
    audio, lengths = jnp.asarray(audio), jnp.asarray(lengths)
    features = partial(MT3.features, nnx.eval_shape(lambda: model_of(config)))
    heard = np.asarray(features(audio, lengths))
    assert heard.shape == (3, 64, 48)
    for row, frames in zip(heard, (64, 6, 6), strict=True):  # a whole number of hops gains a frame
        assert not row[frames:].any()
        assert row[:frames].all()
    alone = spectrogram(audio[1, :640], config.frontend)
    np.testing.assert_allclose(heard[1, :6], alone, atol=1e-4)
    silent = dataclasses.replace(config, padding="silence")
    heard = np.asarray(MT3.features(nnx.eval_shape(lambda: model_of(silent)), audio, lengths))
    floor = (np.log(1e-5) + 2) / 4
    np.testing.assert_allclose(heard[1, 6:], floor, atol=1e-5)


def test_stacked_frames_are_all_read(tiny):
    config = dataclasses.replace(TINY, stack_frames=2)
    model = model_of(config)
    features = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 48)), jnp.float32)
    encoded = model(features)
    assert encoded.shape == (1, 4, 32)
    moved = model(features.at[0, 5].add(1.0))
    assert np.abs(np.asarray(moved - encoded)).max() > 1e-3
    assert model.rolls(encoded).shape == (1, 4, 35, 128)


def test_configs_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match="no variant 'huge'; choose one of mt3"):
        get_config("huge")
    with pytest.raises(ConfigError, match="must be at least 1 and divide a segment of 256 frames"):
        MT3Config(stack_frames=3)
    slower = dataclasses.replace(TINY.frontend, hop_length=256)
    with pytest.raises(ConfigError, match="the codec counts 125 frames a second and the front-end"):
        dataclasses.replace(TINY, frontend=slower)


# Targets and loss -----------------------------------------------------------------------------


def test_targets_are_the_tokens_of_the_clip_and_where_notes_lie():
    labels = targets(band(), 0.5, 8192, TINY)
    written = Codec(TINY.codec).encode_clip(band(), 0.5, 64)
    np.testing.assert_array_equal(labels["tokens"][: len(written)], written)
    assert not labels["tokens"][len(written) :].any()
    assert not labels["left_out"]
    onset, frame, drum, *families = labels["rolls"].swapaxes(0, 1)
    assert np.argwhere(onset).tolist() == [[12, 64], [25, 76]]  # 0.1 s and 0.2 s by frames of 8 ms
    assert frame[:, 40].all() and frame[12:51, 64].all() and not frame[51:, 64].any()
    assert np.argwhere(drum).tolist() == [[50, 38]]
    assert len(families) == 2 * 16
    begins = {i: np.argwhere(f).tolist() for i, f in enumerate(families[:16]) if f.any()}
    assert begins == {0: [[12, 64]], 5: [[25, 76]]}  # pianos and strings
    assert families[16 + 4][:, 40].all() and families[16 + 5][25:, 76].all()
    assert (np.maximum.reduce(families[16:]) == frame).all()


def rolls_note_by_note(notes, start_s, positions, steps_per_position):
    """`rolls` of `targets`, a note at a time."""

    def position(time_s):
        steps = int(np.rint((time_s - start_s) * 100))
        return int(np.floor(steps / steps_per_position + 1e-6))

    rolls = np.zeros((positions, 35, 128), np.uint8)
    heard = notes.sustained()
    columns = (heard.onset_s, heard.offset_s, heard.pitch, heard.program, heard.is_drum)
    for onset_s, offset_s, pitch, program, drum in zip(*columns, strict=True):
        first, last, family = position(onset_s), position(offset_s) + 1, program // 8
        if last <= 0 or first >= positions:
            continue
        if first >= 0:
            rolls[first, 2 if drum else 0, pitch] = 1
        if drum:
            continue
        if first >= 0:
            rolls[first, 3 + family, pitch] = 1
        rolls[max(first, 0) : last, 1, pitch] = 1
        rolls[max(first, 0) : last, 3 + 16 + family, pitch] = 1
    return rolls


@pytest.mark.parametrize("variant", ["tiny", "mini"])
def test_rolls_of_all_notes_at_once_are_those_of_each(variant):
    config, rng = get_config(variant), np.random.default_rng(0)
    samples, count = config.segment_samples, 300
    onset_s = rng.uniform(0, 6, count)
    music = Notes.from_arrays(
        onset_s,
        onset_s + rng.exponential(0.5, count),
        rng.integers(128, size=count),
        np.full(count, 64),
        program=rng.integers(128, size=count),
        is_drum=rng.random(count) < 0.2,
    )
    steps = 100 / config.codec.frames_per_second * config.stack_frames
    for start_s in (0.0, 1.003, 2.5, 4.99, 9.0):
        rolls = targets(music, start_s, samples, config)["rolls"]
        expected = rolls_note_by_note(music, start_s, config.num_positions(samples), steps)
        np.testing.assert_array_equal(rolls, expected)
    assert not targets(Notes.empty(), 0.0, samples, config)["rolls"].any()


def test_a_target_that_is_too_long_is_left_out_whole_and_counted(tiny):
    count = 60
    crowd = Notes.from_arrays(np.full(count, 0.1), np.full(count, 0.3), np.arange(count) + 30)
    labels = targets(crowd, 0.0, 8192, TINY)
    assert labels["left_out"] and not labels["tokens"].any()
    good = targets(band(), 0.0, 8192, TINY)
    batch = {n: jnp.asarray(np.stack([labels[n], good[n]])) for n in labels}
    batch["audio"] = jnp.zeros((2, 8192))
    batch["rolls"] = jnp.stack([batch["rolls"][1]] * 2)
    graph, state = nnx.split(tiny)
    cost = jax.jit(lambda state, batch: loss(nnx.merge(graph, state), batch, key=None))
    total, parts = cost(state, batch)
    assert parts["left_out"] == 0.5
    alone, _ = cost(state, {n: v[1:] for n, v in batch.items()})
    np.testing.assert_allclose(total, alone, rtol=1e-5)


def test_labels_of_another_length_are_refused(tiny):
    with pytest.raises(AudioError, match=r"tokens have shape \(1, 7\).*room for \(1, 64\)"):
        loss(tiny, {"audio": jnp.zeros((1, 8192)), "tokens": jnp.zeros((1, 7), int)}, key=None)


def test_it_learns_what_two_segments_say():
    rng = np.random.default_rng(0)
    rows = [targets(band(), start_s, 8192, TINY) for start_s in (0.0, 0.6)]
    batch = {n: jnp.asarray(np.stack([row[n] for row in rows])) for n in rows[0]}
    batch["audio"] = jnp.asarray(rng.normal(0, 0.1, (2, 8192)), jnp.float32)
    graph, params = nnx.split(model_of(TINY), nnx.Param)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, moments):
        def value(params):
            return loss(nnx.merge(graph, params), batch, key=None)

        (_, parts), gradient = jax.value_and_grad(value, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments)
        return optax.apply_updates(params, updates), moments, parts

    moments = optimizer.init(params)
    costs = []
    for _ in range(60):
        params, moments, parts = step(params, moments)
        costs.append(float(parts["token"]))
    assert costs[0] > 5.0  # about ln 512
    assert costs[-1] < 0.5


def test_the_encoder_can_learn_alone():
    rows = [targets(band(), start_s, 8192, TINY) for start_s in (0.0, 0.6)]
    batch = {n: jnp.asarray(np.stack([row[n] for row in rows])) for n in rows[0]}
    batch["audio"] = jnp.zeros((2, 8192))
    config = dataclasses.replace(TINY, token_weight=0.0)
    total, parts = loss(model_of(config), batch, key=None)
    assert set(parts) == {"frame", "left_out"} and total == parts["frame"]
    with pytest.raises(ConfigError, match="both 0; nothing would be learned"):
        dataclasses.replace(TINY, token_weight=0.0, frame_weight=0.0)


def test_a_decoder_that_is_not_trained_has_no_say(tiny):
    ears = model_of(dataclasses.replace(TINY, token_weight=0.0))
    silenced = nnx.clone(tiny)
    silenced.transformer.head[...] = jnp.zeros_like(silenced.transformer.head[...])
    assert tiny.transformer.head[...].any()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), nnx.state(ears), nnx.state(silenced))
    assert all(jax.tree.leaves(same))
    tokens = jnp.asarray(targets(band(), 0.0, 8192, TINY)["tokens"])[None]
    encoded = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 32)), jnp.float32)

    @nnx.jit
    def said(model):
        heard = model.evidence.heard(model.rolls(encoded))
        alone = model.evidence(heard, model.evidence.after_all(tokens))
        return model.logits(tokens, encoded, heard), alone

    np.testing.assert_array_equal(*said(ears))


# What the encoder hears, while writing -------------------------------------------------------


def test_sure_ears_write_the_notes_alone():
    # A head that knows the truth, and a decoder that says nothing.
    codec = dataclasses.replace(TINY.codec, granularity="midi_class")
    config = dataclasses.replace(TINY, codec=codec)
    evidence, vocabulary = Evidence(codec, 1), Codec(codec).vocabulary
    graph, state = nnx.split(evidence)

    @jax.jit
    def written(rolls, read):
        evidence = nnx.merge(graph, state)
        heard = evidence.heard(jnp.where(rolls, 9.0, -9.0)[None])
        return evidence(heard, evidence.after_all(read[None]))[0]

    for start_s in (0.0, 0.45, 0.9):
        labels = targets(band().shift(0.0037), start_s, 8192, config)  # on no border of frames
        tokens = labels["tokens"]
        read = np.concatenate([[0], tokens[:-1]])
        said = np.asarray(written(jnp.asarray(labels["rolls"]), jnp.asarray(read)))
        count = np.flatnonzero(tokens)[-1] + 1
        for token, logits in zip(tokens[:count], said[:count], strict=True):
            best = int(np.argmax(logits))
            names = vocabulary.names(np.array([token, best]))
            if vocabulary.classes[token] == TokenClass.SHIFT:
                assert vocabulary.classes[best] == TokenClass.SHIFT, names
                assert abs(vocabulary.values[best] - vocabulary.values[token]) * 1.25 < 2, names
            else:
                assert best == token, names


@pytest.mark.parametrize("stem", [None, (2, 2, 4)])
def test_written_token_by_token_is_written_at_once(stem):
    config = dataclasses.replace(TINY, stem=stem, stem_units=8)
    model = model_of(config)
    audio = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (2, 8192)), jnp.float32)
    tokens = jnp.asarray(np.stack([targets(band(), s, 8192, TINY)["tokens"] for s in (0.0, 0.5)]))

    @nnx.jit
    def at_once(model):
        encoded = model(model.features(audio))
        return model.logits(tokens, encoded, model.evidence.heard(model.rolls(encoded)))

    expected = at_once(model)
    lengths = jnp.array([8192, 8192])
    cache = nnx.jit(MT3.prefill, static_argnums=3)(model, audio, lengths, 32)
    step = nnx.jit(MT3.step)
    cache = cache.take(jnp.array([1, 0])).put(jnp.array([0, 1]), cache)  # and back
    for i in range(12):
        logits, cache = step(model, tokens[:, i], cache)
        np.testing.assert_allclose(logits, expected[:, i], atol=2e-4)


# Checkpoints ----------------------------------------------------------------------------------


def test_a_t5x_checkpoint_becomes_the_model(tmp_path):
    config = dataclasses.replace(TINY, frame_weight=0.0)
    model = model_of(config, seed=3)
    target = t5x_target(model, config.transformer, prefix="transformer.")
    tree = {"target": unflatten(target), "state": {"step": 7, "param_states": {}}}
    folder = write_t5x(tmp_path, tree)
    back = from_checkpoint(open_t5x(folder), config)
    assert not jax.tree.leaves(
        jax.tree.map(lambda a, b: None if (a == b).all() else a, nnx.state(model), nnx.state(back))
    )
    with pytest.raises(WeightsError, match=r"mt3\.mini has no foreign checkpoints"):
        convert(folder, "mini")
    tree["target"]["decoder"]["token_embedder"]["embedding"] = np.zeros((1664, 32), np.float32)
    tree["state"]["step"] = 8
    folder = write_t5x(tmp_path, tree)
    with pytest.raises(WeightsError, match=r"the vocabulary of the piano model ismir2021; .* MT3"):
        convert(folder, "mt3")


# Whole recordings -----------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Page:
    """A cache that knows which segment it is of."""

    position: jax.Array
    segment: jax.Array

    max_length = 10_000

    def resized(self, max_length):
        return self

    def take(self, rows):
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows, other):
        return jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), self, other)


class Recited(nnx.Module):
    """Writes tokens that it knows; the first sample of a segment says which."""

    segment_samples = TINY.segment_samples
    generation = GenerateConfig(max_length=TINY.codec.max_tokens)
    grammar = None

    def __init__(self, rows):
        table = np.zeros((len(rows), TINY.codec.max_tokens), np.int32)
        for row, tokens in zip(table, rows, strict=True):
            row[: len(tokens)] = tokens
        self.table = nnx.Variable(jnp.asarray(table))

    def prefill(self, audio, lengths, max_length):
        number = jnp.round(audio[:, 0] * 100).astype(jnp.int32)
        return Page(jnp.zeros(len(audio), jnp.int32), number)

    def step(self, tokens, cache):
        word = self.table[...][cache.segment, cache.position]
        logits = jax.nn.one_hot(word, Codec(TINY.codec).vocabulary.rows)
        return logits, dataclasses.replace(cache, position=cache.position + 1)


def recited(rows):
    return Transcriber(LoadedModel(Recited(rows), TINY, None, "recited", SYSTEM), batch_size=2)


def pages(numbers, samples=None):
    audio = np.zeros(len(numbers) * TINY.segment_samples, np.float32)
    audio[:: TINY.segment_samples] = np.asarray(numbers) / 100
    return Audio(audio[:samples], RATE)


def test_segments_are_stitched_to_the_notes_that_were_written(tmp_path):
    wanted = band()
    rows = list(Codec(TINY.codec).encode(wanted, 3 * 64))
    hears = recited(rows)
    heard = hears.transcribe(pages([0, 1, 2], 3 * TINY.segment_samples - 5))
    assert heard.activations["tokens"].shape == (3, TINY.codec.max_tokens)
    assert heard.duration_s == pytest.approx(3 * 0.512, abs=1e-3)
    for name in ("pitch", "program", "is_drum"):
        assert getattr(heard.notes, name).tolist() == getattr(wanted.sorted(), name).tolist()
    np.testing.assert_allclose(heard.notes.onset_s, wanted.sorted().onset_s, atol=0.006)
    pitched = ~wanted.sorted().is_drum
    np.testing.assert_allclose(
        heard.notes.offset_s[pitched], wanted.sorted().offset_s[pitched], atol=0.011
    )
    without = hears.transcribe(pages([0, 1, 2], 3 * TINY.segment_samples - 5), drums=False)
    assert len(without.notes) == 4
    back = read_midi(heard.to_midi(tmp_path / "band.mid"))
    assert sorted(set(back.program[~back.is_drum].tolist())) == [0, 33, 40]
    assert int(back.is_drum.sum()) == 3


def test_recordings_share_slots_and_keep_apart():
    rows = list(Codec(TINY.codec).encode(band(), 3 * 64))
    hears = recited(rows)
    sizes = [3 * TINY.segment_samples - 5, TINY.segment_samples - 1, 2 * TINY.segment_samples - 9]
    sounds = [pages([0, 1, 2], size) for size in sizes]
    together = [result.notes for result in hears.transcribe_many(sounds)]
    assert together == [hears.transcribe(sound).notes for sound in sounds]
    assert len(together[0]) > len(together[2]) > len(together[1]) > 0
    assert hears.runner.tally.segments == 2
    bad = Audio(np.zeros(0, np.float32), RATE)
    first, failure, last = hears.transcribe_many([sounds[1], bad, sounds[2]])
    assert isinstance(failure, AudioError)
    assert (first.notes, last.notes) == (together[1], together[2])


def test_nothing_is_compiled_for_another_length(tiny):
    hears = Transcriber(LoadedModel(tiny, TINY, None, "tiny", SYSTEM), batch_size=2)
    rng = np.random.default_rng(0)
    counts = []
    for samples in (20_000, 100, 9_000, TINY.segment_samples):
        hears.transcribe(rng.normal(0, 0.1, samples).astype(np.float32), RATE)
        counts.append(hears.runner.programs)
    assert counts[0] == counts[-1]


def test_a_grammar_lets_only_sense_be_written(tiny):
    strict = dataclasses.replace(TINY, grammar=True)
    graph = nnx.split(nnx.eval_shape(lambda: model_of(strict)))[0]
    model = nnx.merge(graph, nnx.state(tiny))
    hears = Transcriber(LoadedModel(model, strict, None, "tiny", SYSTEM), batch_size=2)
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    grammar = Codec(strict.codec).grammar()
    for row in hears.activations(sound, RATE)["tokens"]:
        written = row[: np.flatnonzero(row)[-1] + 1]
        assert grammar.first_error(written) is None


def test_decode_needs_tokens_and_segments_have_their_length(tiny):
    with pytest.raises(DataError, match="no tokens among encoded"):
        decode({"encoded": np.zeros((1, 2))}, TINY)
    with pytest.raises(ConfigError, match="hears segments of its own length"):
        Transcriber(LoadedModel(tiny, TINY, None, "tiny", SYSTEM), window_s=3.0)


def test_segments_may_agree_and_what_made_no_sense_is_told(tiny):
    """A network that was never trained writes nonsense, alone and together; both say so."""
    loaded = LoadedModel(tiny, TINY, None, "tiny", SYSTEM)
    sound = np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32)
    results = []
    for together in (False, True):
        hears = Transcriber(loaded, batch_size=2, together=together)
        results.append(hears.transcribe(sound, RATE))
    for result in results:
        assert result.report.invalid + result.report.cut > 0
        assert "some notes may be missing" in result.doubt
        assert result.activations["tokens"].shape == (3, TINY.codec.max_tokens)
    understood = recited(list(Codec(TINY.codec).encode(band(), 3 * 64))).transcribe(pages([0, 1]))
    assert understood.report.invalid == understood.report.cut == 0 and understood.doubt is None


def test_ends_of_notes_that_never_began_are_counted_but_no_nonsense():
    """The bass goes on from the first segment, which is not there, and ends in the last."""
    rows = list(Codec(TINY.codec).encode(band(), 3 * 64))
    heard = recited(rows).transcribe(pages([1, 2]))
    assert heard.report.unbegun == heard.report.invalid >= 2
    assert heard.doubt is None


def test_a_folder_of_files_of_any_length_compiles_nothing_more(tiny, tmp_path):
    """Counted at the compiler itself, from reading a file to writing its notes."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if "backend_compile" in name else None
    )
    rng = np.random.default_rng(0)
    for i, samples in enumerate((8000, 30_000, 500, 17_000, 8192)):
        sound = rng.normal(0, 0.1, samples).astype(np.float32)
        save_audio(tmp_path / f"{i}.wav", sound, RATE)
    files = sorted(tmp_path.glob("*.wav"))
    hears = Transcriber(LoadedModel(tiny, TINY, None, "tiny", SYSTEM), batch_size=2)
    for number, some in enumerate((files[:2], files[2:], files)):
        jobs = plan(some, [tmp_path / f"out{number}"])
        assert all(outcome.error is None for outcome in transcribe_files(hears, jobs))
        if number == 0:
            assert compiled  # so the counter counts
            compiled.clear()
    assert compiled == []


def test_the_shipped_weights_write_down_a_piano_and_name_it(root):
    """A piece that was not trained on: most of its onsets, as keyboards of General MIDI."""
    truth = musicjax.read_midi(root / "examples" / "bach_prelude.mid").slice(0, 8)
    sound = load_audio(root / "examples" / "bach_prelude.flac", 16_000).samples[..., : 8 * 16_000]
    heard = musicjax.load("mt3.mini").transcribe(sound.reshape(-1), 16_000).notes
    score = note_scores(truth.sustained(), heard.sustained())
    assert score.onset_f1 > 0.85, score
    assert np.mean(heard.program < 8) > 0.8
