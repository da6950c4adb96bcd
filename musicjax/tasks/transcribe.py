"""Transcription: from a recording to the notes that were played."""

import base64
import collections
import functools
import html
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

import jax
import numpy as np
from flax import nnx

from musicjax.audio import Audio
from musicjax.errors import ConfigError, DataError, OutputError
from musicjax.hub import LoadedModel
from musicjax.infer import (
    DRAWN_S,
    AgreeingRunner,
    CarryingRunner,
    FixedLayout,
    Heard,
    Layout,
    Recording,
    Runner,
    SegmentRunner,
    SequenceRunner,
    as_recording,
    attempt,
    hear,
    layout,
    part_of,
    spread,
    stitch,
)
from musicjax.notes import (
    Decoded,
    DecodingReport,
    LongDecoder,
    Notes,
    onset_sureness,
    pitch_name,
)
from musicjax.notes.agreement import AgreementConfig
from musicjax.tasks.files import FORMATS
from musicjax.tasks.options import check_options

if TYPE_CHECKING:
    from musicjax.data.records import Example

Source = Recording | np.ndarray | tuple[np.ndarray, int]

KEPT_S = 2 * 3600.0  # seconds of which activations are kept; of longer recordings only the notes
# Of 20 s, a model with a context of 1.5 s keeps 17: what is heard twice costs a sixth.
WINDOW_S = 20.48
CPU_BATCH = 1  # what one window takes stays in the caches, and no row is empty
GPU_BATCH = 8
# Segments that are written at once: a step reads all weights, however many there are.
CPU_SLOTS = 8
GPU_SLOTS = 64
DOUBTED_NOTES = 8  # of fewer, the mean confidence says little
DOUBTED_TOKENS = 0.02  # share of tokens passed over


