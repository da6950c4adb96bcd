"""The semi-Markov field against every set of intervals there is, and against itself in blocks."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from musicjax.decode.semicrf import (
    ProductScores,
    TableScores,
    best_intervals,
    follow,
    log_partition,
    marginals,
)

RNG = np.random.default_rng(0)
BEST = jax.jit(best_intervals, static_argnames="block")
LOG_Z = jax.jit(log_partition, static_argnames="block")
MARGINALS = jax.jit(marginals, static_argnames="block")


def all_sets(frames):
    """Every set of closed intervals that share no more than end frames."""
    long = [(b, e) for b in range(frames) for e in range(b + 1, frames)]
    for count in range(frames):
        for chosen in itertools.combinations(long, count):
            if all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(chosen))):
                free = [t for t in range(frames) if not any(b < t < e for b, e in chosen)]
                for number in range(len(free) + 1):
                    for single in itertools.combinations(free, number):
                        yield sorted([*chosen, *((t, t) for t in single)])


def brute_force(table):
    """Score and intervals of the best set, log Z and the probability of each interval."""
    frames = len(table)
    sets = list(all_sets(frames))
    totals = np.array([sum(table[e, b] for b, e in chosen) for chosen in sets], float)
    log_z = np.logaddexp.reduce(totals)
    probability = np.zeros_like(table, float)
    for chosen, total in zip(sets, totals, strict=True):
        for b, e in chosen:
            probability[e, b] += np.exp(total - log_z)
    best = int(np.argmax(totals))
    return totals[best], sets[best], log_z, probability


def random_tables(number, frames):
    return RNG.normal(scale=2.0, size=(number, frames, frames)).astype(np.float32)


@pytest.mark.parametrize("block", [2, 64])
def test_all_is_as_enumerated(block):
    tables = random_tables(4, 5)
    scores = TableScores(jnp.asarray(tables))
    best = BEST(scores, block=block)
    paths = follow(np.asarray(best.next_end), np.asarray(best.single))
    log_z = LOG_Z(scores, block=block)
    gradient = jax.grad(lambda t: LOG_Z(TableScores(t), block=block).sum())(scores.table)
    found = MARGINALS(scores, block=block)
    for row, table in enumerate(tables):
        value, chosen, expected_z, probability = brute_force(table)
        assert best.value[row] == pytest.approx(value, abs=1e-5)
        assert sorted(paths[row]) == chosen
        assert log_z[row] == pytest.approx(expected_z, abs=1e-5)
        np.testing.assert_allclose(gradient[row], probability, atol=1e-5)
        long = np.tril(probability, -1)
        np.testing.assert_allclose(found.start[row], long.sum(0), atol=1e-5)
        np.testing.assert_allclose(found.end[row], long.sum(1), atol=1e-5)
        np.testing.assert_allclose(found.single[row], np.diag(probability), atol=1e-5)
        inside = [sum(long[e, b] for b in range(t + 1) for e in range(t, 5)) for t in range(5)]
        np.testing.assert_allclose(found.inside[row], inside, atol=1e-5)


def test_each_frame_knows_the_best_way_on():
    """From any frame on, the path read is the best of the frames that are left."""
    tables = random_tables(3, 5)
    best = BEST(TableScores(jnp.asarray(tables)))
    for start in range(1, 5):
        paths = follow(np.asarray(best.next_end), np.asarray(best.single), np.full(3, start))
        for row, table in enumerate(tables):
            _, chosen, _, _ = brute_force(table[start:, start:])
            assert sorted(paths[row]) == [(b + start, e + start) for b, e in chosen]


def test_frames_that_do_not_exist_change_nothing():
    tables = random_tables(2, 9)
    lengths = jnp.asarray([9, 6])
    padded = TableScores(jnp.asarray(tables))
    alone = TableScores(jnp.asarray(tables[1:, :6, :6]))
    for block in (4, 64):
        assert float(LOG_Z(padded, lengths, block=block)[1]) == pytest.approx(
            float(LOG_Z(alone)[0]), abs=1e-5
        )
        best, expected = BEST(padded, lengths, block=block), BEST(alone)
        assert follow(*map(np.asarray, best[1:]))[1] == follow(*map(np.asarray, expected[1:]))[0]
        found = MARGINALS(padded, lengths, block=block)
        np.testing.assert_allclose(found.start[1, :6], MARGINALS(alone).start[0], atol=1e-5)
        np.testing.assert_allclose(found.inside[1, 6:], 0.0, atol=1e-5)


def product_scores(rows, frames, width):
    end, start = (
        jnp.asarray(RNG.normal(size=(rows, frames, width)), jnp.float32) for _ in range(2)
    )
    return ProductScores(end, start, jnp.asarray(RNG.normal(size=(rows, frames)), jnp.float32))


def as_table(scores):
    table = np.zeros((*scores.single.shape, scores.single.shape[1]), np.float32)
    for row, b, e in np.ndindex(table.shape):
        product = float(np.dot(scores.end[row, e], scores.start[row, b]))
        length = e - b
        table[row, e, b] = length * product / np.sqrt(scores.end.shape[-1])
        if e == b:
            table[row, e, b] = scores.single[row, b]
    return TableScores(jnp.asarray(table))


def test_products_are_a_table_that_is_never_written_down():
    scores = product_scores(3, 11, 4)
    table = as_table(scores)
    for block in (3, 64):
        np.testing.assert_allclose(LOG_Z(scores, block=block), LOG_Z(table), rtol=1e-5)
        best, expected = BEST(scores, block=block), BEST(table)
        np.testing.assert_allclose(best.value, expected.value, rtol=1e-5)
        np.testing.assert_array_equal(best.next_end, expected.next_end)
    row, b, e = jnp.array([0, 1, 2]), jnp.array([2, 5, 7]), jnp.array([9, 5, 8])
    np.testing.assert_allclose(scores.at(row, b, e), table.table[row, e, b], rtol=1e-5)


def test_gradients_reach_both_vectors_and_do_not_depend_on_blocks():
    scores = product_scores(2, 20, 4)
    small, whole = (
        jax.grad(lambda s, n=block: LOG_Z(s, block=n).sum())(scores) for block in (6, 64)
    )
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(b).max() > 0.1


def test_huge_scores_stay_finite():
    """A long sure interval scores thousands; nothing may overflow, forwards or backwards."""
    table = np.full((1, 40, 40), -1e4, np.float32)
    table[0, 35, 2] = 1e4
    scores = TableScores(jnp.asarray(table))
    assert float(LOG_Z(scores)[0]) == pytest.approx(1e4)
    found = MARGINALS(scores, block=8)
    assert all(np.isfinite(x).all() for x in found)
    assert found.start[0, 2] == pytest.approx(1) and found.end[0, 35] == pytest.approx(1)
    best = BEST(scores, block=8)
    assert follow(*map(np.asarray, best[1:])) == [[(2, 35)]]


@pytest.mark.parametrize("differentiated", [False, True], ids=["forwards", "backwards"])
def test_memory_grows_with_the_frames_and_not_with_their_square(differentiated):
    """A few panels are held at a time, as the compiler's own plan of the program tells."""
    rows, width, block = 8, 4, 32

    def total(end, start, single):
        return log_partition(ProductScores(end, start, single), block=block).sum()

    function = jax.grad(total, argnums=(0, 1, 2)) if differentiated else total
    held = {}
    for frames in (128, 256, 512):
        vectors = jax.ShapeDtypeStruct((rows, frames, width), jnp.float32)
        single = jax.ShapeDtypeStruct((rows, frames), jnp.float32)
        compiled = jax.jit(function).lower(vectors, vectors, single).compile()
        held[frames] = compiled.memory_analysis().temp_size_in_bytes
    panel = 4 * rows * 512 * block
    table = panel * 512 // block
    assert held[512] < 6 * panel < table / 2
    assert held[512] < 2.3 * held[256] < 2.3**2 * held[128]
