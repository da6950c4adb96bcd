"""What the zoo holds: systems, their tags, and where each part of a system is found.

A system is a folder in `musicjax.models` whose `__init__.py` defines one `SYSTEM`. Nothing heavy
is imported to list systems: code is named by dotted references and resolved on first use.
"""

import difflib
import fnmatch
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from musicjax.errors import ModelNotFoundError


@dataclass(frozen=True)
class Source:
    """Where weights can be fetched and how to know that they are the right ones.

    `address` is one of
    https://…, gs://bucket/file, hf://owner/name/file;
    gs://bucket/folder/, whose files are held to the bucket's own checksums: `sha256` is the
    `musicjax.hub.fingerprint` of the whole and `size_bytes` that of all, or "" and 0;
    package:file, a file of the system's own `weights` folder (shipped in the wheel);
    pypi:wheel/path, a path inside a published wheel, of which `wheel_sha256` and `wheel_bytes` are
    given as well.
    `sha256` and `size_bytes` are always those of the weights. `converter` names the function in
    the system's `convert.py` that reads a foreign format; empty for our own safetensors.
    """

    address: str
    sha256: str
    size_bytes: int
    converter: str = ""
    wheel_sha256: str = ""
    wheel_bytes: int = 0


@dataclass(frozen=True)
class Ability:
    """What a transcriber can be used for; `musicjax.tasks.choose` compares these.

    onset_f1         instrument -> onset F1 to expect: "piano" alone, or "any", instruments of all
                     kinds together. What is missing here it was not made for. Measured by
                     benchmarks/accuracy.py ("clips", "ensembles") where the weights can be had,
                     else what the authors tell of MAESTRO and Slakh2100 (in the card's `scores`)
    pedals, bends    whether it writes the movements of pedals, and notes whose pitch bends
    least_confidence `Transcription.confidence` below which the sound is hardly one that it was
                     made for; 0 where that is not known
    times_real_time  seconds of sound heard in a second by one processor core (`musicjax bench`);
                     0 where that was never measured
    """

    onset_f1: Mapping[str, float]
    pedals: bool = False
    bends: bool = False
    least_confidence: float = 0.0
    times_real_time: float = 0.0


@dataclass(frozen=True)
class Card:
    """The facts on one set of weights. Prose lives in the system's `card.md`."""

    summary: str
    paper: str
    licence: str
    training_data: str
    sample_rate: int
    parameters: int
    source: Source | None = None  # None: an architecture without weights at a known address
    scores: Mapping[str, float] = field(default_factory=dict)  # metric name -> expected value
    ability: Ability | None = None  # of transcribers with weights


@dataclass(frozen=True)
class System:
    """One published system: dotted references (`module:attribute`) to its parts, and its cards.

    model       nnx.Module class, built as `Model(config, rngs=nnx.Rngs(0))`
    config      function `variant -> frozen model config`; knows "tiny" and every tag's variant
    loss        `(model, batch, *, key, train) -> (scalar, dict of scalars)`
    targets     `(notes, start_s, num_samples, config) -> dict of numpy arrays`, host side, no jax
    decode      `(activations, config, **options) -> symbols`, host side
    decoder     `(config, **options) -> musicjax.notes.LongDecoder` of recordings whose activations
                are too many to be kept, or None where these options need them all; "" if none does
    adapt       `(tensors by path, their config, config) -> tensors` to start a training from, for
                weights of another form of the system; "" where names and shapes are enough
    """

    name: str
    task: str
    title: str
    model: str
    config: str
    loss: str
    targets: str
    decode: str
    cards: Mapping[str, Card]
    decoder: str = ""
    adapt: str = ""

    def resolve(self, part: str) -> Any:
        """Import and return one part, e.g. `system.resolve("model")`."""
        module, _, attribute = getattr(self, part).partition(":")
        return getattr(importlib.import_module(module), attribute)


@functools.cache
def systems() -> dict[str, System]:
    """All systems by name, found by looking into `musicjax.models`."""
    package = importlib.import_module("musicjax.models")
    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        if info.ispkg:
            system = importlib.import_module(f"musicjax.models.{info.name}").SYSTEM
            found[system.name] = system
    return found


def list_models(pattern: str = "*") -> list[str]:
    """Names `system.tag` that match a shell wildcard; a bare system name lists its tags."""
    names = [f"{s.name}.{tag}" for s in systems().values() for tag in s.cards]
    return [n for n in sorted(names) if fnmatch.fnmatch(n, pattern) or n.split(".")[0] == pattern]


def find_system(name: str) -> System:
    """The system of that name. Raises ModelNotFoundError with near matches."""
    system = name.split(".")[0]
    if system not in systems():
        raise ModelNotFoundError(_not_found(name))
    return systems()[system]


def find_card(name: str) -> tuple[System, str, Card]:
    """System, tag and card of `system.tag`. A bare system name means its first tag."""
    system = find_system(name)
    _, _, tag = name.partition(".")
    tag = tag or next(iter(system.cards))
    if tag not in system.cards:
        raise ModelNotFoundError(_not_found(name))
    return system, tag, system.cards[tag]


def model_card(name: str) -> Card:
    """The card of `system.tag`."""
    return find_card(name)[2]


def _not_found(name: str) -> str:
    known = list_models()
    near = difflib.get_close_matches(name, known + sorted(systems()), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}."
    return f"no model is called {name!r}; {hint} `musicjax models` lists them all."
