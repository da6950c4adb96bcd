"""A run that goes on in T5X and comes back: every number the same."""

import jax
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import TrainingError, WeightsError
from musicjax.hub.t5x import flatten, open_t5x, write_t5x
from musicjax.nn.forms import form
from musicjax.nn.transformer import Transformer
from musicjax.train.config import OptimConfig
from musicjax.train.state import make_optimizer, new_state
from musicjax.train.t5x_state import from_t5x, to_t5x

CONFIG = form(
    "mt3",
    vocab_size=7,
    input_dim=5,
    d_model=4,
    num_heads=2,
    head_dim=3,
    mlp_dim=3,
    num_encoder_layers=1,
    num_decoder_layers=1,
)
OPTIM = OptimConfig(name="adafactor", factored_from=4, clip_norm=0.0, schedule="constant")


def random_state(seed, optim=OPTIM):
    """A training state of numbers that are all different; nothing is compiled."""
    optimizer = make_optimizer(optim, 100)
    abstract = nnx.eval_shape(
        lambda: new_state(Transformer(CONFIG, rngs=nnx.Rngs(0)), optimizer, optim)
    )
    rng = np.random.default_rng(seed)

    def fill(leaf):
        if np.issubdtype(leaf.dtype, np.integer):
            return jax.device_put(np.full(leaf.shape, 10 * seed, leaf.dtype))
        if leaf.shape == (1,):
            return jax.device_put(np.zeros(1, leaf.dtype))
        return jax.device_put(rng.normal(size=leaf.shape).astype(leaf.dtype))

    return jax.tree.map(fill, abstract)


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("layout", ["legacy", "orbax"])
def test_there_and_back(tmp_path, layout):
    state = random_state(3)
    tree = to_t5x(state, CONFIG)
    leaves = flatten(tree)
    kernel = "state/param_states/decoder/logits_dense/kernel"  # (4, 7): factored
    assert leaves[f"{kernel}/v_row"].shape == (4,) and leaves[f"{kernel}/v_col"].shape == (7,)
    assert leaves[f"{kernel}/v"].shape == leaves[f"{kernel}/m"].shape == (1,)
    assert leaves["state/param_states/encoder/encoder_norm/scale/v"].shape == (4,)
    folder = write_t5x(tmp_path, tree, layout=layout)
    assert folder.name == "checkpoint_30"
    back = from_t5x(random_state(4), open_t5x(folder), CONFIG)
    assert_same((back.params, back.opt_state), (state.params, state.opt_state))
    assert int(back.step) == 30
    assert_same(back.ema, back.params)


def test_everything_that_does_not_fit_is_said_at_once(tmp_path):
    tree = to_t5x(random_state(3), CONFIG)
    tree["target"]["encoder"]["encoder_norm"]["scale"] = np.zeros(5, np.float32)
    slots = tree["state"]["param_states"]["decoder"]["logits_dense"]["kernel"]
    del slots["v_row"]
    slots["m"] = np.zeros((4, 7), np.float32)
    tree["target"]["extra"] = np.zeros(2, np.float32)
    checkpoint = open_t5x(write_t5x(tmp_path, tree))
    with pytest.raises(WeightsError) as error:
        from_t5x(random_state(4), checkpoint, CONFIG)
    message = str(error.value)
    assert "in 4 places" in message
    assert "target/extra is unknown to this run" in message
    assert "target/encoder/encoder_norm/scale is (5,), this run has (4,)" in message
    assert "decoder/logits_dense/kernel/v_row is missing" in message
    assert "decoder/logits_dense/kernel/m has a momentum" in message


def test_another_optimizer_has_no_slots_in_t5x():
    with pytest.raises(TrainingError, match=r"optim\.name to adafactor"):
        to_t5x(random_state(1, OptimConfig(name="adam")), CONFIG)