@dataclass(frozen=True, eq=False)
class Transcription:
    """What was played in a recording, and how sure the model was of it.

    notes        onsets and offsets in seconds from the start of the recording
    activations  name -> (T, P) in [0, 1], one frame each 1 / frames_per_s seconds; float16, or
                 float32 where decoding asks for it; of a model that writes tokens, these. Of a
                 recording of more than two hours, whose notes are made while it is heard, none are
                 kept: who asks for them gets DataError, and `Transcriber.activations` has them
    duration_s   of the recording
    model        name of the model that listened
    audio        the recording as it was handed in, for `plot`; None when it was a file object
    doubt        a sentence, where the model was too unsure for the sound that it was made for, or
                 where much of what it wrote made no sense
    report       of a model that writes tokens: those that were passed over, by kind; else None
    """

    notes: Notes
    activations: Mapping[str, np.ndarray]
    frames_per_s: float
    duration_s: float
    model: str
    audio: str | os.PathLike[str] | Audio | None = field(default=None, repr=False)
    doubt: str | None = None
    report: DecodingReport | None = None

    FORMATS: ClassVar[tuple[str, ...]] = FORMATS

    @property
    def confidence(self) -> float | None:
        """How sure the network was of its onsets, 0 to 1, as a mean over the notes.

        Of a model that decides on events, how sure it was of what it tells of each: its activations
        hold `number`, no less than 0 for notes, and `sureness`. What is usual differs from model to
        model. None where there are no notes, or where the model tells no probability; of more than
        two hours, Basic Pitch tells none.
        """
        if isinstance(self.activations, _LetGo):
            return self.activations.confidence
        if "sureness" in self.activations:
            sure = self.activations["sureness"][self.activations["number"] >= 0]
            return float(sure.mean(dtype=np.float64)) if len(sure) else None
        each = onset_sureness(self.activations, self.notes, self.frames_per_s)
        return float(each.mean()) if each is not None and len(each) else None

    def to_midi(self, path: str | os.PathLike[str]) -> Path:
        """Write a standard MIDI file; its path."""
        from musicjax.notes import write_midi

        write_midi(self.notes, path)
        return Path(path)

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a note: onset, offset, pitch, velocity; its path."""
        from musicjax.notes import write_csv

        write_csv(self.notes, path)
        return Path(path)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write the notes as JSON; its path."""
        from musicjax.notes import write_json

        write_json(self.notes, path)
        return Path(path)

    def to_note_sequence(self) -> Any:
        """The notes as a note-seq NoteSequence."""
        from musicjax.notes import to_note_sequence

        return to_note_sequence(self.notes)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the form that the path's ending asks for: MIDI, CSV, JSON or a picture."""
        suffix = Path(path).suffix.lower()
        if suffix in (".mid", ".midi"):
            return self.to_midi(path)
        if suffix == ".csv":
            return self.to_csv(path)
        if suffix == ".json":
            return self.to_json(path)
        if suffix in self.FORMATS:
            self.plot(path)
            return Path(path)
        raise OutputError(
            f"cannot write {path}: {suffix or 'no ending'} is not a known form; give a file "
            f"ending in {', '.join(self.FORMATS)}."
        )

    def plot(
        self,
        path: str | os.PathLike[str] | BinaryIO | None = None,
        *,
        start_s: float = 0.0,
        end_s: float | None = None,
    ) -> Any:
        """Draw the notes over the spectrogram of what was heard; matplotlib's figure.

        `start_s` and `end_s` choose a part. With `path` the picture is also written there. Without
        the audio (it was a file object, or is no longer there) the notes stand alone, and so they
        do in a part of more than an hour, whose heading says so.
        """
        from musicjax.plots import plot_piano_roll

        end_s = self.duration_s if end_s is None else min(end_s, self.duration_s)
        audio, title = None, None
        if self.audio is not None and end_s - start_s > DRAWN_S:
            title = f"Notes alone: sound is drawn of no more than {_clock(DRAWN_S)}"
        elif self.audio is not None:
            audio = part_of(self.audio, start_s, end_s)
        return plot_piano_roll(
            self.notes, audio=audio, path=path, start_s=start_s, end_s=end_s, title=title
        )

    def __repr__(self) -> str:
        return (
            f"Transcription({len(self.notes)} notes in {_clock(self.duration_s)}, "
            f"{_pitch_range(self.notes)}, by {self.model})"
        )

    def _repr_html_(self) -> str:
        """A summary and the piano roll of the first minute, for a notebook."""
        picture = io.BytesIO()
        self.plot(picture, end_s=60.0)
        data = base64.b64encode(picture.getvalue()).decode("ascii")
        summary = html.escape(repr(self)[len("Transcription(") : -1])
        return f'<p>{summary}</p><img alt="piano roll" src="data:image/png;base64,{data}"/>'


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{minutes:.0f} min {rest:.0f} s" if minutes else f"{rest:.1f} s"


def _pitch_range(notes: Notes) -> str:
    if not len(notes):
        return "silence"
    return f"{pitch_name(int(notes.pitch.min()))} to {pitch_name(int(notes.pitch.max()))}"


