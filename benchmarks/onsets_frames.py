"""Onsets and Frames against its twin in PyTorch: forward pass, training step, audio to notes.

    python benchmarks/onsets_frames.py                     # the shipped form, complexity 16
    python benchmarks/onsets_frames.py --complexity 48 --batch 2 --cases forward

The twin (`tests/fixtures/onsets_frames/torch_twin.py`) is the public port's layer table and has
the same parameters, converted, so that both are checked to give the same before the clock starts.
Front-end, loss, gradient clipping and Adam are inside the clock on both sides; the torch side gets
the same mel filterbank, made beforehand, and all cores. Dropout is off on both sides unless
`--dropout`. On a machine that does other work, set OMP_WAIT_POLICY=PASSIVE, or torch's threads
spend their time waiting for one another in a loop. Notes are decoded by the same code, so that this
case compares what comes before.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from harness import Case, Subject, compare

from musicjax.audio.frontend import mel_matrix, num_frames
from musicjax.models.onsets_frames.convert import from_state_dict
from musicjax.models.onsets_frames.decoding import decode
from musicjax.models.onsets_frames.labels import targets
from musicjax.models.onsets_frames.model import OnsetsFramesConfig, get_config, loss
from musicjax.notes import Notes

TWIN = Path(__file__).parent.parent / "tests" / "fixtures" / "onsets_frames"
RATE = 6e-4  # Hawthorne et al. 2018, section 4; clip norm 3
CLIP = 3.0


def main() -> None:
    """Measure the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--complexity", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.24, help="length of each clip")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--dropout", action="store_true", help="0.25, 0.25, 0.5 on both sides")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    if importlib.util.find_spec("torch") is None:
        raise SystemExit("this benchmark needs its peer: pip install torch")
    rates = (0.25, 0.25, 0.5) if arguments.dropout else (0.0, 0.0, 0.0)
    c = arguments.complexity
    sizes = {"conv_channels": (c, c, 2 * c), "fc_units": 16 * c, "lstm_units": 8 * c}
    config = replace(get_config("port"), dropout=rates, **sizes)
    count = round(arguments.seconds * config.frontend.sample_rate)
    batch = make_batch(config, arguments.batch, count)
    audio_s = arguments.batch * count / config.frontend.sample_rate
    frames = arguments.batch * num_frames(count, config.frontend)
    for name in arguments.cases:
        theirs = Torch(config, c, batch)  # anew: a case may train it
        graph, state = nnx.split(from_state_dict(theirs.state_dict(), config)[0])
        subjects, cost = CASES[name](config, graph, state, batch, theirs)
        case = Case(
            "onsets_frames",
            audio_s=audio_s,
            batch=arguments.batch,
            flops=cost * flops_per_frame(config) * frames,
            facts={"case": name, "complexity": c, "dropout": arguments.dropout},
        )
        compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)


