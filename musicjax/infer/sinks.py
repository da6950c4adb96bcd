"""Where the events of live sound go: JSON lines, a MIDI file, a table, a live MIDI port.

Each takes events one by one, in order, and is closed at the end, however that comes. What is
written into files as it is heard is there even when the power fails; a MIDI file is put in place
as a whole when listening ends. A file that was there before is replaced when the first sound is
heard, not earlier.
"""

import contextlib
import json
import math
import os
import sys
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from musicjax.errors import MissingDependencyError, OutputError
from musicjax.files import check_writable
from musicjax.infer.stream import Event, NoteOff, NoteOn, PitchFrame, events_to_notes
from musicjax.notes import pitch_name, write_midi
from musicjax.notes.contour import Contour

VIRTUAL_PORT = "musicjax"
FORMATS = (".mid", ".midi", ".jsonl", ".csv")
PITCH_VELOCITY = 90  # of notes out of a pitch, whose loudness is not told
BEND_SEMITONES = 2.0  # what a synthesiser bends at full wheel unless told otherwise
LEAP_SEMITONES = 0.8  # a pitch so far from its note is another note


@runtime_checkable
class Sink(Protocol):
    """What takes events."""

    name: str  # for people

    def write(self, events: Sequence[Event]) -> None:
        """Take the next events."""
        ...

    def close(self, end_s: float) -> None:
        """The stream ended at `end_s` seconds; may be called twice."""
        ...


@runtime_checkable
class TextStream(Protocol):
    """What lines can be written to."""

    def write(self, text: str, /) -> Any:
        """Take text."""
        ...

    def flush(self) -> None:
        """Let it go out."""
        ...


def as_dict(event: Event) -> dict[str, Any]:
    """An event as JSON: what it is, then its fields, with the note's name."""
    if isinstance(event, PitchFrame):
        return {
            "event": "pitch",
            "time_s": round(event.time_s, 6),
            "f0_hz": round(event.f0_hz, 3),
            "confidence": round(event.confidence, 4),
            "note": note_and_cents(event.f0_hz),
        }
    return {
        "event": "on" if isinstance(event, NoteOn) else "off",
        "time_s": round(event.time_s, 6),
        "pitch": event.pitch,
        "velocity": event.velocity,
        "note": pitch_name(event.pitch),
    }


def as_line(event: Event) -> str:
    """An event as a line to read."""
    if isinstance(event, PitchFrame):
        shown = f"{note_and_cents(event.f0_hz):8} {event.f0_hz:8.2f} Hz" if event.f0_hz else "-"
        return f"{event.time_s:9.3f}  {shown:20}  {event.confidence:.2f}"
    what = "on " if isinstance(event, NoteOn) else "off"
    return f"{event.time_s:9.3f}  {what}  {pitch_name(event.pitch):4} {event.velocity:3}"


def note_and_cents(f0_hz: float) -> str:
    """The nearest note and cents from it, as "A4 +12"; "" where there is no pitch."""
    if not f0_hz > 0:
        return ""
    midi = 69 + 12 * math.log2(f0_hz / 440)
    return f"{pitch_name(round(midi))} {100 * (midi - round(midi)):+.0f}"


class JsonLines:
    """One line of JSON an event, in a file or on an open stream, each there at once."""

    def __init__(self, target: str | os.PathLike[str] | TextStream) -> None:
        self._own = _File(target) if isinstance(target, str | os.PathLike) else None
        self.name = "stdout" if self._own is None else str(target)
        self._stream: Any = self._own or target

    def write(self, events: Sequence[Event]) -> None:
        """Write lines and have them go out."""
        for event in events:
            self._stream.write(json.dumps(as_dict(event)) + "\n")
        self._stream.flush()

    def close(self, end_s: float) -> None:
        """Close the file, if it is ours."""
        if self._own is not None:
            self._own.close()


class Lines:
    """One line to read an event, on an open stream. Of a pitch, ten lines in a second."""

    def __init__(self, stream: TextStream | None = None) -> None:
        self.name, self._stream = "stdout", sys.stdout if stream is None else stream
        self._next_s = 0.0

    def write(self, events: Sequence[Event]) -> None:
        """Write lines and have them go out."""
        for event in events:
            if isinstance(event, PitchFrame):
                if event.time_s < self._next_s:
                    continue
                self._next_s = event.time_s + 0.1 - 1e-6
            self._stream.write(as_line(event) + "\n")
        self._stream.flush()

    def close(self, end_s: float) -> None:
        """Nothing is left to do."""


