"""Pitch: from a recording of one voice to what it sings, frame by frame."""

import base64
import html
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import jax
import numpy as np

from musicjax.audio import Audio
from musicjax.errors import ConfigError, OutputError
from musicjax.files import atomic_write
from musicjax.hub import LoadedModel
from musicjax.infer import (
    DRAWN_S,
    Heard,
    Recording,
    Runner,
    as_recording,
    hear,
    layout,
    part_of,
    spread,
)
from musicjax.notes import Notes
from musicjax.notes.contour import Contour
from musicjax.tasks.files import FORMATS
from musicjax.tasks.options import check_options

Source = Recording | np.ndarray | tuple[np.ndarray, int]

WINDOW_S = 20.0
CPU_BATCH = 1
GPU_BATCH = 16
# Decoding goes on in pieces of so many seconds, which hear so much of their neighbours: by then the
# likeliest path no longer depends on what came before or comes after.
PIECE_S, MARGIN_S = 120.0, 4.0


@dataclass(frozen=True, eq=False)
class PitchTrack:
    """The pitch of a recording over time, and how sure the model was of it.

    contour      time_s, f0_hz (0 where there is no pitch), confidence and level of each frame
    duration_s   of the recording
    model        name of the model that listened
    audio        the recording as it was handed in, for `plot`; None when it was a file object
    """

    contour: Contour
    duration_s: float
    model: str
    audio: str | os.PathLike[str] | Audio | None = field(default=None, repr=False)

    FORMATS: ClassVar[tuple[str, ...]] = FORMATS

    @property
    def time_s(self) -> np.ndarray:
        """(T,) seconds from the start of the recording."""
        return self.contour.time_s

    @property
    def f0_hz(self) -> np.ndarray:
        """(T,) fundamental frequency, 0 where there is no pitch."""
        return self.contour.f0_hz

    @property
    def confidence(self) -> np.ndarray:
        """(T,) 0 to 1."""
        return self.contour.confidence

    @property
    def midi(self) -> np.ndarray:
        """(T,) pitch as fractional MIDI numbers, NaN where there is none."""
        return self.contour.midi

    @property
    def note_names(self) -> list[str]:
        """(T,) nearest note and cents from it, as "A4 +12"; "" where there is no pitch."""
        return self.contour.note_names

    @property
    def tuning_hz(self) -> float:
        """The frequency of A4 that fits the voice best."""
        return self.contour.tuning_hz()

    @property
    def notes(self) -> Notes:
        """The notes that are sung, with the bends of their pitch."""
        return self.contour.to_notes()

    def to_csv(self, path: str | os.PathLike[str]) -> Path:
        """Write one row a frame: time_s,f0_hz,confidence, 0 Hz where there is no pitch."""
        self.contour.write_csv(path)
        return Path(path)

    def to_midi(self, path: str | os.PathLike[str]) -> Path:
        """Write the notes as a MIDI file whose pitch wheel follows the voice."""
        from musicjax.notes import write_midi

        write_midi(self.notes, path)
        return Path(path)

    def to_json(self, path: str | os.PathLike[str]) -> Path:
        """Write tuning, notes and the columns of the contour as JSON."""
        import json

        from musicjax.notes.tables import as_dict

        contour = self.contour
        document = {
            "format": "musicjax.pitch/1",
            "model": self.model,
            "duration_s": round(self.duration_s, 6),
            "tuning_hz": round(self.tuning_hz, 3),
            "tuning_cents": round(contour.tuning_cents(), 2),
            "time_s": np.round(contour.time_s, 6).tolist(),
            "f0_hz": np.round(contour.f0_hz, 3).tolist(),
            "confidence": np.round(contour.confidence, 4).tolist(),
            "note": contour.note_names,
            "notes": as_dict(contour.to_notes(bends=False))["notes"],
        }
        with atomic_write(path) as file:
            file.write(json.dumps(document).encode())
        return Path(path)

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the form that the path's ending asks for: CSV, MIDI, JSON or a picture."""
        suffix = Path(path).suffix.lower()
        if suffix == ".csv":
            return self.to_csv(path)
        if suffix in (".mid", ".midi"):
            return self.to_midi(path)
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
        """Draw the contour and its notes over the spectrogram; matplotlib's figure.

        `start_s` and `end_s` choose a part. With `path` the picture is also written there. Without
        the audio (it was a file object, or is no longer there) the contour stands alone.
        """
        from musicjax.plots import plot_contour

        end_s = self.duration_s if end_s is None else min(end_s, self.duration_s)
        drawn = self.audio is not None and end_s - start_s <= DRAWN_S
        audio = part_of(self.audio, start_s, end_s) if drawn and self.audio is not None else None
        return plot_contour(self.contour, audio=audio, path=path, start_s=start_s, end_s=end_s)

    def __repr__(self) -> str:
        return f"PitchTrack({self.contour.summary()}, by {self.model})"

    def _repr_html_(self) -> str:
        """A summary and the contour of the first minute, for a notebook."""
        picture = io.BytesIO()
        self.plot(picture, end_s=60.0)
        data = base64.b64encode(picture.getvalue()).decode("ascii")
        summary = html.escape(repr(self)[len("PitchTrack(") : -1])
        return f'<p>{summary}</p><img alt="pitch" src="data:image/png;base64,{data}"/>'


