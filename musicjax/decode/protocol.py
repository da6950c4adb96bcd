"""What the decoder asks of a network: a cache, one step, and a way to fill the cache.

Nothing in this room looks inside a cache. A Transformer, a recurrent decoder or a toy in a test
decodes alike, as long as its cache can hand out and take in rows.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Float, Int

C = TypeVar("C", bound="DecodeCache")


@runtime_checkable
class DecodeCache(Protocol):
    """All that a decoder knows of its rows: a registered pytree whose leaves have a row axis.

    position (B,) counts the tokens that each row has been fed; rows stand at positions of their
    own. A row that has been fed as many tokens as the cache has room for may be stepped on; what
    comes out of it is thrown away, and it must not disturb other rows.
    """

    @property
    def position(self) -> Int[Array, "B"]:
        """Tokens fed so far, a row."""
        ...

    @property
    def max_length(self) -> int:
        """Tokens that a row has room for."""
        ...

    def resized(self: C, max_length: int) -> C:
        """The same rows with room for `max_length` tokens, no fewer than any running row holds.

        A cache that needs no room for tokens may give itself back.
        """
        ...

    def take(self: C, rows: Int[Array, "R"]) -> C:
        """The cache of these rows, in this order; a row may be asked for more than once."""
        ...

    def put(self: C, rows: Int[Array, "R"], other: C) -> C:
        """This cache with its `rows` replaced by the rows of `other`, position included.

        `other` may have room for fewer tokens; what lay behind its room is then never read before
        it is overwritten. A row number past the end leaves its row of `other` out.
        """
        ...


Step = Callable[[Int[Array, "B"], Any], tuple[Float[Array, "B V"], Any]]
"""`step(tokens (B,), cache) -> (logits (B, V) float32, cache)`: one token a row, pure."""

WeightedStep = Callable[[Any, Int[Array, "B"], Any], tuple[Float[Array, "B V"], Any]]
"""`step(weights, tokens (B,), cache)`: the same with the weights, a pytree, as first argument."""

Prefill = Callable[[Any, Any, int], DecodeCache]
"""`prefill(weights, inputs, max_length) -> cache`: encode a batch of inputs (a pytree of arrays
with a leading batch axis) and make a cache at position 0 with room for `max_length` tokens, with
cross-attention keys and values in it. Pure; `max_length` is static."""
