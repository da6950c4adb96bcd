"""Slots on eight virtual devices: what they decode, printed as one JSON line."""

import json

import jax
from jax.sharding import AxisType
from toy_decoders import END, toy_inputs, toy_prefill, toy_step, toy_weights

from musicjax.decode import GenerateConfig, Segment, SlotDecoder

DRAWN = GenerateConfig(max_length=20, end_tokens=(END,), temperature=1.2, top_k=9)


def main():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    decoder = SlotDecoder(toy_prefill, toy_step, DRAWN, slots=16, queue=8, mesh=mesh)
    segments = [Segment(x) for x in toy_inputs(37)]
    weights, key = toy_weights(end_bias=2.0), jax.random.key(7)
    drawn = [d.tokens.tolist() for d in decoder.decode(weights, segments, key=key)]
    compiled = decoder.compiled
    fewer = [d.tokens.tolist() for d in decoder.decode(weights, segments[:21], key=key)]
    found = {
        "devices": jax.device_count(),
        "compiled": compiled,
        "compiled_anew": decoder.compiled - compiled,
        "drawn": drawn,
        "fewer": fewer,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