class Transcriber:
    """A transcription model ready to listen.

    The system's model has `config.frontend` (rate and hop), `context_s` (seconds of sound on each
    side that a frame needs) and `activations(audio (B, N), frames=(B,)) -> {name: (B, T, …)}`,
    where `frames` tells how many frames of each item are sound and not padding. It may have
    `window_s`, the seconds it was made for, or `windowing`, where its windows are of one kind only.
    A model with `hear` decides on events in segments of its own (see `musicjax.infer.segments`),
    and one with `prefill` and `step` writes segments down as tokens (`musicjax.infer.sequences`).

    Args:
      loaded: from `musicjax.hub.load_model`.
      window_s: seconds computed as one piece, context included; None takes what suits the model.
      batch_size: pieces computed at once on each device; more are faster on a GPU and take more
        memory.
      together: of a model that writes tokens, whether the segments of a recording agree on
        instruments and on notes that go on, which takes two to five times the time; or how much
        they do. False or None hears each alone, as MT3 was published.
      device: where to compute; None takes all GPUs that there are, or the CPU (a model that writes
        tokens uses all devices of a CPU, too: see `musicjax.infer.cores_as_devices`).
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        window_s: float | None = None,
        batch_size: int | None = None,
        together: bool | AgreementConfig | None = None,
        device: jax.Device | None = None,
    ) -> None:
        self.name, self.card, self.system = loaded.name, loaded.card, loaded.system
        self.config = loaded.config
        frontend = loaded.config.frontend
        self.sample_rate: int = frontend.sample_rate
        self.frames_per_s: float = frontend.sample_rate / frontend.hop_length
        on_cpu = (device or jax.devices()[0]).platform == "cpu"
        self.runner: Runner | SegmentRunner | SequenceRunner
        if hasattr(loaded.model, "hear") or hasattr(loaded.model, "prefill"):
            if window_s is not None:
                raise ConfigError(
                    f"window_s is {window_s:g}, but {self.name} hears segments of its own length; "
                    "leave window_s out."
                )
            self.runner = _segment_runner(loaded, batch_size, on_cpu, together, device)
        elif together:
            raise ConfigError(_NOT_TOGETHER.format(name=self.name))
        else:
            plan = _plan(loaded.model, frontend, window_s, batch_size, on_cpu)
            carries = hasattr(loaded.model, "carried_activations")
            runner: Any = CarryingRunner if carries else Runner
            self.runner = runner(loaded.model, plan, device=device if carries else spread(device))
        if isinstance(self.runner.layout, FixedLayout):
            self.frames_per_s = self.runner.layout.frames_per_s(frontend.sample_rate)
        self._decode = loaded.system.resolve("decode")

    def transcribe(
        self, source: Source, sample_rate: int | None = None, **options: Any
    ) -> Transcription:
        """The notes of one recording of any length.

        `source` is a path, a binary file object, an `Audio`, or an array (N,) or (C, N) with its
        `sample_rate`. `options` go to the system's decoding, e.g. onset_threshold=0.4. Raises
        AudioError for what is not audio, ConfigError for an unknown option.
        """
        (result,) = self.transcribe_many([as_recording(source, sample_rate)], **options)
        if isinstance(result, Exception):
            raise result
        return result

    def activations(self, source: Source, sample_rate: int | None = None) -> dict[str, np.ndarray]:
        """What the network says of every frame, before decoding: name -> (T, P) float16.

        However long the recording is: an hour of Basic Pitch takes 380 MB, of Onsets & Frames 60.
        """
        (heard,) = hear(self.runner, [as_recording(source, sample_rate)], self.sample_rate)
        if heard.error is not None:
            raise heard.error
        return heard.activations

    def transcribe_many(
        self,
        sources: Iterable[Recording],
        *,
        progress: Callable[[int, float], None] | None = None,
        **options: Any,
    ) -> Iterator[Transcription | Exception]:
        """The notes of many recordings, each as soon as it is done, in the order given.

        Recordings share batches. One that cannot be read or decoded gives its error in place of its
        notes, and the others go on. `progress` gets the recording's place and the seconds done.
        """
        check_options(self.system, options)
        given: dict[int, Recording] = {}

        def noted() -> Iterator[Recording]:
            for index, source in enumerate(sources):
                given[index] = source
                yield source

        def decoder() -> LongDecoder | None:
            if not self.system.decoder:
                return None
            return self.system.resolve("decoder")(self.config, **options)

        def collect() -> _Collected:
            return _Collected(decoder, round(KEPT_S * self.frames_per_s))

        for heard in hear(self.runner, noted(), self.sample_rate, progress, collect):
            source = given.pop(heard.index)
            yield attempt(functools.partial(self._result, heard, source, options))

    def _result(
        self, heard: Heard, source: Recording, options: Mapping[str, Any]
    ) -> Transcription | Exception:
        if heard.error is not None:
            return heard.error
        if isinstance(heard.activations, _LetGo):
            found = heard.activations.notes
        else:
            found = self._decode(heard.activations, self.config, **options)
        result = Transcription(
            notes=found.notes if isinstance(found, Decoded) else found,
            report=found.report if isinstance(found, Decoded) else None,
            activations=heard.activations,
            frames_per_s=self.frames_per_s,
            duration_s=heard.duration_s,
            model=self.name,
            audio=source if isinstance(source, str | os.PathLike | Audio) else None,
        )
        doubts = filter(None, (self._doubt(result), _nonsense(result)))
        return replace(result, doubt=" ".join(doubts) or None)

    def _doubt(self, result: Transcription) -> str | None:
        able = None if self.card is None else self.card.ability
        sure = result.confidence if len(result.notes) >= DOUBTED_NOTES else None
        if able is None or sure is None or sure >= able.least_confidence:
            return None
        usual = "music" if "any" in able.onset_f1 else "a piano"
        return (
            f"{self.name} was unsure of these notes ({sure:.2f}; {usual} gives more than "
            f"{able.least_confidence:.2f}); if this is something else, --instrument any takes a "
            "model that was made for it."
        )

    def __repr__(self) -> str:
        return f"Transcriber({self.name}, {self.sample_rate} Hz)"


class _LetGo(dict[str, np.ndarray]):
    """In the place of activations that were too many to be kept: the notes made of them.

    An empty dict, but one that tells who asks for something why it is.
    """

    def __init__(self, notes: Notes, confidence: float | None) -> None:
        super().__init__()
        self.notes, self.confidence = notes, confidence

    def _asked(self, *_: Any) -> Any:
        raise DataError(
            f"of a recording of more than {KEPT_S / 3600:g} hours only the notes are kept; "
            "Transcriber.activations gives its activations, or transcribe it in parts."
        )

    __getitem__ = __contains__ = get = keys = values = items = _asked


class _Collected:
    """Keeps the activations of a recording, or decodes them as they come when they are too many."""

    def __init__(self, make: Callable[[], LongDecoder | None], most_frames: int) -> None:
        self.make, self.most_frames = make, most_frames
        self.decoder: LongDecoder | None = None
        self.kept: collections.deque[dict[str, np.ndarray]] = collections.deque()
        self.frames = 0

    def add(self, activations: dict[str, np.ndarray]) -> None:
        """Take the next frames."""
        if self.decoder is not None:
            self.decoder.add(activations)
            return
        self.kept.append(activations)
        before, self.frames = self.frames, self.frames + len(next(iter(activations.values())))
        if before <= self.most_frames < self.frames:
            self.decoder = self.make()
            while self.decoder is not None and self.kept:
                self.decoder.add(self.kept.popleft())

    def done(self) -> dict[str, np.ndarray]:
        """All frames end to end, or the notes that were made of them."""
        if self.decoder is not None:
            return _LetGo(self.decoder.done(), self.decoder.confidence)
        return stitch([*self.kept])


_NOT_TOGETHER = (
    "together was asked for, but {name} writes no tokens in segments that could disagree; leave it "
    "out."
)


def _nonsense(result: Transcription) -> str | None:
    """A sentence where too much of what was written could not be understood."""
    report = result.report
    if report is None:
        return None
    tokens = result.activations["tokens"]
    written = max(int(np.count_nonzero(tokens)), 1)
    told = []
    nonsense = report.invalid - report.unbegun
    if nonsense > DOUBTED_TOKENS * written:
        told.append(f"{nonsense} of {written} tokens made no sense and were passed over")
    if report.cut:
        told.append(f"{report.cut} of {len(tokens)} segments were cut because they had no end")
    return f"{' and '.join(told)}: some notes may be missing." if told else None


def _segment_runner(
    loaded: LoadedModel,
    batch_size: int | None,
    on_cpu: bool,
    together: bool | AgreementConfig | None,
    device: jax.Device | None,
) -> SegmentRunner | SequenceRunner:
    """The runner of a model that hears segments of its own length."""
    model: Any = loaded.model
    if hasattr(model, "hear"):
        if together:
            raise ConfigError(_NOT_TOGETHER.format(name=loaded.name))
        size = batch_size or (1 if on_cpu else GPU_BATCH)
        return SegmentRunner(model, batch_size=size, device=spread(device))
    where = spread(device, cores=True)
    slots = batch_size or (CPU_SLOTS if on_cpu else GPU_SLOTS)
    if not together:
        return SequenceRunner(model, slots=slots, grammar=model.grammar, device=where)
    how = AgreementConfig() if together is True else together
    return AgreeingRunner(model, how, slots=slots, grammar=model.grammar, device=where)


def _plan(
    model: Any, frontend: Any, window_s: float | None, batch_size: int | None, on_cpu: bool
) -> Layout | FixedLayout:
    """How recordings are cut for a model, and how many windows are heard at once."""
    windowing = getattr(model, "windowing", None)
    length_s = window_s if window_s else float(getattr(model, "window_s", WINDOW_S))
    if windowing is not None:
        length_s = windowing.samples / frontend.sample_rate
        if window_s is not None:
            raise ConfigError(
                f"window_s is {window_s:g}, but this model hears windows of {length_s:.3f} s only; "
                "leave window_s out."
            )
    at_once = CPU_BATCH if on_cpu else GPU_BATCH
    if window_s is None and not on_cpu:  # as many seconds at once, however short the windows
        at_once = max(round(at_once * WINDOW_S / length_s), 1)
    size = batch_size or at_once
    if windowing is not None:
        return FixedLayout(frontend.hop_length, windowing, size)
    return layout(
        frontend.sample_rate,
        frontend.hop_length,
        context_s=getattr(model, "context_s", 2.0),
        window_s=length_s,
        batch_size=size,
    )


def evaluate(
    transcriber: Transcriber,
    examples: Iterable["Example"],
    *,
    progress: Callable[[int, float], None] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Score a transcriber on examples: the mean over pieces of each score, and every piece's own.

    Notes count as sounding until the sustain pedal lets go (MAESTRO's convention), in references
    and, where the model writes the pedal, in what it heard. Where any piece has drums or another
    program than the piano's, the scores by instrument are told as well
    (`musicjax.metrics.instruments`; `frame` stays that of `note_scores`), and by family. A score
    that does not apply, such as that of drums where there are none, is left out. Returns
    {"pieces": number, "mean": {score: value}, "each": {id: {score: value}}}.
    """
    from musicjax.metrics import family_scores, instrument_scores, mean_scores, note_scores

    truth: dict[int, tuple[str, Notes]] = {}

    def recordings() -> Iterator[Recording]:
        for index, example in enumerate(examples):
            truth[index] = (example.id, example.notes.sustained())
            yield as_recording(example.samples, example.sample_rate)

    scores, by_instrument, by_family = {}, {}, {}
    several = False
    results = transcriber.transcribe_many(recordings(), progress=progress, **options)
    for index, result in enumerate(results):
        if isinstance(result, Exception):
            raise result
        name, reference = truth.pop(index)
        name = f"{name} ({index + 1})" if name in scores else name  # two folders, one name
        heard = result.notes.sustained()
        scores[name] = note_scores(reference, heard)
        by_instrument[name] = instrument_scores(reference, heard)
        by_family[name] = family_scores(reference, heard)
        several |= bool(reference.is_drum.any() or reference.program.any())
    if not scores:
        raise DataError("there are no examples to score; check the name of the data.")
    each: dict[str, dict[str, float]] = {name: {} for name in scores}
    mean: dict[str, float] = {}
    for kind in (by_instrument, by_family, scores) if several else (scores,):
        mean |= _applying(mean_scores(kind.values()))
        for name, score in kind.items():
            each[name] |= _applying(score)
    return {"pieces": len(scores), "mean": mean, "each": each}


def _applying(scores: Any) -> dict[str, float]:
    return {name: value for name, value in scores.as_dict().items() if not np.isnan(value)}


def evaluation(run: Any) -> Callable[[nnx.Module], dict[str, float]] | None:
    """The evaluation that a training run asks for: model -> mean scores on its validation data.

    `run` is a `musicjax.train.RunConfig` of a transcription system; None when it validates on
    nothing. One compiled program serves all evaluations of the run.
    """
    from musicjax.data import examples
    from musicjax.registry import find_system

    if not run.data.valid:
        return None
    system = find_system(run.system)
    kept: list[Transcriber] = []

    def score(model: nnx.Module) -> dict[str, float]:
        if kept:
            kept[0].runner.take_weights(model)
        else:
            kept.append(Transcriber(LoadedModel(model, run.model, None, "training", system)))
        return evaluate(kept[0], examples(run.data.valid, run.sample_rate))["mean"]

    return score
