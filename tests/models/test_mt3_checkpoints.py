"""The public checkpoints of MT3 and of the piano model: which vocabulary belongs to which."""

import numpy as np
import pytest
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.t5x import unflatten, write_t5x
from musicjax.hub.t5x_layouts import t5x_names
from musicjax.models.mt3.convert import VOCABULARIES, read_transformer
from musicjax.nn.forms import form
from musicjax.nn.transformer import Transformer

TINY = {"d_model": 4, "num_heads": 2, "head_dim": 2, "mlp_dim": 4, "input_dim": 3}
TINY |= {"num_encoder_layers": 1, "num_decoder_layers": 1}


def checkpoint(folder, rows):
    """A checkpoint of this many token rows, everything in it filled with its place in the table."""

    config = form("mt3", vocab_size=rows, **TINY)
    state = nnx.state(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))), nnx.Param)
    shapes = {
        ".".join(map(str, keys)): variable.get_value().shape
        for keys, variable in nnx.to_flat_state(state)
    }
    target = {
        theirs: np.full(shapes[ours], place, np.float32)
        for place, (theirs, ours) in enumerate(t5x_names(config).items())
    }
    return write_t5x(folder, {"target": unflatten(target), "state": {"step": 1}}), config


@pytest.mark.parametrize("rows", VOCABULARIES)
def test_every_parameter_lands_in_its_place(tmp_path, rows):
    folder, config = checkpoint(tmp_path, rows)
    flat = {
        ".".join(map(str, keys)): variable.get_value()
        for keys, variable in nnx.to_flat_state(
            nnx.state(read_transformer(folder, config), nnx.Param)
        )
    }
    for place, ours in enumerate(t5x_names(config).values()):
        assert (flat[ours] == place).all(), ours


def test_a_vocabulary_that_does_not_fit_is_told_by_name(tmp_path):
    folder, _ = checkpoint(tmp_path, 1664)
    with pytest.raises(WeightsError, match=r"1664 token rows, the vocabulary of ismir2021 \(127"):
        read_transformer(folder, form("mt3", vocab_size=1536, **TINY))
    with pytest.raises(WeightsError, match="one of 99 rows"):
        read_transformer(folder, form("mt3", vocab_size=99, **TINY))
