"""Decoding segments of music: refilled slots against fixed batches, and against transformers' T5.

    python benchmarks/decode.py                    # 512 segments at the size of MT3, about an hour
    python benchmarks/decode.py --segments 64 --size tiny --dry-run

How many tokens a segment has decides how much a fixed batch wastes. So lengths are those of real
segments: MIDI of the corpora named by `--midi`, cut into MT3's segments and encoded by its codec,
in the order of the recordings or, with `--shuffle`, mixed. Without corpora lengths are drawn from a
log-normal distribution, which the results then say. Weights are random, and every row is ended at
its length, so that all subjects take exactly the same tokens.

Subjects, all with the same network, float32, and the encoder's output given:

slots         `SlotDecoder`, `--slots` rows that take the next segment as soon as they are free
fixed         `generate` in batches of as many rows, each batch until its longest row has ended
whole         the same with a cache that has room for all that MT3 may write from the beginning, as
              T5X and MT3 decode
transformers  T5ForConditionalGeneration.generate in batches of as many rows, with its own cache and
              relative positions, where ours has MT3's sinusoids

The rows of ours are divided over `--devices`: on a CPU its cores, each a device of JAX's, because
a step is too short for several threads to share.

`facts.tokens` over `steady` is tokens a second.
"""

import argparse
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from harness import Case, Subject, compare
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from musicjax.data.corpora import find_scores
from musicjax.decode import GenerateConfig, Segment, SlotDecoder, advance, generate, start
from musicjax.nn import Transformer, TransformerConfig, form
from musicjax.notes import Codec, codec_config

SIZES: dict[str, dict[str, int]] = {
    "mt3": {},
    "tiny": {
        "d_model": 32,
        "num_heads": 2,
        "head_dim": 16,
        "mlp_dim": 64,
        "num_encoder_layers": 1,
        "num_decoder_layers": 2,
    },
}
SOURCE = 256  # frames of a segment
SEGMENT_S = 2.048
MAX_LENGTH = 1024
MIDI = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "midi"


