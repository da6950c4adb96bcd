"""Where a token stands: fixed sinusoids, and T5's bias that depends on distance only."""

from functools import lru_cache

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from musicjax.nn.axes import axes
from musicjax.types import Policy


def sinusoids(length: int, width: int, *, max_scale: float = 10000.0) -> Float[np.ndarray, "L D"]:
    """Fixed positions 0..length-1: sines in the first half of the row, cosines in the second.

    Frequency j of width / 2 is max_scale ** (-j / (width / 2 - 1)) radians per position, from 1
    down to 1 / max_scale. Vaswani et al. (2017, section 3.5) interleave the two and never reach
    the last frequency; this is the form of Tensor2Tensor, T5X, MT3 and LP-MusicCaps. An odd
    column stays zero. float32, computed in float64.
    """
    half = width // 2
    rates = max_scale ** (-np.arange(half) / max(half - 1, 1))
    angles = np.arange(length)[:, None] * rates
    table = np.zeros((length, width), np.float32)
    table[:, :half] = np.sin(angles)
    table[:, half : 2 * half] = np.cos(angles)
    return table


@lru_cache
def relative_buckets(
    num_buckets: int, max_distance: int, bidirectional: bool
) -> Int[np.ndarray, "distances"]:
    """The bucket of each distance key - query, from -max_distance to max_distance.

    Raffel et al. (2020), section 2.1: half of the buckets hold one distance each, the other half
    grow logarithmically up to `max_distance`, beyond which all distances share the last one. In
    one direction all buckets look back, and keys that come later count as distance zero.
    """
    distance = np.arange(-max_distance, max_distance + 1)
    if bidirectional:
        num_buckets //= 2
        first, back = np.where(distance > 0, num_buckets, 0), np.abs(distance)
    else:
        first, back = np.zeros_like(distance), np.maximum(-distance, 0)
    exact = num_buckets // 2
    # The tiny number keeps powers of two on their side of the edge between two buckets.
    growth = np.log(np.maximum(back, 1) / exact + 1e-9) / np.log(max_distance / exact)
    far = exact + (growth * (num_buckets - exact)).astype(int)
    return first + np.where(back < exact, back, np.minimum(far, num_buckets - 1))


class RelativeBias(nnx.Module):
    """A learned number for each head and bucket of distances, added to attention logits.

    Parameter: embedding (num_heads, num_buckets), T5X's layout; one such table serves all layers
    of a stack.
    """

    def __init__(
        self,
        num_heads: int,
        num_buckets: int,
        max_distance: int,
        *,
        bidirectional: bool,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(1.0, "fan_avg", "uniform")
        value = init(rngs.params(), (num_heads, num_buckets), policy.param)
        self.embedding = nnx.Param(value, **axes("heads", "relpos_buckets"))
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def __call__(
        self, queries: Int[Array, "B T"], keys: Int[Array, "S"]
    ) -> Float[Array, "B H T S"]:
        """The bias between positions `queries` and `keys`, float32."""
        buckets = relative_buckets(self.num_buckets, self.max_distance, self.bidirectional)
        by_distance = self.embedding[...].astype(jnp.float32)[:, buckets]
        distance = jnp.clip(
            keys - queries[..., None] + self.max_distance, 0, 2 * self.max_distance
        )  # (B, T, S)
        return jnp.moveaxis(by_distance[:, distance], 0, 1)
