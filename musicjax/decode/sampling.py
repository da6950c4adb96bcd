"""From logits to one token a row: rules, then truncation of the distribution, then the choice.

Every function works on one step of a batch of rows, (B, V) logits, and is pure; forbidden tokens
get a logit of minus infinity. The order and arithmetic are those of transformers' `generate`, so
that a published checkpoint with its published settings gives its published sentences.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from musicjax.decode.config import GenerateConfig

FORBIDDEN = -jnp.inf


def apply_rules(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B L"],
    lengths: Int[Array, "B"],
    config: GenerateConfig,
) -> Float[Array, "B V"]:
    """The logits of the next token under the rules of `config` that look at a row's tokens.

    `tokens` holds `lengths` tokens a row, without the start token; what stands behind them does
    not matter. With all rules off the logits come back as they are.
    """
    if config.repetition_penalty != 1.0:
        logits = penalise_repetition(logits, *_history(tokens, lengths, config), config)
    if config.no_repeat_ngram:
        logits = forbid_ngrams(logits, *_history(tokens, lengths, config), config.no_repeat_ngram)
    if config.min_length and config.end_tokens:
        is_end = jnp.zeros(logits.shape[-1], bool).at[jnp.array(config.end_tokens)].set(True)
        too_short = (lengths < config.min_length)[:, None]
        logits = jnp.where(too_short & is_end, FORBIDDEN, logits)
    return logits


def _history(
    tokens: jax.Array, lengths: jax.Array, config: GenerateConfig
) -> tuple[jax.Array, jax.Array]:
    """All tokens that the network has been fed or has given, and how many they are."""
    start = jnp.full((tokens.shape[0], 1), config.start_token, tokens.dtype)
    return jnp.concatenate([start, tokens], axis=1), lengths + 1


def penalise_repetition(
    logits: Float[Array, "B V"],
    history: Int[Array, "B L"],
    counts: Int[Array, "B"],
    config: GenerateConfig,
) -> Float[Array, "B V"]:
    """Tokens among the first `counts` of `history` made less likely by `repetition_penalty`."""
    rows, vocabulary = jnp.arange(len(history))[:, None], logits.shape[-1]
    held = jnp.arange(history.shape[1]) < counts[:, None]
    seen = jnp.zeros(logits.shape, bool).at[rows, jnp.where(held, history, vocabulary)].set(True)
    penalty = config.repetition_penalty
    return jnp.where(seen, jnp.where(logits < 0, logits * penalty, logits / penalty), logits)


def forbid_ngrams(
    logits: Float[Array, "B V"], history: Int[Array, "B L"], counts: Int[Array, "B"], n: int
) -> Float[Array, "B V"]:
    """No token that would complete n tokens which `history` already holds in that order."""
    rows, (_, length) = jnp.arange(len(history))[:, None], history.shape
    if length < n:
        return logits
    starts = jnp.arange(length - n + 1)
    repeats = starts + n <= counts[:, None]  # an n-gram that is there in full
    for i in range(n - 1):
        newest = jnp.take_along_axis(history, (counts - (n - 1) + i)[:, None], axis=1)
        repeats &= history[:, i : length - n + 1 + i] == newest
    completing = jnp.where(repeats, history[:, n - 1 :], logits.shape[-1])
    return logits.at[rows, completing].set(FORBIDDEN)


def keep_top_k(logits: Float[Array, "B V"], k: int) -> Float[Array, "B V"]:
    """The k largest logits and all that equal the smallest of them; the others forbidden."""
    smallest = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][:, -1:]
    return jnp.where(logits < smallest, FORBIDDEN, logits)


def keep_top_p(logits: Float[Array, "B V"], p: float | Float[Array, ""]) -> Float[Array, "B V"]:
    """The fewest likeliest tokens whose probabilities reach p; the others forbidden.

    The likeliest token always stays. Tokens exactly as likely as the last one kept stay too, so
    that the answer does not hang on the order of the vocabulary.
    """
    ranked = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ranked, axis=-1)
    mass_before = jnp.cumsum(probabilities, axis=-1) - probabilities
    smallest = jnp.min(jnp.where(mass_before < p, ranked, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(logits < smallest, FORBIDDEN, logits)


def choose(
    logits: Float[Array, "B V"], keys: jax.Array | None, config: GenerateConfig
) -> Int[Array, "B"]:
    """One token a row: the likeliest, or one drawn with the row's own key (keys: (B,) typed)."""
    if not config.samples:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    assert keys is not None
    logits = logits / config.temperature
    if config.top_k is not None:
        logits = keep_top_k(logits, config.top_k)
    if config.top_p is not None:
        logits = keep_top_p(logits, config.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def is_any(tokens: Int[Array, "*batch"], wanted: tuple[int, ...]) -> Bool[Array, "*batch"]:
    """Where a token is one of `wanted`."""
    hit = jnp.zeros(tokens.shape, bool)
    for token in wanted:
        hit |= tokens == token
    return hit
