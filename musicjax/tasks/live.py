"""Listening live: from sound as it comes to events as they are heard."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from flax import nnx

from musicjax import registry
from musicjax.errors import ConfigError, WeightsError
from musicjax.hub.availability import availability
from musicjax.hub.typed_json import from_json
from musicjax.hub.weights import find_weights, read_header
from musicjax.infer.live import Listening, check_times
from musicjax.infer.sources import Blocks, Microphone, PlayedFile, Source
from musicjax.infer.stream import Streamer, can_stream

NOTES_MODEL, PITCH_MODEL = "piano_ar.small", "crepe.ours"
_TASK = {False: "transcribe", True: "pitch"}

Heard = Source | str | os.PathLike[str] | Iterable[np.ndarray]


def listen(
    source: Heard | None = None,
    model: str | os.PathLike[str] | None = None,
    *,
    pitch: bool = False,
    sample_rate: int | None = None,
    device: str | None = None,
    buffer_s: float = 1.0,
    stall_s: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> Listening:
    """Hear sound as it comes: `for event in listen(): ...`.

    Args:
      source: None takes the microphone; a path is played at its own speed; an iterable of blocks
        (N,) or (C, N) has a `sample_rate`; or a `Source` of `musicjax.infer.sources`.
      model: a model that can be heard live, by name or file; None takes the one made for it.
      pitch: without a model, whether to follow the pitch of one voice or write down notes.
      device: "cpu", "gpu" or "cuda:1"; None takes the one that jax prefers.
      buffer_s, stall_s, tell: as `Listening` takes them.
      progress: called with bytes there and bytes in all while weights are downloaded.
      options: of the model's reader of events, e.g. onset_threshold=0.4.

    Iterating gives `NoteOn`, `NoteOff` and `PitchFrame` as soon as they are known, until the sound
    ends or `stop()` is called; `musicjax.infer.stream.events_to_notes` makes notes of them. Raises
    what `load` raises, and AudioError when the source cannot be opened.
    """
    check_times(buffer_s, stall_s)
    opened = as_source(source, sample_rate)  # before the model, which takes longer
    try:
        streamer = load_streamer(model, pitch=pitch, device=device, progress=progress, **options)
        return Listening(streamer, opened, buffer_s=buffer_s, stall_s=stall_s, tell=tell)
    except BaseException:
        opened.close()
        raise


def as_source(source: Heard | None, sample_rate: int | None = None) -> Source:
    """The source that is meant; see `listen`."""
    if source is None:
        return Microphone()
    if isinstance(source, str | os.PathLike):
        return PlayedFile(source)
    if isinstance(source, Iterable):
        if sample_rate is None:
            raise ConfigError("blocks of sound came without a rate; give sample_rate in Hz.")
        return Blocks(source, sample_rate)
    return source


def load_streamer(
    model: str | os.PathLike[str] | None = None,
    *,
    pitch: bool = False,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Streamer:
    """A model's stream, compiled and at its beginning; arguments and errors as `listen`."""
    from musicjax.hub import load_model
    from musicjax.infer import find_device, keep_compiled

    keep_compiled()
    chosen = find_device(device)
    name, _ = resolve(model, pitch)
    if options:
        _check_options(name, options)
    loaded = load_model(name, progress=progress)
    return Streamer(loaded.model, bad_samples="silence", device=chosen, **options)


def _check_options(name: str, options: dict[str, Any]) -> None:
    """Raise ConfigError for what the model's reader of events does not take, before it is loaded
    or even fetched: a model of the same kind with no weights in it is asked."""
    if os.path.exists(name):
        header = read_header(find_weights(name))
        system = registry.find_system(header["system"])
        make_config, stored = system.resolve("config"), header["config"]
        try:
            config = from_json(type(make_config("tiny")), stored)
        except ConfigError:
            return  # told by one who loads it
    else:
        system, tag, _ = registry.find_card(name)
        config = system.resolve("config")(tag)
    make = system.resolve("model")
    nnx.eval_shape(lambda: make(config, rngs=nnx.Rngs(0))).stream_reader(**options)


def live_models(task: str | None = None) -> list[str]:
    """Names of all models that can be heard live, of one task or of any, the smallest first."""
    names = [
        name
        for system in registry.systems().values()
        if task in (None, system.task) and can_stream(system.resolve("model"))
        for name in registry.list_models(f"{system.name}.*")
    ]
    return sorted(names, key=lambda name: registry.model_card(name).parameters)


def choose_live(pitch: bool = False) -> str:
    """The model that listens when none is named: the one made for it, or the smallest at hand.

    Raises WeightsError when none that can listen is at hand, and tells which could be fetched.
    """
    made = PITCH_MODEL if pitch else NOTES_MODEL
    if made in registry.list_models() and availability(registry.model_card(made)).at_hand:
        return made
    names = live_models(_TASK[pitch])
    for name in names:
        if availability(registry.model_card(name)).at_hand:
            return name
    what = "follow a pitch" if pitch else "write down notes"
    raise WeightsError(
        f"no model that can {what} as it sounds has weights at hand; {_told(names)}. Name one, or "
        "the .safetensors file of one that you trained, with --model."
    )


def resolve(model: str | os.PathLike[str] | None, pitch: bool = False) -> tuple[str, bool]:
    """The name or file of the model that is to listen, and whether it follows a pitch.

    Raises ConfigError for one that hears whole recordings only, and for one of notes where a pitch
    is asked for; ModelNotFoundError where there is none; and what `choose_live` raises.
    """
    if model is None:
        return choose_live(pitch), pitch
    name = os.fspath(model)
    if os.path.exists(name):
        system = registry.find_system(read_header(find_weights(name))["system"])
    else:
        system = registry.find_card(name)[0]
    if not can_stream(system.resolve("model")):
        raise ConfigError(
            f"{name} hears whole recordings and cannot listen live; {_told(live_models())}."
        )
    if pitch and system.task != _TASK[True]:
        raise ConfigError(f"{name} writes down notes and follows no pitch; leave one of them out.")
    return name, system.task == _TASK[True]


def _told(names: list[str]) -> str:
    if not names:
        return "none here can"
    told = [f"{name} ({_where(registry.model_card(name))})" for name in names]
    return f"these can: {', '.join(told)}"


def _where(card: registry.Card) -> str:
    where = availability(card)
    return {"none": "no weights yet: train it", "to fetch": str(where)}.get(where.where, "at hand")