class PitchTable:
    """A row a frame as it is heard: time_s,f0_hz,confidence, as `musicjax pitch` writes them."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name, self._file = str(path), _File(path, "time_s,f0_hz,confidence\n")

    def write(self, events: Sequence[Event]) -> None:
        """Write the pitch frames."""
        for event in events:
            if isinstance(event, PitchFrame):
                self._file.write(f"{event.time_s:.6f},{event.f0_hz:.3f},{event.confidence:.4f}\n")
        self._file.flush()

    def close(self, end_s: float) -> None:
        """Close the file."""
        self._file.close()


class NotesFile:
    """The notes, or those of the pitch, as a MIDI file or a table; written at the end, and whole.

    A pitch becomes notes whose wheel follows the voice. Keeps all events, an hour of a pitch in a
    few MB.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        check_writable(path)
        self.name, self._path = str(path), Path(path)
        self._events: list[Event] = []
        self._frames = array("d")  # time_s, f0_hz, confidence, and so on
        self._done = False

    def write(self, events: Sequence[Event]) -> None:
        """Keep the events."""
        for event in events:
            if isinstance(event, PitchFrame):
                self._frames.extend((event.time_s, event.f0_hz, event.confidence))
            else:
                self._events.append(event)

    def close(self, end_s: float) -> None:
        """Write the file, if anything was heard."""
        if self._done or not (self._events or end_s):
            return
        self._done = True
        if self._frames:
            notes = _contour(np.array(self._frames).reshape(-1, 3)).to_notes()
        else:
            notes = events_to_notes(self._events, end_s)
        if self._path.suffix.lower() == ".csv":
            from musicjax.notes import write_csv

            write_csv(notes, self._path)
        else:
            write_midi(notes, self._path)


def _contour(frames: Float64[np.ndarray, "T 3"]) -> Contour:
    """The frames at even times; where sound was lost there is no pitch."""
    time_s = frames[:, 0]
    hop_s = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0
    place = np.rint(time_s / hop_s).astype(int)
    f0_hz, confidence = np.zeros(place.max() + 1), np.zeros(place.max() + 1)
    f0_hz[place], confidence[place] = frames[:, 1], frames[:, 2]
    return Contour.from_arrays(np.arange(len(f0_hz)) * hop_s, f0_hz, confidence)