def main() -> None:
    """Measure the subjects asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--segments", type=int, default=512)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--queue", type=int, help="segments encoded at once; default: the slots")
    parser.add_argument("--release", type=int, default=1)
    parser.add_argument("--size", choices=SIZES, default="mt3")
    parser.add_argument("--devices", type=int, help="default: all; on a CPU, its cores")
    parser.add_argument("--midi", type=Path, default=MIDI, help="folder of corpora")
    parser.add_argument("--shuffle", action="store_true", help="mix the segments of all recordings")
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", arguments.devices or len(os.sched_getaffinity(0)))
    count = arguments.devices or jax.local_device_count()
    arguments.mesh = jax.make_mesh(
        (count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count]
    )

    lengths, origin = corpus_lengths(arguments.midi, arguments.segments)
    if arguments.shuffle:
        lengths = np.random.default_rng(0).permutation(lengths)
    config = form("mt3", vocab_size=1536, input_dim=512, **SIZES[arguments.size])
    encoded = np.random.default_rng(1).normal(size=(8, SOURCE, config.d_model)).astype(np.float32)
    facts = {
        "part": "decode",
        "size": arguments.size,
        "segments": len(lengths),
        "tokens": int(lengths.sum()),
        "longest": int(lengths.max()),
        "median": int(np.median(lengths)),
        "lengths": origin,
        "shuffled": arguments.shuffle,
        "slots": arguments.slots,
        "queue": arguments.queue or arguments.slots,
        "release": arguments.release,
        "devices": count,
    }
    print(facts)
    subjects = []
    for name in arguments.subjects:
        run = SUBJECTS[name](config, lengths, encoded, arguments)
        if run is not None:
            subjects.append(Subject(name, run))
    case = Case("decode", audio_s=len(lengths) * SEGMENT_S, batch=arguments.slots, facts=facts)
    timings = compare(
        case, subjects, min_repeats=arguments.repeats, budget_s=1.0, record=not arguments.dry_run
    )
    for timing in timings:
        print(f"{timing.subject}: {lengths.sum() / timing.steady.median:.0f} tokens a second")


def corpus_lengths(folder: Path, count: int) -> tuple[np.ndarray, str]:
    """Tokens of `count` segments, and where they come from: as many of each corpus."""
    archives = sorted(folder.glob("*.tar.gz"))
    rng, limit = np.random.default_rng(0), MAX_LENGTH
    if not archives:
        drawn = rng.lognormal(np.log(60), 0.9, count)
        return np.clip(drawn, 2, limit).astype(np.int64), "log-normal, median 60, sigma 0.9"
    codec, lengths = Codec(codec_config("mt3")), []
    for number, archive in enumerate(archives):
        wanted = count * (number + 1) // len(archives)
        scores = find_scores(archive, "train")
        for place in rng.permutation(len(scores)):
            if len(lengths) >= wanted:
                break
            notes = scores[place].read()
            frames = int(notes.duration_s * codec.config.frames_per_second) + 1
            lengths += [len(tokens) for tokens in codec.encode(notes, frames)][
                : min(60, wanted - len(lengths))
            ]
    names = ", ".join(a.name.removesuffix(".tar.gz") for a in archives)
    return np.minimum(np.array(lengths), limit), f"two minutes at most of pieces of {names}"


def network(config: TransformerConfig) -> tuple[Any, Callable, Callable]:
    """Weights, prefill and step of a Transformer whose encoder has already spoken."""
    graph, weights = nnx.split(Transformer(config, rngs=nnx.Rngs(0)))

    def prefill(weights: Any, encoded: jax.Array, max_length: int) -> Any:
        return nnx.merge(graph, weights).init_cache(encoded, max_length=max_length)

    def step(weights: Any, tokens: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        return nnx.merge(graph, weights).step(tokens, cache)

    return weights, prefill, step


def by_slots(
    config: TransformerConfig,
    lengths: np.ndarray,
    encoded: np.ndarray,
    arguments: argparse.Namespace,
) -> Callable[[], int]:
    """Slot refilling."""
    weights, prefill, step = network(config)
    rules = GenerateConfig(max_length=int(lengths.max()), end_tokens=())
    decoder = SlotDecoder(
        prefill,
        step,
        rules,
        slots=arguments.slots,
        queue=arguments.queue,
        release=arguments.release,
        mesh=arguments.mesh,
    )
    weights = jax.device_put(weights, NamedSharding(arguments.mesh, PartitionSpec()))

    def run() -> int:
        segments = (
            Segment(encoded[i % len(encoded)], max_length=n) for i, n in enumerate(lengths.tolist())
        )
        decoding = decoder.decode(weights, segments)
        for decoded in decoding:
            assert len(decoded.tokens) == lengths[decoded.index]
        print(f"slots were busy for {decoding.tally.occupancy:.1%} of {decoding.tally.slot_steps}")
        return decoding.tally.tokens

    return run


def by_fixed_batches(
    config: TransformerConfig,
    lengths: np.ndarray,
    encoded: np.ndarray,
    arguments: argparse.Namespace,
) -> Callable[[], int]:
    """The cached loop, a batch at a time."""
    weights, prefill, step = network(config)
    rules = GenerateConfig(max_length=int(lengths.max()), end_tokens=())

    def decode(weights: Any, encoded: jax.Array, limits: jax.Array) -> jax.Array:
        cache = prefill(weights, encoded, rules.max_length)
        return generate(lambda t, c: step(weights, t, c), cache, rules, limits=limits).lengths

    return in_batches(decode, weights, lengths, encoded, arguments)


def by_whole_caches(
    config: TransformerConfig,
    lengths: np.ndarray,
    encoded: np.ndarray,
    arguments: argparse.Namespace,
) -> Callable[[], int]:
    """The cached loop, a batch at a time, whose cache never grows."""
    weights, prefill, step = network(config)
    rules = GenerateConfig(max_length=MAX_LENGTH, end_tokens=())

    def decode(weights: Any, encoded: jax.Array, limits: jax.Array) -> jax.Array:
        state = start(prefill(weights, encoded, MAX_LENGTH), rules, limits=limits)
        state = jax.lax.while_loop(
            lambda s: jnp.any(s.running),
            lambda s: advance(lambda t, c: step(weights, t, c), s, rules),
            state,
        )
        return state.lengths

    return in_batches(decode, weights, lengths, encoded, arguments)


def in_batches(
    decode: Callable[[Any, jax.Array, jax.Array], jax.Array],
    weights: Any,
    lengths: np.ndarray,
    encoded: np.ndarray,
    arguments: argparse.Namespace,
) -> Callable[[], int]:
    """A batch at a time, each device on its share of it."""
    rows, mesh = arguments.slots, arguments.mesh
    each, whole = PartitionSpec("data"), PartitionSpec()
    share = partial(jax.shard_map, mesh=mesh, out_specs=each, check_vma=False)
    shared = jax.jit(share(decode, in_specs=(whole, each, each)))
    weights = jax.device_put(weights, NamedSharding(mesh, whole))

    def run() -> int:
        total = 0
        for begin in range(0, len(lengths), rows):
            numbers = np.arange(begin, begin + rows)
            limits = np.where(numbers < len(lengths), lengths[numbers % len(lengths)], 0)
            got = np.asarray(shared(weights, encoded[numbers % len(encoded)], limits))
            assert (got == limits).all()
            total += int(got.sum())
        return total

    return run


def by_transformers(
    config: TransformerConfig,
    lengths: np.ndarray,
    encoded: np.ndarray,
    arguments: argparse.Namespace,
) -> Callable[[], int] | None:
    """T5 of the same size in PyTorch; None where it is not installed."""
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed: transformers is left out (pip install {package})")
            return None
    import torch
    from transformers import StoppingCriteria, StoppingCriteriaList, T5Config
    from transformers import T5ForConditionalGeneration as T5
    from transformers.modeling_outputs import BaseModelOutput

    model = T5(
        T5Config(
            vocab_size=config.vocab_size,
            d_model=config.d_model,
            d_kv=config.head_dim,
            d_ff=config.mlp_dim,
            num_heads=config.num_heads,
            num_layers=config.num_decoder_layers,  # the encoder is not run; its cache counts these
            num_decoder_layers=config.num_decoder_layers,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
            decoder_start_token_id=0,
            eos_token_id=None,
            pad_token_id=0,
        )
    ).eval()
    model.generation_config.eos_token_id = None

    class AtLength(StoppingCriteria):
        """Ends every row at its own length."""

        def __init__(self, limits: np.ndarray):
            self.limits = torch.from_numpy(limits)

        def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
            return input_ids.shape[1] - 1 >= self.limits

    def run() -> int:
        total, rows = 0, arguments.slots
        for begin in range(0, len(lengths), rows):
            limits = lengths[begin : begin + rows]
            numbers = np.arange(begin, begin + len(limits)) % len(encoded)
            with torch.inference_mode():
                got = model.generate(
                    encoder_outputs=BaseModelOutput(torch.from_numpy(encoded[numbers])),
                    attention_mask=torch.ones(len(limits), SOURCE, dtype=torch.long),
                    max_new_tokens=int(limits.max()),
                    do_sample=False,
                    num_beams=1,
                    stopping_criteria=StoppingCriteriaList([AtLength(limits)]),
                )
            assert got.shape == (len(limits), limits.max() + 1), got.shape
            total += int(limits.sum())
        return total

    return run


SUBJECTS: dict[str, Callable[..., Callable[[], int] | None]] = {
    "slots": by_slots,
    "fixed": by_fixed_batches,
    "whole": by_whole_caches,
    "transformers": by_transformers,
}

if __name__ == "__main__":
    main()
