"""The conversion engine: each transform, and every kind of misfit at once."""

import jax
import numpy as np
import pytest
from flax import nnx

from musicjax.errors import WeightsError
from musicjax.hub.convert import Rule, convert


class Pair(nnx.Module):
    def __init__(self, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(4, 3, rngs=rngs)
        self.second = nnx.Linear(3, 2, rngs=rngs)


def abstract():
    return nnx.state(nnx.eval_shape(lambda: Pair(rngs=nnx.Rngs(0))))


RULES = [
    Rule(r"(first|second)\.weight", r"\1.kernel", "transpose"),
    Rule(r"(first|second)\.bias", r"\1.bias"),
]


def weights():
    rng = np.random.default_rng(0)
    shapes = {"first.weight": (3, 4), "first.bias": (3,), "second.weight": (2, 3), "second.bias": 2}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def test_a_table_fills_a_model():
    source = weights() | {"steps": np.array(5)}
    state = convert(source, abstract(), RULES, ignore={"steps": "a counter"})
    np.testing.assert_allclose(state["first"]["kernel"][...], source["first.weight"].T, rtol=1e-6)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(state))


def test_everything_wrong_is_said_at_once():
    source = weights()
    source["first.weight"] = np.zeros((3, 5))
    source["steps"] = np.array(5)
    source["second.bias_again"] = source["second.bias"]
    source["third.bias"] = source.pop("first.bias")
    rules = [*RULES, Rule(r"(third)\.bias", r"\1.bias"), Rule("second.bias_again", "second.bias")]
    with pytest.raises(WeightsError) as error:
        convert(source, abstract(), rules)
    message = str(error.value)
    assert "in 5 places" in message
    for fault in (
        "first.weight becomes (5, 3), first.kernel is (4, 3)",
        "steps () is matched by no rule",
        "third.bias should go to third.bias, which the model does not have",
        "second.bias is filled twice, the second time by second.bias_again",
        "first.bias (3,) is filled by nothing",
    ):
        assert fault in message


def test_two_biases_add_up():
    source = weights()
    source["second.bias_hh"] = np.array([10.0, 20.0])
    rules = [RULES[0], Rule(r"(\w+)\.bias(_hh)?", r"\1.bias", "add")]
    state = convert(source, abstract(), rules)
    np.testing.assert_allclose(
        state["second"]["bias"][...], source["second.bias"] + [10, 20], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("transform", "source_shape", "shape"),
    [
        ("conv1d_oiw", (5, 3, 2), (2, 3, 5)),
        ("conv2d_oihw", (5, 4, 2, 3), (2, 3, 4, 5)),
        ("dense_after_flatten", (5, 6), (6, 5)),
        ("lstm_gates_ijfo", (2, 8), (2, 8)),
    ],
)
def test_transforms(transform, source_shape, shape):
    class One(nnx.Module):
        def __init__(self):
            self.w = nnx.Param(np.zeros(shape, np.float32))

    array = np.arange(np.prod(source_shape), dtype=np.float32).reshape(source_shape)
    state = convert({"w": array}, nnx.state(One()), [Rule("w", "w", transform, channels=2)])
    got = np.asarray(state["w"][...])
    if transform == "conv1d_oiw":
        assert got[1, 2, 4] == array[4, 2, 1]
    elif transform == "conv2d_oihw":
        assert got[1, 2, 3, 4] == array[4, 3, 1, 2]
    elif transform == "dense_after_flatten":  # channel 1, bin 2 of (2 channels, 3 bins)
        assert got[2 * 2 + 1, 4] == array[4, 1 * 3 + 2]
    else:
        np.testing.assert_array_equal(got[0], [0, 1, 4, 5, 2, 3, 6, 7])
