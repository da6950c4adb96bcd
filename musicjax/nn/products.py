"""Matrix products of half-precision operands whose sums are float32, forwards and backwards.

CPUs with matrix units (AMX) reach five times the speed of float32 with them, but XLA uses the units
only when both operands of a product are bfloat16 and its result is float32. Differentiated as
written, such a product has gradients of mixed operands, which fall back to float32; so they are
written here.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from musicjax.types import Policy

_LAST_WITH_FIRST = (((1,), (0,)), ((), ()))
_FIRST_WITH_FIRST = (((0,), (0,)), ((), ()))
_LAST_WITH_LAST = (((1,), (1,)), ((), ()))


def _product(x: jax.Array, y: jax.Array, contracted: Any) -> jax.Array:
    return jax.lax.dot_general(x, y, contracted, preferred_element_type=jnp.float32)


@jax.custom_vjp
def half_product(x: Float[Array, "N K"], y: Float[Array, "K M"]) -> Float[Array, "N M"]:
    """x @ y with operands rounded to bfloat16; the result is float32."""
    return _product(x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), _LAST_WITH_FIRST)


def _half_product_fwd(x: jax.Array, y: jax.Array) -> tuple[jax.Array, tuple]:
    halves = x.astype(jnp.bfloat16), y.astype(jnp.bfloat16)
    # Of the full operands nothing is kept but their types.
    return _product(*halves, _LAST_WITH_FIRST), (*halves, x[:0], y[:0])


def _half_product_bwd(residuals: tuple, dz: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y, like_x, like_y = residuals
    dz = dz.astype(jnp.bfloat16)
    dx = _product(dz, y, _LAST_WITH_LAST)
    dy = _product(x, dz, _FIRST_WITH_FIRST)
    return dx.astype(like_x.dtype), dy.astype(like_y.dtype)


half_product.defvjp(_half_product_fwd, _half_product_bwd)


def _dense(x: jax.Array, kernel: jax.Array, dimensions: Any, **_: Any) -> jax.Array:
    """In the place of `lax.dot_general` in a dense layer: last axis of x with first of kernel."""
    y = half_product(x.reshape(-1, x.shape[-1]), kernel)
    return y.reshape(*x.shape[:-1], kernel.shape[-1]).astype(x.dtype)


def dense_product(policy: Policy) -> Any:
    """What a dense layer multiplies with: on CPU and in bfloat16 the product above, rounded once
    its sums are done; elsewhere the device's own."""
    half = policy.compute == jnp.bfloat16 and jax.default_backend() == "cpu"
    return _dense if half else jax.lax.dot_general