def file_sink(path: str | os.PathLike[str], *, pitch: bool = False) -> Sink:
    """The sink for a file by its ending: .mid, .jsonl or .csv (of pitch frames with `pitch`).

    Raises OutputError for another ending and for a place that cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise OutputError(
            f"{path} has no ending that live sound is written as; give {', '.join(FORMATS)}."
        )
    if suffix == ".jsonl":
        return JsonLines(path)
    return PitchTable(path) if pitch and suffix == ".csv" else NotesFile(path)


class _File:
    """A text file that is opened when it is first needed; that it can be is asked at once."""

    def __init__(self, path: str | os.PathLike[str], head: str = "") -> None:
        check_writable(path)
        self._path, self._head = Path(path), head
        self._file: IO[str] | None = None

    def write(self, text: str) -> None:
        if self._file is None:
            self.flush()
        assert self._file is not None  # opened just now
        self._file.write(text)

    def flush(self) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("w", encoding="utf-8", newline="\n")
                self._file.write(self._head)
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{self._path} cannot be written ({error.strerror}).") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


# Live MIDI ------------------------------------------------------------------------------------


class MidiPort:
    """A live MIDI output, through mido and python-rtmidi (extra `live`).

    With `name`, the port whose name is that or contains it; without, a virtual port "musicjax" that
    other programs can listen to (Linux and macOS). A pitch becomes notes with the wheel, two
    semitones up and down. Closing lets no note hang.

    Raises MissingDependencyError without the extra, OutputError when there is no such port, with
    those there are. `backend` stands in for mido's own.
    """

    def __init__(self, name: str | None = None, *, backend: Any = None) -> None:
        self._mido, backend = _mido(backend)
        with _refusals():
            there = list(backend.get_output_names())
            found = VIRTUAL_PORT if name is None else _matching(name, there)
            self._port = backend.open_output(found, virtual=name is None)
        self.name = f"MIDI port {found}"
        self._sounding: set[int] = set()
        self._bent = False  # whether the wheel has left its middle

    def write(self, events: Sequence[Event]) -> None:
        """Send the events at once."""
        for event in events:
            if isinstance(event, NoteOn):
                self._on(event.pitch, event.velocity)
            elif isinstance(event, NoteOff):
                self._off(event.pitch, event.velocity)
            else:
                self._follow(event.f0_hz)

    def close(self, end_s: float = 0.0) -> None:
        """End what sounds and close the port."""
        if self._port.closed:
            return
        with contextlib.suppress(OutputError):  # a port that is gone has told it already
            for pitch in sorted(self._sounding):
                self._off(pitch, 64)
            if self._bent:
                self._send("pitchwheel", pitch=0)
        self._port.close()

    def _on(self, pitch: int, velocity: int) -> None:
        if pitch in self._sounding:  # a synthesiser would count two and end one
            self._off(pitch, 64)
        self._send("note_on", note=pitch, velocity=velocity)
        self._sounding.add(pitch)

    def _off(self, pitch: int, velocity: int) -> None:
        self._send("note_off", note=pitch, velocity=velocity)
        self._sounding.discard(pitch)

    def _follow(self, f0_hz: float) -> None:
        midi = 69 + 12 * math.log2(f0_hz / 440) if f0_hz > 0 else None
        note = next(iter(self._sounding), None)
        if note is not None and (midi is None or abs(midi - note) > LEAP_SEMITONES):
            self._off(note, 64)
            note = None
        if midi is None or not 0 <= round(midi) <= 127:
            return
        bend = (midi - (round(midi) if note is None else note)) / BEND_SEMITONES
        self._send("pitchwheel", pitch=max(-8192, min(8191, round(8192 * bend))))
        self._bent = True
        if note is None:
            self._on(round(midi), PITCH_VELOCITY)

    def _send(self, kind: str, **fields: int) -> None:
        try:
            self._port.send(self._mido.Message(kind, **fields))
        except Exception as error:  # of rtmidi, see above
            raise OutputError(
                f"the {self.name} takes nothing any more ({error}); what was heard until then is "
                "kept."
            ) from error


def midi_ports(*, backend: Any = None) -> list[str]:
    """Names of the MIDI outputs that there are. Raises as `MidiPort`."""
    _, backend = _mido(backend)
    with _refusals():
        return list(backend.get_output_names())


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except Exception as error:  # of rtmidi, whose class depends on the system's MIDI
        raise OutputError(
            f"no MIDI port can be opened here ({str(error).strip().rstrip('.')}); "
            "-o notes.mid writes a file instead."
        ) from error


def _matching(name: str, there: Sequence[str]) -> str:
    exact = [port for port in there if port == name]
    near = [port for port in there if name.lower() in port.lower()]
    if not exact and not near:
        ports = f"there are: {', '.join(there)}" if there else "there is none"
        raise OutputError(
            f"there is no MIDI port {name!r}; {ports}. --midi-port without a name makes one that "
            "other programs can listen to, where the system offers that."
        )
    return (exact or near)[0]


def _mido(backend: Any) -> tuple[Any, Any]:
    try:
        import mido

        if backend is None:
            backend = mido.Backend(load=True)  # rtmidi, unless MIDO_BACKEND says otherwise
    except ImportError as error:
        raise MissingDependencyError(
            "a live MIDI port needs mido and python-rtmidi: pip install 'musicjax[live]'; "
            "-o notes.mid writes a file instead."
        ) from error
    return mido, backend


@contextlib.contextmanager
def closing(sinks: Sequence[Sink], end_s: Any) -> Iterator[None]:
    """Close all sinks at the end, whatever happened: `end_s()` tells when that was.

    The first error of one that cannot be closed is raised when all others are closed.
    """
    try:
        yield
    finally:
        failed: list[Exception] = []
        for sink in sinks:
            try:
                sink.close(end_s())
            except Exception as error:
                failed.append(error)
        if failed:
            raise failed[0]
