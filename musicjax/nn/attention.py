"""Multi-head attention, and the cache of keys and values that decoding token by token needs."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.extend
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from musicjax.nn.axes import constrain, linear
from musicjax.types import Key, Policy

_HEADS = ("batch", "length", "heads", "kv")


def cudnn_can(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    bias: Float[Array, "#B H T S"] | None,
    mask: Bool[Array, "#B 1 #T S"] | None,
) -> bool:
    """Whether cuDNN's fused attention computes this, and its gradient, exactly.

    It wants a CUDA device, half precision, heads of a multiple of 8 up to 128 wide and, with a
    bias, even lengths. A mask reaches it as a bias of the batch, and it gives no gradient for a
    bias of the batch: a learned bias together with a mask is left to XLA. So is a single query,
    which is bound by memory and not by arithmetic.
    """
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    if not half or "cuda" not in jax.extend.backend.get_backend().platform_version.lower():
        return False
    even = query.shape[1] % 2 == 0 and key.shape[1] % 2 == 0
    shaped = query.shape[-1] % 8 == 0 and query.shape[-1] <= 128 and query.shape[1] > 1
    if bias is not None and (mask is not None or bias.shape[0] > 1):
        return False
    return shaped and (even or (bias is None and mask is None))


def attend(
    query: Float[Array, "B T H K"],
    key: Float[Array, "B S H K"],
    value: Float[Array, "B S H K"],
    *,
    bias: Float[Array, "#B H T S"] | None = None,
    mask: Bool[Array, "#B 1 #T S"] | None = None,
    causal: bool = False,
    scale: float = 1.0,
) -> Float[Array, "B T H K"]:
    """softmax(scale * query · key + bias) · value over the keys where `mask` is True.

    With `causal`, a query sees no later key. The softmax is float32 in every policy. A query that
    may see nothing gets the mean of all values, as in T5X.
    """
    if cudnn_can(query, key, bias, mask):
        shape = (query.shape[0], 1, query.shape[1], key.shape[1])
        return jax.nn.dot_product_attention(
            query,
            key,
            value,
            None if bias is None else bias.astype(query.dtype),
            None if mask is None else jnp.broadcast_to(mask, shape),
            is_causal=causal,
            scale=scale,
            implementation="cudnn",
        )
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, is_causal=causal, scale=scale, implementation="xla"
    )


class Attention(nnx.Module):
    """Attention of `num_heads` heads whose joined width may differ from the model's.

    Kernels query, key, value (D, H * K) and out (H * K, D). T5 leaves 1 / sqrt(K) out of the
    logits and draws smaller queries instead (`scaled` is False).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        *,
        scaled: bool,
        bias: bool,
        dropout: float = 0.0,
        init: nnx.Initializer,
        policy: Policy,
        rngs: nnx.Rngs,
    ):
        def small(*args: object, **fields: object) -> jax.Array:
            return init(*args, **fields) / head_dim**0.5  # type: ignore[arg-type]

        make = partial(linear, bias=bias, policy=policy, rngs=rngs)
        joined, inward = num_heads * head_dim, ("embed", "joined_kv")
        self.query = make(width, joined, inward, init=init if scaled else small)
        self.key = make(width, joined, inward, init=init)
        self.value = make(width, joined, inward, init=init)
        self.out = make(joined, width, inward[::-1], init=init)
        self.num_heads, self.head_dim = num_heads, head_dim
        self.scale = head_dim**-0.5 if scaled else 1.0
        self.dropout = dropout

    def _heads(self, x: Float[Array, "B T J"]) -> Float[Array, "B T H K"]:
        return constrain(x.reshape(*x.shape[:2], self.num_heads, -1), *_HEADS)

    def keys_values(
        self, x: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]:
        """What queries will look at: keys and values of each position of `x`."""
        return self._heads(self.key(x)), self._heads(self.value(x))

    def __call__(
        self,
        x: Float[Array, "B T D"],
        keys: Float[Array, "B S H K"],
        values: Float[Array, "B S H K"],
        *,
        bias: Float[Array, "#B H T S"] | None = None,
        mask: Bool[Array, "#B 1 #T S"] | None = None,
        causal: bool = False,
        key: Key | None = None,
    ) -> Float[Array, "B T D"]:
        """What each position of `x` reads from the values. Dropout is active only with `key`."""
        if key is not None and self.dropout:
            # T5 drops the same weights for all queries. Dropping the values at those keys is the
            # same, and leaves the weights inside the fused kernel.
            kept = 1 - self.dropout
            keep = jax.random.bernoulli(key, kept, (*values.shape[:3], 1))
            values = jnp.where(keep, values / jnp.asarray(kept, values.dtype), 0)
        y = attend(
            self._heads(self.query(x)).astype(keys.dtype),
            keys,
            values,
            bias=bias,
            mask=mask,
            causal=causal,
            scale=self.scale,
        )
        return self.out(y.reshape(*y.shape[:2], -1))


