"""From a network that hears ahead, the start of one that hears less of it.

A convolution over the frames before, now and after becomes one over now and the two before, if what
lies ahead is taken to be as now: the weights of "after" are added to those of "now". So the network
begins with much of what it knew and has to learn only what the missing frame told.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array

from musicjax.models.piano_ar.config import PianoARConfig


def adapt(
    tensors: Mapping[str, Array], theirs: PianoARConfig, config: PianoARConfig
) -> dict[str, Array]:
    """Weights of a form that hears `theirs.conv_ahead`, made ready for `config.conv_ahead`.

    Other differences of form are left to names and shapes.
    """
    adapted = dict(tensors)
    for number, (there, here) in enumerate(
        zip(theirs.conv_ahead, config.conv_ahead, strict=True), start=1
    ):
        if there <= here:
            continue
        for stack in ("stack", "frame_stack"):
            path = f"{stack}.conv{number}.kernel"
            if path in adapted:
                before, now, after = adapted[path]
                adapted[path] = jnp.stack([jnp.zeros_like(before), before, now + after])
    return adapted
