"""The decoding loop: one explicit state, one step, and `generate` around them.

`start` makes the state of a batch of rows, `advance` gives every row its next token, and
`generate` runs `advance` in a `lax.while_loop` until no row has anything left to say, one loop for
each of a few sizes that the cache grows through. The same
`advance` serves streaming (call it yourself, a token at a time), export (jit it with its state) and
slot refilling (`musicjax.decode.slots`), so that all of them give the same tokens.

A row's randomness comes from its own key and the number of tokens it holds, never from the place
or the company in which it is decoded.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from musicjax.decode.config import GenerateConfig
from musicjax.decode.grammar import GrammarMask
from musicjax.decode.protocol import DecodeCache, Step
from musicjax.decode.sampling import FORBIDDEN, apply_rules, choose, is_any
from musicjax.errors import ConfigError

SMALLEST_ROOM = 128  # below, the other costs of a step outweigh what attention reads


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeState:
    """Rows that are being decoded. Every leaf is an array with a row axis.

    tokens    what each row holds: its prompt (all of it, from the beginning), then what was
              decoded, its end token included, then padding.
    lengths   tokens decoded so far, counting those of the prompt as they pass.
    prompts   tokens of the prompt.
    limits    tokens that the row may hold, at most L.
    newest    the token to be fed next; the start token at first.
    finished  whether the row has come to an end token.
    scores    summed log-probability, in the network's own distribution (before rules, grammar and
              temperature), of the tokens that were not forced.
    keys      one key a row, or None when nothing is drawn at random.
    bias      what is added to a row's logits before anything else, or None.
    grammar   state of the grammar, or None.
    cache     the network's cache.
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, "B"]
    prompts: Int[Array, "B"]
    limits: Int[Array, "B"]
    newest: Int[Array, "B"]
    finished: Bool[Array, "B"]
    scores: Float[Array, "B"]
    keys: jax.Array | None
    bias: Float[Array, "B V"] | None
    grammar: Any
    cache: Any

    @property
    def running(self) -> Bool[Array, "B"]:
        """Rows that have neither come to an end token nor to their limit."""
        return ~self.finished & (self.lengths < self.limits)

    def take(self, rows: Int[Array, "R"]) -> "DecodeState":
        """These rows, in this order."""
        plain = jax.tree.map(lambda x: x[rows], replace(self, cache=None))
        return replace(plain, cache=self.cache.take(rows))

    def put(self, rows: Int[Array, "R"], other: "DecodeState") -> "DecodeState":
        """These rows replaced by those of `other`; a number past the end leaves its row out."""
        mine, theirs = replace(self, cache=None), replace(other, cache=None)
        plain = jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), mine, theirs)
        return replace(plain, cache=self.cache.put(rows, other.cache))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Generated:
    """What `generate` gives.

    tokens    prompt, decoded tokens with the end token, then padding.
    lengths   tokens of each row, end token included.
    scores    summed log-probability of the decoded tokens in the network's own distribution.
    finished  whether the row ended by itself; the others were cut at their limit.
    """

    tokens: Int[Array, "B L"]
    lengths: Int[Array, "B"]
    scores: Float[Array, "B"]
    finished: Bool[Array, "B"]


def start(
    cache: DecodeCache,
    config: GenerateConfig,
    *,
    key: jax.Array | None = None,
    prompt: Int[Array, "B P"] | None = None,
    prompt_lengths: Int[Array, "B"] | None = None,
    limits: Int[Array, "B"] | None = None,
    bias: Float[Array, "B V"] | None = None,
    grammar: GrammarMask | None = None,
) -> DecodeState:
    """The state before the first token, for the rows of `cache` (at position 0).

    `prompt` holds tokens that each row must begin with, its first `prompt_lengths` columns (all of
    them when not given). `limits` sets a most number of tokens for each row, below `max_length`.
    `key`: one key, from which row i gets `fold_in(key, i)`, or (B,) keys, one a row. `bias` is
    added to the logits of all steps, a way to favour tokens that are likely for other reasons than
    the network has; scores stay the network's own.

    Raises ConfigError when a key is missing or the prompt is longer than `max_length`.
    """
    batch = cache.position.shape[0]
    if config.samples and key is None:
        raise ConfigError(
            f"temperature={config.temperature} draws tokens at random; give key=jax.random.key(...)"
        )
    if prompt is None:
        prompt = jnp.zeros((batch, 0), jnp.int32)
    if prompt.shape[1] > config.max_length:
        raise ConfigError(
            f"the prompt has {prompt.shape[1]} tokens, more than max_length={config.max_length}; "
            "shorten it or raise max_length."
        )
    if prompt_lengths is None:
        prompt_lengths = jnp.full(batch, prompt.shape[1], jnp.int32)
    if config.first_token is not None:
        prompt, prompt_lengths = _begin_with(config.first_token, prompt, prompt_lengths)
    prompted = jnp.arange(prompt.shape[1]) < prompt_lengths[:, None]
    prompt = jnp.where(prompted, prompt, config.pad_token)
    room = ((0, 0), (0, config.max_length - prompt.shape[1]))
    most = jnp.full(batch, config.max_length, jnp.int32)
    return DecodeState(
        tokens=jnp.pad(prompt, room, constant_values=config.pad_token).astype(jnp.int32),
        lengths=jnp.zeros(batch, jnp.int32),
        prompts=prompt_lengths.astype(jnp.int32),
        limits=most if limits is None else jnp.minimum(limits, most).astype(jnp.int32),
        newest=jnp.full(batch, config.start_token, jnp.int32),
        finished=jnp.zeros(batch, bool),
        scores=jnp.zeros(batch, jnp.float32),
        keys=_row_keys(key, batch) if config.samples else None,
        bias=bias,
        grammar=None if grammar is None else grammar.initial(batch),
        cache=cache,
    )