def _stored(x: Float[Array, "B S H K"]) -> Float[Array, "B H K S"]:
    return x.transpose(0, 2, 3, 1)


def _read(x: Float[Array, "B H K S"]) -> Float[Array, "B S H K"]:
    return x.transpose(0, 3, 1, 2)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """What one decoder layer remembers: its own keys and values, and those of the encoder.

    Positions come last, as in T5X: the products with a single query then read memory as it lies.
    With positions before heads, all of it would be transposed for every token.
    """

    keys: Float[Array, "B H K L"]
    values: Float[Array, "B H K L"]
    cross_keys: Float[Array, "B H K S"] | None
    cross_values: Float[Array, "B H K S"] | None

    @classmethod
    def empty(
        cls,
        batch: int,
        max_length: int,
        layer: Attention,
        dtype: jnp.dtype,
        crossed: tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None,
    ) -> "LayerCache":
        """Room for `max_length` tokens, and keys and values of the encoder if there is one."""
        shape = (batch, layer.num_heads, layer.head_dim, max_length)
        zeros = constrain(jnp.zeros(shape, dtype), "batch", "heads", "kv", None)
        keys, values = (
            (None, None) if crossed is None else (_stored(x.astype(dtype)) for x in crossed)
        )
        return cls(zeros, zeros, keys, values)

    @property
    def own(self) -> tuple[Float[Array, "B L H K"], Float[Array, "B L H K"]]:
        """Keys and values of the tokens."""
        return _read(self.keys), _read(self.values)

    @property
    def crossed(self) -> tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]] | None:
        """Keys and values of the encoder, if there is one."""
        if self.cross_keys is None or self.cross_values is None:
            return None
        return _read(self.cross_keys), _read(self.cross_values)

    def extended(
        self,
        keys: Float[Array, "B T H K"],
        values: Float[Array, "B T H K"],
        positions: Int[Array, "B T"],
    ) -> "LayerCache":
        """The cache with these keys and values written at `positions` of each row.

        Positions past the end are not written.
        """

        def write(mine: jax.Array, new: jax.Array, places: jax.Array) -> jax.Array:
            return mine.at[:, :, places].set(
                jnp.moveaxis(new, 0, -1).astype(mine.dtype), mode="drop"
            )

        # Row by row, so that on a mesh each device writes its own rows: with row numbers as
        # indices the compiler would gather what is written on every device.
        return replace(
            self,
            keys=jax.vmap(write)(self.keys, keys, positions),
            values=jax.vmap(write)(self.values, values, positions),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """The state of a decoder that goes on token by token; a pytree that enters loops and exports.

    position (B,): how many tokens each row has read, so where its next one goes. encoded_mask
    (B, S): which encoder positions exist; all if None. Rows are independent of each other.
    """

    layers: tuple[LayerCache, ...]
    encoded_mask: Bool[Array, "B S"] | None
    position: Int[Array, "B"]

    @property
    def max_length(self) -> int:
        """How many tokens a row can hold."""
        return self.layers[0].keys.shape[-1]

    def take(self, rows: Int[Array, "R"]) -> "Cache":
        """The cache of these rows, in this order: what beams that changed places need."""
        return jax.tree.map(lambda x: x[rows], self)

    def put(self, rows: Int[Array, "R"], other: "Cache") -> "Cache":
        """This cache with `rows` replaced by those of `other` (R rows); how a slot is refilled.

        `other` may hold fewer tokens at most: a fresh cache made with `max_length=1` is enough to
        start a row anew. A row number equal to the number of rows is passed over.
        """

        def whole(x: jax.Array, new: jax.Array) -> jax.Array:
            return x.at[rows].set(new, mode="drop")

        def start(x: jax.Array, new: jax.Array) -> jax.Array:
            return x.at[rows, :, :, : new.shape[-1]].set(new, mode="drop")

        layers = (
            LayerCache(
                start(mine.keys, new.keys),
                start(mine.values, new.values),
                jax.tree.map(whole, mine.cross_keys, new.cross_keys),
                jax.tree.map(whole, mine.cross_values, new.cross_values),
            )
            for mine, new in zip(self.layers, other.layers, strict=True)
        )
        rest = (self.encoded_mask, self.position), (other.encoded_mask, other.position)
        return Cache(tuple(layers), *jax.tree.map(whole, *rest))

    def resized(self, max_length: int) -> "Cache":
        """The same cache with room for `max_length` tokens a row, no fewer than were read.

        A step costs as much as the room there is: start small and double it while decoding.
        """

        def fit(x: jax.Array) -> jax.Array:
            more = max(max_length - x.shape[-1], 0)
            return jnp.pad(x[..., :max_length], ((0, 0), (0, 0), (0, 0), (0, more)))

        layers = (replace(c, keys=fit(c.keys), values=fit(c.values)) for c in self.layers)
        return replace(self, layers=tuple(layers))
