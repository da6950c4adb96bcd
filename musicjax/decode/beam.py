"""Beam search with the semantics of transformers' `generate`, in a `lax.while_loop` a cache size.

For each item `num_beams` hypotheses run side by side. At every step all their continuations are
ranked by summed log-probability, and twice as many as there are beams are looked at (with more end
tokens, more), so that enough remain when the best of them end. Those that end and rank among the
first `num_beams` become finished hypotheses, scored by `s / n ** length_penalty`; the best that do
not end run on. An item is closed when `early_stopping` says so, and closed items change no more, so
an item's answer does not depend on the batch.

Freitag and Al-Onaizan 2017 describe the method; which hypotheses finish, how length counts and when
the search stops follow transformers (the meaning of `early_stopping` there, since 4.25).
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from musicjax.decode.config import BeamConfig, GenerateConfig
from musicjax.decode.grammar import GrammarMask
from musicjax.decode.loop import room_sizes
from musicjax.decode.protocol import DecodeCache, Step
from musicjax.decode.sampling import FORBIDDEN, apply_rules, is_any
from musicjax.errors import ConfigError

NONE_YET = -1e9  # score of a place that no hypothesis has taken


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Hypotheses:
    """W hypotheses an item, best first. What `beam_search` gives.

    tokens    prompt, found tokens with the end token, then padding.
    lengths   tokens of each hypothesis; 0 where fewer than W were found.
    scores    summed log-probability / n ** length_penalty.
    finished  whether it ended by itself rather than at `max_length`.
    """

    tokens: Int[Array, "B W L"]
    lengths: Int[Array, "B W"]
    scores: Float[Array, "B W"]
    finished: Bool[Array, "B W"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """A search under way.

    count     tokens found so far by every running hypothesis, the prompt not counted.
    tokens    the running hypotheses, prompt first.
    scores    their summed log-probabilities.
    newest    the token to be fed next.
    found     the best hypotheses that have ended.
    open      whether a running hypothesis of the item may still enter `found`.
    grammar   state of the grammar of B * W rows, or None.
    cache     the network's cache of B * W rows.
    """

    count: Int[Array, ""]
    tokens: Int[Array, "B W L"]
    scores: Float[Array, "B W"]
    newest: Int[Array, "B W"]
    found: Hypotheses
    open: Bool[Array, "B"]
    grammar: Any
    cache: Any


def beam_search(
    step: Step,
    cache: DecodeCache,
    config: GenerateConfig,
    beams: BeamConfig = BeamConfig(),  # noqa: B008 - frozen
    *,
    prompt: Int[Array, "B P"] | None = None,
    grammar: GrammarMask | None = None,
) -> Hypotheses:
    """Search for the best-scoring rows, for each of the B rows of `cache` (at position 0).

    `step` is as for `generate`, and is called with B * W rows. `prompt` holds the tokens that each
    answer begins with, the same number in every row. Sampling settings must be off.

    Raises ConfigError when `config` samples, or the prompt leaves no room.
    """
    if config.samples:
        raise ConfigError(
            f"temperature={config.temperature} draws at random, which beam_search does not do; set "
            "it to 0 or use generate."
        )
    width = 0 if prompt is None else prompt.shape[1]
    if width >= config.max_length:
        raise ConfigError(
            f"the prompt has {width} tokens and max_length={config.max_length} leaves no room; "
            "shorten the one or raise the other."
        )
    state = _start(step, cache, config, beams.num_beams, prompt, grammar)

    def body(state: BeamState) -> BeamState:
        return _advance(step, state, config, beams, width, grammar)

    for room in room_sizes(config.max_length):  # as in `run`
        if room <= width:
            continue
        state = replace(state, cache=state.cache.resized(room))

        def go_on(state: BeamState, room: int = room) -> jax.Array:
            return (width + state.count < room) & jnp.any(state.open)

        state = jax.lax.while_loop(go_on, body, state)
    return state.found


def _start(
    step: Step,
    cache: DecodeCache,
    config: GenerateConfig,
    num_beams: int,
    prompt: jax.Array | None,
    grammar: GrammarMask | None,
) -> BeamState:
    """Feed the prompt to one row an item, then make `num_beams` of each row."""
    batch, newest = cache.position.shape[0], None
    legal = None if grammar is None else grammar.initial(batch)
    newest = jnp.full(batch, config.start_token, jnp.int32)
    tokens = jnp.full((batch, config.max_length), config.pad_token, jnp.int32)
    if prompt is not None:
        tokens = tokens.at[:, : prompt.shape[1]].set(prompt)
        for column in range(prompt.shape[1]):
            cache = step(newest, cache)[1]
            newest = tokens[:, column]
            legal = None if grammar is None else grammar.advance(legal, newest)

    def spread(x: jax.Array) -> jax.Array:
        return jnp.repeat(x[:, None], num_beams, axis=1)

    rows = jnp.repeat(jnp.arange(batch), num_beams)
    # All beams of an item are alike at first: only one of them counts.
    scores = jnp.full((batch, num_beams), NONE_YET, jnp.float32).at[:, 0].set(0.0)
    none = jnp.zeros((batch, num_beams), jnp.int32)
    empty = jnp.full((batch, num_beams, config.max_length), config.pad_token, jnp.int32)
    return BeamState(
        count=jnp.zeros((), jnp.int32),
        tokens=spread(tokens),
        scores=scores,
        newest=spread(newest),
        found=Hypotheses(empty, none, jnp.full_like(scores, NONE_YET), none.astype(bool)),
        open=jnp.ones(batch, bool),
        grammar=jax.tree.map(lambda x: x[rows], legal),
        cache=cache.take(rows),
    )


def _advance(
    step: Step,
    state: BeamState,
    config: GenerateConfig,
    beams: BeamConfig,
    width: int,
    grammar: GrammarMask | None,
) -> BeamState:
    """One token more for every hypothesis."""
    batch, num_beams, _ = state.tokens.shape
    logits, cache = step(state.newest.reshape(-1), state.cache)
    ranked = _continuations(logits, state, config, width, grammar)
    vocabulary = logits.shape[-1]
    candidates = num_beams * max(2, 1 + len(config.end_tokens))
    scores, picked = jax.lax.top_k(ranked.reshape(batch, -1), candidates)  # (B, 2W)
    parents, newest = picked // vocabulary, (picked % vocabulary).astype(jnp.int32)
    tokens = jnp.take_along_axis(state.tokens, parents[..., None], axis=1)
    tokens = tokens.at[:, :, width + state.count].set(newest)
    count = state.count + 1
    is_end = is_any(newest, config.end_tokens)
    over = is_end | (count >= config.max_length - width)

    found = _collect(state, tokens, scores, over, is_end, count, beams, width, config)
    # Of those that go on, the best; their order among themselves stays.
    running, best = jax.lax.top_k(jnp.where(over, scores + NONE_YET, scores), num_beams)
    parents = jnp.take_along_axis(parents, best, axis=1)
    newest = jnp.take_along_axis(newest, best, axis=1)
    rows = (parents + num_beams * jnp.arange(batch)[:, None]).reshape(-1)
    legal = None
    if grammar is not None:
        legal = grammar.advance(jax.tree.map(lambda x: x[rows], state.grammar), newest.reshape(-1))
    return BeamState(
        count=count,
        tokens=jnp.take_along_axis(tokens, best[..., None], axis=1),
        scores=running,
        newest=newest,
        found=found,
        open=state.open & _may_improve(running, found, count, config.max_length - width, beams),
        grammar=legal,
        cache=cache.take(rows),
    )


def _continuations(
    logits: jax.Array,
    state: BeamState,
    config: GenerateConfig,
    width: int,
    grammar: GrammarMask | None,
) -> jax.Array:
    """Summed log-probability of every token after every hypothesis, (B, W, V)."""
    batch, num_beams, length = state.tokens.shape
    gains = jax.nn.log_softmax(logits, axis=-1)
    written = jnp.full(batch * num_beams, width + state.count)
    gains = apply_rules(gains, state.tokens.reshape(-1, length), written, config)
    if grammar is not None:
        gains = jnp.where(grammar.allowed(state.grammar), gains, FORBIDDEN)
    if config.first_token is not None and width == 0:
        gains = jnp.where(state.count == 0, _only(config.first_token, gains), gains)
    if config.end_at_limit:
        at_limit = width + state.count + 1 >= config.max_length
        gains = jnp.where(at_limit, _only(config.end_tokens[0], gains), gains)
    return state.scores[..., None] + gains.reshape(batch, num_beams, -1)


def _only(token: int, gains: jax.Array) -> jax.Array:
    """This token for certain, and no other."""
    return jnp.full_like(gains, FORBIDDEN).at[:, token].set(0.0)


def _collect(
    state: BeamState,
    tokens: jax.Array,
    scores: jax.Array,
    over: jax.Array,
    is_end: jax.Array,
    count: jax.Array,
    beams: BeamConfig,
    width: int,
    config: GenerateConfig,
) -> Hypotheses:
    """The best of what was found before and of what is over now, if the item is still open."""
    rank = jnp.arange(scores.shape[1])
    taken = over & (rank < beams.num_beams) & state.open[:, None]
    if beams.early_stopping is True:
        taken &= ~jnp.all(state.found.lengths > 0, axis=1, keepdims=True)
    scored = jnp.where(taken, scores / _power(count, beams.length_penalty), NONE_YET)
    by_itself = is_end
    if config.end_at_limit:
        by_itself &= count < config.max_length - width
    new = Hypotheses(tokens, jnp.where(taken, width + count, 0), scored, by_itself & taken)
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), state.found, new)
    best = jax.lax.top_k(both.scores, beams.num_beams)[1]

    def kept(x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, best.reshape(*best.shape, *(1,) * (x.ndim - 2)), axis=1)

    found = jax.tree.map(kept, both)
    blank = jnp.where((found.lengths > 0)[..., None], found.tokens, config.pad_token)
    return Hypotheses(blank, found.lengths, found.scores, found.finished)


def _may_improve(
    running: jax.Array, found: Hypotheses, count: jax.Array, limit: int, beams: BeamConfig
) -> jax.Array:
    """Whether the best running hypothesis could still enter the finished ones, (B,)."""
    full = jnp.all(found.lengths > 0, axis=1)
    longest = count
    if beams.early_stopping == "never" and beams.length_penalty > 0:
        longest = jnp.asarray(limit)
    hoped = running[:, 0] / _power(longest, beams.length_penalty)
    worst = jnp.where(full, jnp.min(found.scores, axis=1), NONE_YET)
    improves = hoped > worst
    return improves & ~full if beams.early_stopping is True else improves


def _power(count: jax.Array, exponent: float) -> jax.Array:
    return count.astype(jnp.float32) ** exponent
