"""Segments written twice: the second time they know the rest of their recording."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from musicjax.decode import GenerateConfig
from musicjax.infer.long import Window
from musicjax.infer.sequences import AgreeingRunner, SequenceRunner
from musicjax.metrics import instrument_scores
from musicjax.notes import Codec, Notes, TokenClass, codec_config
from musicjax.notes.agreement import AgreementConfig

CODEC = Codec(
    dataclasses.replace(
        codec_config("mt3", faithful=False),
        segment_frames=64,
        max_tokens=128,
        max_shift_steps=52,
        extra_tokens=0,
    )
)
WORDS = CODEC.vocabulary
COUNT = 40
PROGRAMS = (0, 33, 40)
MISTAKEN = {0: 4, 33: 43, 40: 48}  # what each may be taken for
SURE, KEEPS = 0.8, 1.0  # by how much: of a mistake, and of a program that the segment named


def music():
    """20 s of three instruments whose notes go on over the seams of segments."""
    rng = np.random.default_rng(0)
    parts = []
    for program, low, length_s in zip(PROGRAMS, (60, 30, 76), (0.3, 0.9, 1.4), strict=True):
        onset_s = np.sort(rng.uniform(0, 19, 36))
        pitch = low + rng.integers(0, 12, 36)
        notes = Notes.from_arrays(
            onset_s, onset_s + length_s, pitch, np.full(36, 127), program=np.full(36, program)
        )
        parts.append(notes)
    return Notes.concat(parts).sorted()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the oracle remembers of a row: its segment, its place in the truth, what it named."""

    position: jax.Array
    segment: jax.Array
    place: jax.Array
    named: jax.Array

    max_length = 10_000

    def resized(self, max_length):
        return self

    def take(self, rows):
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows, other):
        return jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), self, other)


class Oracle(nnx.Module):
    """Writes the truth, but takes some programs for others in some segments.

    It holds on to a program that it has named, and reads on after whatever tie section it is given.
    """

    segment_samples = 64 * 128
    generation = GenerateConfig(max_length=CODEC.config.max_tokens)

    class config:
        codec = CODEC.config

    def __init__(self, rows, mistakes, seed=0):
        table = np.zeros((len(rows), CODEC.config.max_tokens), np.int32)
        for row, tokens in zip(table, rows, strict=True):
            row[: len(tokens)] = tokens
        wrong = np.random.default_rng(seed).random((len(rows), len(PROGRAMS))) < mistakes
        slips = np.zeros((len(rows), WORDS.rows, WORDS.rows), np.float32)
        for i, program in enumerate(PROGRAMS):
            slips[wrong[:, i], WORDS.program(program), WORDS.program(MISTAKEN[program])] = SURE + 10
        self.table = nnx.Variable(jnp.asarray(table))
        self.after_ties = nnx.Variable(jnp.asarray((table == WORDS.tie).argmax(1) + 1))
        self.slips = nnx.Variable(jnp.asarray(slips))

    def prefill(self, audio, lengths, max_length):
        number = jnp.round(audio[:, 0] * 100).astype(jnp.int32)
        zeros = jnp.zeros(len(audio), jnp.int32)
        return Memory(zeros, number, zeros, jnp.zeros((len(audio), WORDS.rows), bool))

    def step(self, tokens, cache):
        rows = jnp.arange(len(tokens))
        place = jnp.where(tokens == WORDS.tie, self.after_ties[...][cache.segment], cache.place)
        true = self.table[...][cache.segment, place]
        is_program = jnp.asarray(WORDS.classes == TokenClass.PROGRAM)
        named = cache.named.at[rows, tokens].set(is_program[tokens] | cache.named[rows, tokens])
        logits = 10.0 * jax.nn.one_hot(true, WORDS.rows) + self.slips[...][cache.segment, true]
        logits += jnp.where(named & is_program[true][:, None], KEEPS, 0.0)
        return logits, Memory(cache.position + 1, cache.segment, place + 1, named)


def windows(job, numbers):
    for i, number in enumerate(numbers):
        samples = np.zeros(Oracle.segment_samples, np.float32)
        samples[0] = number / 100
        last = i == len(numbers) - 1
        yield job, Window(samples, 0, Oracle.segment_samples, slice(0, 1), last)


def written(runner, *jobs):
    """The tokens of each recording."""
    given = [w for job, numbers in enumerate(jobs) for w in windows(job, numbers)]
    rows = {job: [] for job in range(len(jobs))}
    for job, _, found in runner.run(given):
        rows[job].append(found["tokens"][0])
    return [np.stack(r) for r in rows.values()]


@pytest.fixture(scope="module")
def oracle():
    rows = list(CODEC.encode(music(), COUNT * 64))
    return Oracle(rows, 0.2)


@pytest.fixture(scope="module")
def agreeing(oracle):
    return AgreeingRunner(oracle, AgreementConfig(), slots=4)


def scores(tokens):
    return instrument_scores(music(), CODEC.decode(tokens).notes)


def test_segments_that_agree_switch_instruments_less(oracle, agreeing):
    (alone,) = written(SequenceRunner(oracle, slots=4), range(COUNT))
    (together,) = written(agreeing, range(COUNT))
    before, after = scores(alone), scores(together)
    assert before.program_switches > 0.1 and before.onset_program_f1 < 0.9
    assert after.program_switches == 0 and after.onset_program_f1 == 1
    assert after.onset_offset_program_f1 > before.onset_offset_program_f1 + 0.1
    assert 0 < agreeing.revised < COUNT  # those that agreed were left alone


def test_what_is_heard_without_mistakes_is_left_alone(oracle):
    right = Oracle(list(CODEC.encode(music(), COUNT * 64)), 0.0)
    runner = AgreeingRunner(right, AgreementConfig(), slots=4)
    (together,) = written(runner, range(COUNT))
    truth = [row[row > 0].tolist() for row in together]
    assert truth == [tokens.tolist() for tokens in CODEC.encode(music(), COUNT * 64)]
    assert runner.revised == 0


def test_recordings_agree_with_themselves_only(agreeing, monkeypatch):
    """The same in any company, and whatever is worked through at once."""
    jobs = range(20), range(20, COUNT), range(5, 30)
    alone = [written(agreeing, job)[0] for job in jobs]
    compiled = agreeing.programs
    together = written(agreeing, *jobs)
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)
    assert agreeing.programs == compiled
    monkeypatch.setattr("musicjax.infer.sequences._CHAPTER", 16)
    chapters = written(agreeing, *jobs)
    assert [len(rows) for rows in chapters] == [20, 20, 25]
    for a, b in zip(chapters, alone, strict=True):
        assert (a == b).all(
            axis=1
        ).mean() > 0.8  # the votes of the first chapter are of fewer notes
