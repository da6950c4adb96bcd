"""Runners on two virtual devices beside the same on one, printed as one JSON line."""

import json

import jax
import numpy as np
from flax import nnx
from test_segments import Counted, Loudest
from test_sequences import CODEC, COUNT, Oracle, music, written

from musicjax.audio import Audio
from musicjax.infer import (
    AgreeingRunner,
    Runner,
    SegmentRunner,
    SequenceRunner,
    hear,
    layout,
    spread,
)
from musicjax.models.onsets_frames.model import OnsetsFrames, get_config
from musicjax.notes.agreement import AgreementConfig


def sounds(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [Audio(rng.normal(0, 0.1, n).astype(np.float32), 16000) for n in lengths]


def main():
    one, two = jax.devices()[0], spread(None, cores=True)
    found = {
        "devices": jax.device_count(),
        "whole": spread(one) is one and spread(None) is None,
        "two": two.size,
    }

    config = get_config("tiny")
    model = OnsetsFrames(config, rngs=nnx.Rngs(0))
    plan = layout(16000, config.frontend.hop_length, context_s=1.0, window_s=4.0, batch_size=1)
    runners = [Runner(model, plan, device=where) for where in (one, two)]
    recordings = sounds(0, 30_000, 250_000, 90_000)
    heard = [[h.activations for h in hear(r, recordings, 16000)] for r in runners]
    found["gap"] = max(
        float(np.abs(a[name].astype(np.float32) - b[name]).max())
        for a, b in zip(*heard, strict=True)
        for name in a
    )
    found["windows at once"] = [r.layout.batch_size for r in runners]
    found["programs"] = [r.programs for r in runners]

    for system in (Loudest(), Counted()):
        parts = [SegmentRunner(system, batch_size=1, device=where) for where in (one, two)]
        recordings = sounds(1, 40, 123, 7)
        told = [
            [h.activations["power"].tolist() for h in hear(r, recordings, 16000)] for r in parts
        ]
        found[type(system).__name__] = told[0] == told[1]

    oracle = Oracle(list(CODEC.encode(music(), COUNT * 64)), 0.2)
    jobs = range(COUNT), range(5)
    rows = [written(SequenceRunner(oracle, slots=2, device=where), *jobs) for where in (one, two)]
    found["tokens"] = all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))
    agreeing = [
        AgreeingRunner(oracle, AgreementConfig(), slots=2, device=where) for where in (one, two)
    ]
    rows = [written(runner, *jobs) for runner in agreeing]
    found["agreed"] = all(np.array_equal(a, b) for a, b in zip(*rows, strict=True))
    agreeing[1].take_weights(oracle)
    before = agreeing[1].programs
    written(agreeing[1], range(9))
    found["compiled anew"] = agreeing[1].programs - before
    print(json.dumps(found))


if __name__ == "__main__":
    main()
