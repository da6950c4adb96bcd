"""What a wrong token costs: cross-entropy with T5's two additions."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    *,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "B T"], Float[Array, "B T"]]:
    """The cost in nats of each position, and the part of it that is z-loss. float32.

    With z the sum of exp(logits), a position costs log z - logit of its target, and on top
    `z_loss` * (log z) ** 2, which keeps logits from drifting off (MT3 takes 1e-4). With
    `label_smoothing` the target has 1 - label_smoothing of the probability and each other token an
    equal share of the rest; the entropy of that is subtracted, so that the best cost stays 0.
    Padding is the caller's: multiply by the mask. T5X and MT3 sum over what is left and divide by
    nothing; see t5x/losses.py (google-research/t5x). Targets must lie in 0..V-1.
    """
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    hit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    cost = log_z - hit
    if label_smoothing:
        others = logits.shape[-1] - 1
        on, off = 1.0 - label_smoothing, label_smoothing / max(others, 1)
        smoothed = log_z - (on - off) * hit - off * jnp.sum(logits, axis=-1)
        entropy = -(on * jnp.log(on) + others * off * jnp.log(off + 1e-20))
        cost = smoothed - entropy
    extra = z_loss * log_z**2
    return cost + extra, extra
