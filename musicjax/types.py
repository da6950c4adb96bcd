"""The axis alphabet and the dtype policy that every system shares.

Shapes are written with jaxtyping (`Float[Array, "B T F"]`) in one alphabet:

B batch · N samples · T frames · F frequency bins or mels · P pitches (88) · L token length ·
S source length · D model width · H heads · K head width · M MLP width · V vocabulary · C classes
or channels · I instruments · Q quantised states.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp

LOWEST_PITCH = 21  # MIDI number of A0, the first of the 88 piano keys
NUM_PITCHES = 88


@dataclass(frozen=True)
class Policy:
    """Which dtype is used where. STFT, norm statistics, softmax and losses are float32 always."""

    param_dtype: Literal["float32", "bfloat16"] = "float32"
    dtype: Literal["float32", "bfloat16"] = "float32"
    matmul_precision: Literal["default", "high", "highest"] = "default"

    @property
    def compute(self) -> jnp.dtype:
        """Dtype of activations inside a network."""
        return jnp.dtype(self.dtype)

    @property
    def param(self) -> jnp.dtype:
        """Dtype in which parameters are stored."""
        return jnp.dtype(self.param_dtype)


def computing_in(config: Any, dtype: Literal["float32", "bfloat16"] | None) -> Any:
    """A system's config whose model computes in `dtype`; None leaves it as it is."""
    if dtype is None:
        return config
    return replace(config, policy=replace(config.policy, dtype=dtype))


Key = jax.Array  # a typed key from jax.random.key