def _begin_with(token: int, prompt: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The prompts, where those that are empty become this one token."""
    if prompt.shape[1] == 0:
        prompt = jnp.pad(prompt, ((0, 0), (0, 1)))
    bare = lengths == 0
    prompt = prompt.at[:, 0].set(jnp.where(bare, token, prompt[:, 0]))
    return prompt, jnp.where(bare, 1, lengths)


def _row_keys(key: jax.Array | None, batch: int) -> jax.Array:
    assert key is not None
    if key.ndim == 1:
        return key
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(batch))


def advance(
    step: Step, state: DecodeState, config: GenerateConfig, grammar: GrammarMask | None = None
) -> DecodeState:
    """Give every running row its next token; rows that have ended stay as they are."""
    logits, cache = step(state.newest, state.cache)
    running = state.running
    forced = state.lengths < state.prompts
    here = jnp.minimum(state.lengths, state.tokens.shape[1] - 1)[:, None]

    favoured = logits if state.bias is None else logits + state.bias
    ruled = apply_rules(favoured, state.tokens, state.lengths, config)
    if grammar is not None:
        ruled = jnp.where(grammar.allowed(state.grammar), ruled, FORBIDDEN)
    keys = None
    if state.keys is not None:
        keys = jax.vmap(jax.random.fold_in)(state.keys, state.lengths)
    chosen = choose(ruled, keys, config)
    ends = is_any(chosen, config.end_tokens) & ~forced
    if config.end_at_limit:
        at_limit = state.lengths + 1 >= state.limits
        chosen = jnp.where(at_limit, config.end_tokens[0], chosen)
    chosen = jnp.where(forced, jnp.take_along_axis(state.tokens, here, axis=1)[:, 0], chosen)

    log_probability = jnp.take_along_axis(logits, chosen[:, None], axis=1)[:, 0]
    log_probability -= jax.nn.logsumexp(logits, axis=1)
    # A row that has ended writes past the end of the buffer, that is, nowhere. Compared rather than
    # indexed: on a mesh, indices that count rows would be gathered on every device.
    column = jnp.where(running, state.lengths, state.tokens.shape[1])
    newest_here = jnp.arange(state.tokens.shape[1]) == column[:, None]
    return DecodeState(
        tokens=jnp.where(newest_here, chosen[:, None], state.tokens),
        lengths=state.lengths + running,
        prompts=state.prompts,
        limits=state.limits,
        newest=jnp.where(running, chosen, config.pad_token).astype(jnp.int32),
        finished=state.finished | (running & ends),
        scores=state.scores + jnp.where(running & ~forced, log_probability, 0.0),
        keys=state.keys,
        bias=state.bias,
        grammar=None if grammar is None else grammar.advance(state.grammar, chosen),
        cache=cache,
    )


def generate(
    step: Step,
    cache: DecodeCache,
    config: GenerateConfig,
    *,
    key: jax.Array | None = None,
    prompt: Int[Array, "B P"] | None = None,
    prompt_lengths: Int[Array, "B"] | None = None,
    limits: Int[Array, "B"] | None = None,
    grammar: GrammarMask | None = None,
) -> Generated:
    """Decode all rows of `cache` together, until each has ended or is at its limit.

    `step(tokens (B,), cache) -> (logits (B, V) float32, cache)` is pure. The other arguments are
    those of `start`. The caller jits:

    >>> @jax.jit
    ... def sentences(weights, inputs):
    ...     model = nnx.merge(graph, weights)
    ...     encoded = model.encode(inputs)
    ...     cache = model.init_cache(encoded, batch=len(inputs), max_length=config.max_length)
    ...     return generate(model.step, cache, config)

    The cache may have any room; the loop gives it what it needs, up to `max_length` (the start
    token takes one place, and the last token is never fed).
    """
    state = start(
        cache,
        config,
        key=key,
        prompt=prompt,
        prompt_lengths=prompt_lengths,
        limits=limits,
        grammar=grammar,
    )
    state = run(step, state, config, grammar)
    held = jnp.arange(config.max_length) < state.lengths[:, None]  # a limit may cut a prompt
    tokens = jnp.where(held, state.tokens, config.pad_token)
    return Generated(tokens, state.lengths, state.scores, state.finished)


def run(
    step: Step, state: DecodeState, config: GenerateConfig, grammar: GrammarMask | None = None
) -> DecodeState:
    """`advance` in a `lax.while_loop` until no row is running.

    A step of attention costs as much as its cache has room. So where rows may become long, this
    is one loop for each of `room_sizes`, the next one with a larger cache; loops for lengths that
    no row reaches take no step.
    """
    for room in room_sizes(config.max_length):
        state = replace(state, cache=state.cache.resized(room))

        def go_on(state: DecodeState, room: int = room) -> jax.Array:
            return jnp.any(state.running) & (longest(state) < room)

        state = jax.lax.while_loop(go_on, lambda s: advance(step, s, config, grammar), state)
    return state


def longest(state: DecodeState) -> Int[Array, ""]:
    """Tokens in the longest row that is still running."""
    return jnp.max(jnp.where(state.running, state.lengths, 0))


def room_sizes(max_length: int) -> tuple[int, ...]:
    """How much room a cache gets, as its rows grow: 128, 256, 512 … up to `max_length`."""
    sizes = [SMALLEST_ROOM]
    while sizes[-1] < max_length:
        sizes.append(2 * sizes[-1])
    return (*sizes[:-1], max_length)