class PitchTracker:
    """A pitch model ready to listen.

    The system's model has `config.frontend` (rate, hop and padding), `context_s` (seconds of sound
    on each side that a frame needs) and `activations(audio (B, N), frames=(B,)) -> {name: (B, T,
    …)}`; its `decode` makes a `Contour` of those.

    Args:
      loaded: from `musicjax.hub.load_model`.
      hop_ms: milliseconds from frame to frame, rounded to a sample; None takes the model's own.
      centred: whether frame t is centred on its time, or begins there.
      window_s, batch_size: seconds computed as one piece, and pieces computed at once.
      device: where to compute; None takes all GPUs that there are, or the CPU.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        hop_ms: float | None = None,
        centred: bool = True,
        window_s: float | None = None,
        batch_size: int | None = None,
        device: jax.Device | None = None,
    ) -> None:
        self.name, self.card, self.system = loaded.name, loaded.card, loaded.system
        frontend, model = loaded.config.frontend, loaded.model
        rate = frontend.sample_rate
        samples = frontend.hop_length if hop_ms is None else hop_ms * rate / 1000
        hop = round(samples) if math.isfinite(samples) else 0
        if not 1 <= hop <= rate:
            raise ConfigError(
                f"hop_ms is {hop_ms}; frames can follow each other in {1000 / rate:g} to 1000 ms."
            )
        padding = frontend.padding if centred else "end"
        frontend = replace(frontend, hop_length=hop, padding=padding)
        self.config = replace(loaded.config, frontend=frontend)
        setattr(model, "config", self.config)  # noqa: B010 - every model has one; see above
        self.sample_rate: int = rate
        self.frames_per_s: float = rate / hop
        on_cpu = (device or jax.devices()[0]).platform == "cpu"
        context_s = getattr(model, "context_s", 2.0) * (1 if centred else 2)
        plan = layout(
            rate,
            hop,
            context_s=context_s,
            window_s=max(window_s or WINDOW_S, 2 * context_s + 4 * hop / rate),
            batch_size=batch_size or (CPU_BATCH if on_cpu else GPU_BATCH),
        )
        self.runner = Runner(model, plan, device=spread(device))
        self._decode = loaded.system.resolve("decode")

    def pitch(self, source: Source, sample_rate: int | None = None, **options: Any) -> PitchTrack:
        """The pitch of one recording of any length.

        `source` is a path, a binary file object, an `Audio`, or an array (N,) or (C, N) with its
        `sample_rate`. `options` go to the system's decoding, e.g. voicing=0.5, decoder="local".
        Raises AudioError for what is not audio, ConfigError for an unknown option.
        """
        (result,) = self.pitch_many([as_recording(source, sample_rate)], **options)
        if isinstance(result, Exception):
            raise result
        return result

    def activations(self, source: Source, sample_rate: int | None = None) -> dict[str, np.ndarray]:
        """What the network says of every frame, before decoding: name -> (T, …) float16."""
        (heard,) = hear(self.runner, [as_recording(source, sample_rate)], self.sample_rate)
        if heard.error is not None:
            raise heard.error
        return heard.activations

    def pitch_many(
        self,
        sources: Iterable[Recording],
        *,
        progress: Callable[[int, float], None] | None = None,
        **options: Any,
    ) -> Iterator[PitchTrack | Exception]:
        """The pitch of many recordings, each as soon as it is done, in the order given.

        One that cannot be read gives its error in place of its pitch, and the others go on.
        `progress` gets the recording's place and the seconds that are done.
        """
        check_options(self.system, options)
        given: dict[int, Recording] = {}

        def noted() -> Iterator[Recording]:
            for index, source in enumerate(sources):
                given[index] = source
                yield source

        def collect() -> _Pieces:
            return _Pieces(self._decode, self.config, self.frames_per_s, options)

        for heard in hear(self.runner, noted(), self.sample_rate, progress, collect):
            yield self._result(heard, given.pop(heard.index))

    def _result(self, heard: Heard, source: Recording) -> PitchTrack | Exception:
        if heard.error is not None:
            return heard.error
        return PitchTrack(
            contour=Contour.from_arrays(**heard.activations),
            duration_s=heard.duration_s,
            model=self.name,
            audio=source if isinstance(source, str | os.PathLike | Audio) else None,
        )

    def __repr__(self) -> str:
        return f"PitchTracker({self.name}, a frame each {1000 / self.frames_per_s:g} ms)"


class _Pieces:
    """Decodes a recording while it is heard, so that hours of activations are never held."""

    def __init__(
        self,
        decode: Callable[..., Contour],
        config: Any,
        frames_per_s: float,
        options: Mapping[str, Any],
    ) -> None:
        self.decode, self.config, self.options = decode, config, options
        self.hop_s = 1 / frames_per_s
        self.piece, self.margin = (round(s * frames_per_s) for s in (PIECE_S, MARGIN_S))
        self.waiting: list[dict[str, np.ndarray]] = []
        self.before = 0  # frames at the head of what waits that are decoded already
        self.found: list[Contour] = []

    def add(self, activations: dict[str, np.ndarray]) -> None:
        """Take the next frames."""
        self.waiting.append(activations)
        while self._frames() >= self.before + self.piece + self.margin:
            self._take(self.piece)

    def done(self) -> dict[str, np.ndarray]:
        """The columns of the whole recording's contour."""
        if self.waiting:
            self._take(self._frames() - self.before)
        columns = {
            name: np.concatenate([getattr(part, name) for part in self.found])
            for name in ("f0_hz", "confidence", "level_db")
        }
        return {"time_s": np.arange(len(columns["f0_hz"])) * self.hop_s, **columns}

    def _frames(self) -> int:
        return sum(len(next(iter(part.values()))) for part in self.waiting)

    def _take(self, count: int) -> None:
        """Decode what waits; keep `count` frames of it, and what the next piece looks back on."""
        names = [*self.waiting[0]]
        whole = {n: np.concatenate([part[n] for part in self.waiting]) for n in names}
        seen = self.before + count + self.margin
        contour = self.decode({n: a[:seen] for n, a in whole.items()}, self.config, **self.options)
        part = slice(self.before, self.before + count)
        level = contour.level_db[part] if len(contour.level_db) else contour.level_db
        columns = (contour.time_s[part], contour.f0_hz[part], contour.confidence[part])
        self.found.append(Contour(*columns, level))
        keep = max(0, self.before + count - self.margin)
        self.before = self.before + count - keep
        self.waiting = [{n: a[keep:].copy() for n, a in whole.items()}]