def flops_per_frame(config: OnsetsFramesConfig) -> float:
    """Multiply-adds of the network's products for one frame, times two; the front-end is not in."""
    bins, (c1, c2, c3) = config.frontend.num_bins, config.conv_channels
    stack = 9 * (bins * c1 + bins * c1 * c2 + bins // 2 * c2 * c3)
    stack += bins // 4 * c3 * config.fc_units
    hidden, pitches = config.lstm_units, config.num_pitches

    def lstm(width: int) -> int:
        return 2 * 4 * hidden * (width + hidden)

    heads = 4 * stack + 2 * lstm(config.fc_units) + lstm(3 * pitches)
    outputs = pitches * (3 * 2 * hidden + 2 * config.fc_units)
    return 2.0 * (heads + outputs)


def make_batch(config: OnsetsFramesConfig, size: int, count: int) -> dict[str, np.ndarray]:
    """Noise and chords with the labels of random notes: the numbers do not change the time."""
    rng = np.random.default_rng(0)
    seconds = count / config.frontend.sample_rate
    labels = []
    for _ in range(size):
        onset = rng.uniform(0, seconds, round(10 * seconds))
        length = rng.uniform(0.1, 1.0, len(onset))
        pitch = rng.integers(30, 90, len(onset))
        notes = Notes.from_arrays(onset, onset + length, pitch, rng.integers(30, 110, len(onset)))
        labels.append(targets(notes, 0.0, count, config))
    batch = {name: np.stack([label[name] for label in labels]) for name in labels[0]}
    return {"audio": rng.normal(scale=0.05, size=(size, count)).astype(np.float32), **batch}


class Torch:
    """The twin with its front-end and optimizer."""

    def __init__(self, config: OnsetsFramesConfig, complexity: int, batch: dict[str, np.ndarray]):
        sys.path.insert(0, str(TWIN))
        import torch
        import torch_twin

        self.torch, self.loss = torch, torch_twin.loss
        torch.manual_seed(0)
        self.model = torch_twin.Twin(complexity)
        for part in self.model.modules():
            if isinstance(part, torch.nn.Dropout) and not any(config.dropout):
                part.p = 0.0
        self.frontend = config.frontend
        self.mel = torch.from_numpy(np.array(mel_matrix(config.frontend)))
        self.window = torch.hann_window(config.frontend.window_length)
        self.batch = {name: torch.from_numpy(value).float() for name, value in batch.items()}
        self.optimizer = torch.optim.Adam(self.model.parameters(), RATE)

    def state_dict(self) -> dict[str, np.ndarray]:
        return {name: value.numpy().copy() for name, value in self.model.state_dict().items()}

    def features(self, audio: Any) -> Any:
        """The port's log-mel: magnitude, natural log of what is at least 1e-5."""
        spectrum = self.torch.stft(
            audio[:, :-1],
            self.frontend.fft_length,
            self.frontend.hop_length,
            window=self.window,
            center=True,
            pad_mode="reflect",
            return_complex=True,
        )
        return (spectrum.abs().transpose(1, 2) @ self.mel).clamp(min=1e-5).log()

    def forward(self, audio: Any) -> dict[str, Any]:
        self.model.eval()
        with self.torch.inference_mode():
            return self.model(self.features(audio))

    def step(self) -> float:
        self.model.train()
        self.optimizer.zero_grad()
        total = self.loss(self.model(self.features(self.batch["audio"])), self.batch)
        total.backward()
        self.torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return total.item()


def forward(config, graph, state, batch, theirs) -> tuple[list[Subject], float]:
    """Samples to probabilities, all heads."""
    audio = jnp.asarray(batch["audio"])

    def ours(state: nnx.State, audio: jax.Array) -> dict[str, jax.Array]:
        return nnx.merge(graph, state).activations(audio)

    expected = theirs.forward(theirs.batch["audio"][:1])["frame"].sigmoid().numpy()
    gap = np.abs(np.asarray(jax.jit(ours)(state, audio[:1])["frame"]) - expected).max()
    if gap > 1e-3:
        raise SystemExit(f"the twins disagree by {gap:.2g}: nothing to compare")
    subjects = [
        Subject("musicjax", jax.jit(ours), (state, audio)),
        Subject("torch", theirs.forward, (theirs.batch["audio"],)),
    ]
    return subjects, 1.0


def training_step(config, graph, state, batch, theirs) -> tuple[list[Subject], float]:
    """Samples and labels to the next parameters: loss, gradient, clipping, Adam."""
    params, rest = nnx.split_state(state, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(RATE))
    held = {"params": params, "rest": rest, "slots": optimizer.init(params)}
    key = jax.random.key(0) if any(config.dropout) else None

    def step(held: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        def value(params: nnx.State) -> tuple[jax.Array, nnx.State]:
            model = nnx.merge(graph, params, held["rest"], copy=True)
            total, _ = loss(model, batch, key=key, train=True)
            return total, nnx.state(model, nnx.Not(nnx.Param))

        (total, rest), gradient = jax.value_and_grad(value, has_aux=True)(held["params"])
        updates, slots = optimizer.update(gradient, held["slots"], held["params"])
        params = optax.apply_updates(held["params"], updates)
        return {"params": params, "rest": rest, "slots": slots}, total

    inputs = {name: jnp.asarray(value) for name, value in batch.items()}
    subjects = [
        Subject("musicjax", jax.jit(step), (held, inputs)),
        Subject("torch", theirs.step),
    ]
    return subjects, 3.0  # a gradient costs twice what the forward pass costs


def notes(config, graph, state, batch, theirs) -> tuple[list[Subject], float]:
    """Samples to notes: the network, its activations brought to the host, decoding."""
    jitted = jax.jit(lambda state, audio: nnx.merge(graph, state).activations(audio))

    def decoded(heard: dict[str, np.ndarray]) -> int:
        rows = ({name: roll[i] for name, roll in heard.items()} for i in range(len(batch["audio"])))
        return sum(len(decode(row, config)) for row in rows)

    def ours(audio: np.ndarray) -> int:
        return decoded(jax.device_get(jitted(state, audio)))

    def torch(audio: np.ndarray) -> int:
        heard = theirs.forward(theirs.torch.from_numpy(audio))
        rolls = {name: heard[name].sigmoid().numpy() for name in ("onset", "offset", "frame")}
        return decoded({**rolls, "velocity": heard["velocity"].numpy()})

    subjects = [
        Subject("musicjax", ours, (batch["audio"],)),
        Subject("torch", torch, (batch["audio"],)),
    ]
    return subjects, 1.0


CASES: dict[str, Callable] = {"forward": forward, "training_step": training_step, "notes": notes}


if __name__ == "__main__":
    main()
