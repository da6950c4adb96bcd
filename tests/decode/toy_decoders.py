"""Two decoders small enough to check by hand: attention with a cache, and a table of logits."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

VOCABULARY, WIDTH, SOURCE = 13, 8, 5
END = 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ToyCache:
    """Keys and values (B, L, D), what the encoder said (B, S, D), position (B,)."""

    keys: Any
    values: Any
    encoded: Any
    position: Any

    @property
    def max_length(self):
        return self.keys.shape[1]

    def resized(self, max_length):
        def fit(x):
            more = max(0, max_length - x.shape[1])
            return jnp.pad(x[:, :max_length], ((0, 0), (0, more), (0, 0)))

        return replace(self, keys=fit(self.keys), values=fit(self.values))

    def take(self, rows):
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows, other):
        def begin(x, new):
            return x.at[rows, : new.shape[1]].set(new, mode="drop")

        return ToyCache(
            begin(self.keys, other.keys),
            begin(self.values, other.values),
            self.encoded.at[rows].set(other.encoded, mode="drop"),
            self.position.at[rows].set(other.position, mode="drop"),
        )


def toy_weights(seed=0, end_bias=0.0, size=1.5):
    """Random weights; `end_bias` makes the end token likelier, so rows shorter."""
    rng = np.random.default_rng(seed)
    shapes = {
        "tokens": (VOCABULARY, WIDTH),
        "places": (256, WIDTH),
        "query": (WIDTH, WIDTH),
        "key": (WIDTH, WIDTH),
        "value": (WIDTH, WIDTH),
        "cross": (WIDTH, WIDTH),
        "head": (WIDTH, VOCABULARY),
    }
    weights = {k: jnp.asarray(rng.normal(size=s) * size, jnp.float32) for k, s in shapes.items()}
    weights["bias"] = jnp.zeros(VOCABULARY).at[END].set(end_bias)
    return weights


def toy_inputs(count, seed=1):
    """What segments sound like: (count, S, D)."""
    return np.random.default_rng(seed).normal(size=(count, SOURCE, WIDTH)).astype(np.float32)


def toy_prefill(weights, inputs, max_length):
    """Encode, and make a cache."""
    batch = inputs.shape[0]
    zeros = jnp.zeros((batch, max_length, WIDTH))
    encoded = jnp.tanh(inputs @ weights["cross"])
    return ToyCache(zeros, zeros, encoded, jnp.zeros(batch, jnp.int32))


def _attend(query, keys, values, mask):
    logits = jnp.where(mask, jnp.einsum("btd,bsd->bts", query, keys), -1e9)
    return jnp.einsum("bts,bsd->btd", jax.nn.softmax(logits, axis=-1), values)


def _logits(weights, x, keys, values, encoded, mask):
    y = x + _attend(x @ weights["query"], keys, values, mask)
    y = y + _attend(y, encoded, encoded, True)
    return jnp.tanh(y) @ weights["head"] + weights["bias"]


def toy_step(weights, tokens, cache):
    """One token a row, each row at its own position."""
    rows = jnp.arange(len(tokens))
    x = (weights["tokens"][tokens] + weights["places"][cache.position])[:, None]
    keys = cache.keys.at[rows, cache.position].set((x @ weights["key"])[:, 0], mode="drop")
    values = cache.values.at[rows, cache.position].set((x @ weights["value"])[:, 0], mode="drop")
    mask = jnp.arange(cache.max_length) <= cache.position[:, None]
    logits = _logits(weights, x, keys, values, cache.encoded, mask[:, None])[:, 0]
    return logits, ToyCache(keys, values, cache.encoded, cache.position + 1)


@jax.jit
def toy_decode(weights, inputs, tokens):
    """The same without a cache: logits after each of `tokens` (B, T)."""
    x = weights["tokens"][tokens] + weights["places"][jnp.arange(tokens.shape[1])]
    mask = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    encoded = jnp.tanh(inputs @ weights["cross"])
    return _logits(weights, x, x @ weights["key"], x @ weights["value"], encoded, mask)


def greedy_without_cache(weights, inputs, max_length, prompts=None, end=END):
    """Rows of tokens, decoded one by one from the definition."""
    rows = []
    for i in range(len(inputs)):
        row = [] if prompts is None else list(prompts[i])
        while len(row) < max_length:
            fed = np.zeros((1, max_length), np.int32)
            fed[0, 1 : len(row) + 1] = row
            logits = toy_decode(weights, inputs[i : i + 1], fed)[0, len(row)]
            row.append(int(np.argmax(logits)))
            if row[-1] == end:
                break
        rows.append(row)
    return rows


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TableCache:
    """Which item a row is of, the token before the newest, and the position; all (B,)."""

    item: Any
    before: Any
    position: Any

    @property
    def max_length(self):
        return 1

    def resized(self, max_length):
        return self

    def take(self, rows):
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows, other):
        return jax.tree.map(lambda x, y: x.at[rows].set(y, mode="drop"), self, other)


def table_cache(items):
    """A cache for these many items."""
    zeros = jnp.zeros(items, jnp.int32)
    return TableCache(jnp.arange(items), zeros, zeros)


def table_step(tables, tokens, cache):
    """Logits = by_place[item, position] + after[newest] + after_before[the one before]."""
    logits = tables["by_place"][cache.item, cache.position]
    logits = logits + tables["after"][tokens] + tables["after_before"][cache.before]
    return logits, TableCache(cache.item, tokens, cache.position + 1)
