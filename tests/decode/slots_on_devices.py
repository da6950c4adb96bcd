"""Slots on eight virtual devices: what they decode, printed as one JSON line."""

import json

import jax
from jax.sharding import AxisType
from toy_decoders import END, toy_inputs, toy_prefill, toy_step, toy_weights

from musicjax.decode import GenerateConfig, Segment, SlotDecoder

SEGMENTS = [Segment(x) for x in toy_inputs(37)]
GREEDY = GenerateConfig(max_length=20, end_tokens=(END,))
DRAWN = GenerateConfig(max_length=20, end_tokens=(END,), temperature=1.2)


def main():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    weights, key = toy_weights(end_bias=2.0), jax.random.key(7)
    decoder = SlotDecoder(toy_prefill, toy_step, GREEDY, slots=16, queue=8, mesh=mesh)
    greedy = [d.tokens.tolist() for d in decoder.decode(weights, SEGMENTS)]
    drawn, on_one = (
        [d.tokens.tolist() for d in each.decode(weights, SEGMENTS, key=key)]
        for each in (
            SlotDecoder(toy_prefill, toy_step, DRAWN, slots=8, mesh=mesh),
            SlotDecoder(toy_prefill, toy_step, DRAWN, slots=8),
        )
    )
    found = {
        "devices": jax.device_count(),
        "greedy": greedy,
        "compiled": decoder.compiled,
        "drawn": drawn,
        "drawn_on_one": on_one,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
