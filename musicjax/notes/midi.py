"""Standard MIDI files, read and written directly.

The format is small and corpora are large: reading bytes here is several times faster than making a
message object of every event, and every kind of damage ends in one sentence.

Reading follows what the field's loaders do: a note-off ends all notes of its pitch that began
before it on that track and channel. Programs belong to a (port, channel) and may be set on any
track. Writing gives each program its own track, and a second track to notes that overlap on one
pitch, so that no note-off is ambiguous; programs beyond MIDI's fifteen pitched channels go to
further ports. Notes that bend while others sound get channels of their own (`midi_bends`). Times
are kept to the nearest 1/1920 s in pieces of up to 86 minutes.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from musicjax.errors import DataError
from musicjax.files import atomic_write
from musicjax.notes.bends import Bends
from musicjax.notes.midi_bends import (
    CENTRE,
    COMMON_RANGE,
    DATA_ENTRY,
    RPN_LSB,
    RPN_MSB,
    bends_of_notes,
    lanes,
    range_messages,
    wheel_events,
    wheel_range,
)
from musicjax.notes.notes import (
    PEDAL_DOWN,
    PEDALS,
    SUSTAIN,
    Notes,
    Pedal,
    sustained_offsets,
)
from musicjax.notes.programs import program_name

TEMPO_US = 500_000  # microseconds a beat: 120 beats per minute, MIDI's own default
# Ticks a beat, and up to which tick of the finest grid each is used. Common readers refuse files of
# more than ten million ticks, so a long piece gets a coarser grid. The limits lie where no rounding
# to the coarser grid leads back across them: a file that is read and written again keeps its grid.
GRIDS = ((960, 9_999_999), (480, 19_999_998), (240, (1 << 28) - 1))
DRUM_CHANNEL = 9
NAME_META, PORT_META, END_META, TEMPO_META = 0x03, 0x21, 0x2F, 0x51
LAST_TICK = 1 << 40


class _Damage(Exception):
    """What is wrong in the bytes; the public reader says in which file."""


def read_midi(
    source: str | os.PathLike[str] | io.BufferedIOBase,
    *,
    sustained: bool = False,
    bends: bool = False,
) -> Notes:
    """Read a standard MIDI file (type 0, 1 or 2, or RIFF-wrapped) into sorted Notes with pedals.

    Notes that are never released end with their track. Tempo changes and SMPTE time are followed.
    With `sustained` the offsets are those that are heard when each channel's sustain pedal holds
    that channel's notes, as a synthesizer plays the file, and there is no pedal in the result;
    `read_midi(...).sustained()` instead lets all channels of one program share their pedal, as the
    two hands of a pianist do. The two differ only where channels share a program. With `bends` the
    pitch wheel's movements come with the notes that they bend; else they are passed over.

    Errors: DataError when the file is missing, is not MIDI or is damaged.
    """
    if not isinstance(source, str | os.PathLike):
        name = str(getattr(source, "name", "The MIDI stream"))
        return parse_midi(source.read(), name, sustained=sustained, bends=bends)
    path = Path(source)
    if path.is_dir():
        raise DataError(f"'{path}' is a folder; give the name of a MIDI file.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"There is no MIDI file '{path}'. Check the name.") from None
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"Cannot read the MIDI file '{path}': {reason}.") from error
    return parse_midi(data, f"'{path}'", sustained=sustained, bends=bends)


def parse_midi(
    data: bytes, name: str = "The MIDI data", *, sustained: bool = False, bends: bool = False
) -> Notes:
    """Read the bytes of a MIDI file; `name` is how errors call it. See `read_midi`."""
    try:
        return _Reader(data).notes(sustained, bends)
    except _Damage as damage:
        raise DataError(f"{name} is not a sound MIDI file: {damage}.") from None


class _Reader:
    """Collects what matters of every track, then turns ticks into seconds all at once."""

    def __init__(self, data: bytes) -> None:
        if data[:4] == b"RIFF" and data[8:12] == b"RMID":
            data = data[max(data.find(b"MThd"), 0) :]
        if not data:
            raise _Damage("it is empty")
        if data[:4] != b"MThd":
            raise _Damage(f"it begins with {data[:4]!r} where b'MThd' was expected")
        if len(data) < 14:
            raise _Damage("it ends inside its header")
        self.data = data
        self.found: list[tuple[int, int, int, int, int]] = []  # channel on off pitch velocity
        self.controls: list[tuple[int, int, int, int]] = []  # channel tick number value
        self.programs: list[tuple[int, int, int]] = []  # channel tick program
        self.tempos: list[tuple[int, int]] = []  # tick microseconds
        self.wheel: list[tuple[int, int, float]] = []  # channel tick semitones
        self.wheel_range: dict[int, float] = {}  # channel: semitones, where a file sets it
        self.selected: dict[tuple[int, int], int] = {}  # (channel, RPN byte): value
        division = int.from_bytes(data[12:14], "big")
        if division >= 0x8000:  # SMPTE: minus frames a second, ticks a frame; tempo plays no part
            rate = {24: 24.0, 25: 25.0, 29: 30000 / 1001, 30: 30.0}.get(256 - (division >> 8))
            ticks_per_frame = division & 0xFF
            if rate is None or not ticks_per_frame:
                raise _Damage(f"its time division is {division:#06x}, which means nothing")
            self.ticks_per_second: float | None = rate * ticks_per_frame
        elif not division:
            raise _Damage("its time division is 0 ticks a beat")
        else:
            self.ticks_per_second = None
        self.division = division
        self._read_tracks(8 + int.from_bytes(data[4:8], "big"))

    def _read_tracks(self, position: int) -> None:
        data, track = self.data, 0
        expected = int.from_bytes(data[10:12], "big")
        while position + 8 <= len(data):
            end = position + 8 + int.from_bytes(data[position + 4 : position + 8], "big")
            if data[position : position + 4] == b"MTrk":
                track += 1
                if end > len(data):
                    raise _Damage(f"it ends inside track {track} of {expected}; it was cut short")
                try:
                    self._read_track(data[position + 8 : end])
                except IndexError:
                    raise _Damage(f"track {track} ends in the middle of an event") from None
            position = end  # chunks of other kinds are passed over, as the format asks
        if track < expected:
            raise _Damage(f"it has {track} of the {expected} tracks its header promises")

    def _read_track(self, data: bytes) -> None:
        sounding: dict[int, list[tuple[int, int]]] = {}
        position = tick = status = port = 0
        while position < len(data):
            byte = data[position]
            position += 1
            delta = byte & 0x7F
            while byte & 0x80:
                byte = data[position]
                position += 1
                delta = delta << 7 | byte & 0x7F
            tick += delta
            if tick > LAST_TICK:
                raise _Damage(f"an event lies {tick} ticks in, which no piece reaches")
            byte = data[position]
            if byte >= 0xF0:  # these leave the running status alone, as lenient readers do
                position, meta, payload = _system_event(data, position)
                if meta == TEMPO_META and len(payload) == 3:
                    self.tempos.append((tick, int.from_bytes(payload, "big")))
                elif meta == PORT_META and len(payload) == 1:
                    port = payload[0]
                elif meta == END_META:
                    break
                continue
            if byte & 0x80:
                status = byte
                position += 1
            kind, channel = status & 0xF0, port << 4 | status & 0x0F
            first = data[position]
            if kind == 0xC0 or kind == 0xD0:
                position += 1
                if kind == 0xC0:
                    self.programs.append((channel, tick, first & 0x7F))
                continue
            second = data[position + 1]
            position += 2
            if first > 127 or second > 127 or not status:
                raise _Damage(f"{first:#04x} {second:#04x} stands where an event was expected")
            if kind <= 0x90:
                key = channel << 7 | first
                if kind == 0x90 and second:
                    sounding.setdefault(key, []).append((tick, second))
                elif key in sounding:
                    self._release(sounding, key, tick)
            elif kind == 0xB0 and first in PEDALS:
                self.controls.append((channel, tick, first, second))
            elif kind == 0xB0 and first in (RPN_MSB, RPN_LSB):
                self.selected[channel, first] = second
            elif kind == 0xB0 and first == DATA_ENTRY:
                chosen = [self.selected.get((channel, byte), 127) for byte in (RPN_MSB, RPN_LSB)]
                if chosen == [0, 0]:
                    self.wheel_range[channel] = second
            elif kind == 0xE0:
                reach = self.wheel_range.get(channel, COMMON_RANGE)
                moved = (second << 7 | first) - CENTRE
                self.wheel.append((channel, tick, moved * reach / CENTRE))
        for key in list(sounding):
            self._release(sounding, key, tick + 1)

    def _release(self, sounding: dict[int, list[tuple[int, int]]], key: int, tick: int) -> None:
        """End the notes of a key; one struck at this very tick ends only if it is alone."""
        struck = sounding.pop(key)
        ended = [note for note in struck if note[0] < tick] or struck
        self.found.extend((key >> 7, onset, tick, key & 127, speed) for onset, speed in ended)
        if len(ended) < len(struck):
            sounding[key] = struck[len(ended) :]

    def notes(self, sustained: bool, bends: bool) -> Notes:
        """Everything found, in seconds and in order."""
        found = np.array(self.found, dtype=np.int64).reshape(-1, 5)
        channel, onset, offset, pitch, velocity = found.T
        controls = np.array(self.controls, dtype=np.int64).reshape(-1, 4)
        controls = controls[controls[:, 0] & 15 != DRUM_CHANNEL]
        onset_s, offset_s = self._seconds(onset), self._seconds(offset)
        keep = np.ones(len(found), dtype=bool)
        pedal = None
        if sustained:
            moves = controls[controls[:, 2] == SUSTAIN]
            moves = moves[np.argsort(moves[:, 1], kind="stable")]
            for number in np.unique(moves[:, 0]):
                mine, part = np.flatnonzero(channel == number), moves[moves[:, 0] == number]
                move_s, down = self._seconds(part[:, 1]), part[:, 3] >= PEDAL_DOWN
                offset_s[mine], keep[mine] = sustained_offsets(
                    onset_s[mine], offset_s[mine], pitch[mine], move_s, down
                )
        elif len(controls):
            controls = self._once(controls)
            pedal = Pedal(
                time_s=self._seconds(controls[:, 1]),
                number=controls[:, 2],
                value=controls[:, 3],
                program=self._program_at(controls[:, 0], controls[:, 1]),
            )
        everything = Notes(
            onset_s=onset_s,
            offset_s=offset_s,
            pitch=pitch,
            velocity=velocity,
            program=self._program_at(channel, onset),
            is_drum=channel & 15 == DRUM_CHANNEL,
            pedal=pedal,
            bends=self._bends(channel, onset, offset) if bends and self.wheel else None,
        )
        return everything[keep].sorted()

    def _bends(
        self,
        channel: Int64[np.ndarray, " notes"],
        onset: Int64[np.ndarray, " notes"],
        offset: Int64[np.ndarray, " notes"],
    ) -> Bends:
        """What the pitch wheels did to each note."""
        count, tick, semitones = bends_of_notes(channel, onset, offset, self.wheel)
        return Bends(count, self._seconds(tick), semitones)

    def _once(self, controls: Int64[np.ndarray, "events 4"]) -> Int64[np.ndarray, "kept 4"]:
        """Pedals without what a writer repeated on the channels that bent notes were given."""
        if not self.wheel:
            return controls
        moves = np.column_stack([self._program_at(*controls[:, :2].T), controls[:, 1:]])
        channels = controls[:, 0]
        first: dict[tuple[int, ...], int] = {}
        keep = [
            first.setdefault(tuple(move), int(number)) == number
            for move, number in zip(moves.tolist(), channels, strict=True)
        ]
        return controls[np.array(keep, dtype=bool)]

    def _program_at(
        self, channel: Int64[np.ndarray, " events"], tick: Int64[np.ndarray, " events"]
    ) -> Int64[np.ndarray, " events"]:
        """The program of each event's channel at its tick; a change counts at its own tick."""
        changes = np.array(self.programs, dtype=np.int64).reshape(-1, 3)
        changes = changes[np.lexsort((changes[:, 1], changes[:, 0]))]
        place = np.searchsorted(
            changes[:, 0] * LAST_TICK * 2 + changes[:, 1], channel * LAST_TICK * 2 + tick, "right"
        )
        programs = np.append(changes[:, 2], 0)[place - 1]
        return np.where(np.append(changes[:, 0], -1)[place - 1] == channel, programs, 0)

    def _seconds(self, tick: Int64[np.ndarray, " events"]) -> Float64[np.ndarray, " events"]:
        """Ticks to seconds under the tempo map, or the fixed rate of SMPTE time."""
        if self.ticks_per_second is not None:
            return tick / self.ticks_per_second
        tempos = np.array([(0, TEMPO_US), *sorted(self.tempos, key=lambda change: change[0])])
        ticks, micros = tempos.T
        starts_us = np.concatenate([[0], np.cumsum(np.diff(ticks) * micros[:-1] / self.division)])
        place = np.searchsorted(ticks, tick, side="right") - 1
        return (starts_us[place] + (tick - ticks[place]) * micros[place] / self.division) / 1e6


def _system_event(data: bytes, position: int) -> tuple[int, int, bytes]:
    """Where a meta or system exclusive event ends, its meta kind (-1 for none) and its payload."""
    status = data[position]
    if status not in (0xFF, 0xF0, 0xF7):
        raise _Damage(f"{status:#04x} stands where an event was expected")
    meta = data[position + 1] if status == 0xFF else -1
    position += 2 if status == 0xFF else 1
    length, byte = 0, 0x80
    while byte & 0x80:
        byte = data[position]
        position += 1
        length = length << 7 | byte & 0x7F
    if position + length > len(data):
        raise IndexError
    return position + length, meta, data[position : position + length]


def write_midi(notes: Notes, target: str | os.PathLike[str] | io.BufferedIOBase) -> None:
    """Write notes, bends and pedals as a standard MIDI file of type 1 at 120 beats per minute.

    Reading it back gives the notes sorted, with times within 0.27 ms (0.53 ms in pieces longer
    than 86 minutes, 1.05 ms beyond 2.8 hours), velocities of at least 1 and lengths of at least one
    tick; writing those again gives the same bytes. Bends are kept to 1/8192 of the wheel's
    reach (2 semitones, more where a note bends further), cut to their notes, and read back on
    request. Drums are on channel 10. A file is put in place
    whole or not at all.

    Errors: OutputError when it cannot be written; DataError when a time is negative.
    """
    data = midi_bytes(notes)
    if isinstance(target, str | os.PathLike):
        with atomic_write(target) as file:
            file.write(data)
    else:
        target.write(data)


def midi_bytes(notes: Notes) -> bytes:
    """The bytes of the MIDI file that `write_midi` writes."""
    pedal = notes.pedal
    first_s = notes.onset_s.min(initial=0.0)
    if pedal is not None:
        first_s = min(first_s, pedal.time_s[0])
    if first_s < 0:
        raise DataError(
            f"The first event is at {first_s:.3f} s, but MIDI begins at 0: use shift() or slice()."
        )
    beat = _ticks_per_beat(notes)
    tracks = [_track([_meta(TEMPO_META, TEMPO_US.to_bytes(3, "big"))])]
    onset, offset = _on_and_off(notes, beat)
    lane = lanes(notes, onset, offset)
    for (is_drum, program, number), channel in _channels(notes, lane).items():
        mine = (notes.program == program) & (notes.is_drum == is_drum) & (lane == number)
        part = notes[mine]
        moves = pedal[pedal.program == program] if pedal is not None and not is_drum else None
        tracks.extend(_part_tracks(part, moves, program, channel, beat))
    header = (
        b"MThd"
        + (6).to_bytes(4, "big")
        + b"".join(number.to_bytes(2, "big") for number in (1, len(tracks), beat))
    )
    return header + b"".join(tracks)


def _ticks_per_beat(notes: Notes) -> int:
    """The finest grid on which the piece is not too long."""
    last_s = max(notes.duration_s, notes.pedal.time_s[-1] if notes.pedal is not None else 0.0)
    last = _ticks(np.array([last_s]), GRIDS[0][0])[0]
    for ticks_per_beat, limit in GRIDS:
        if last <= limit:
            return ticks_per_beat
    raise DataError(f"The last event is at {last_s:.0f} s; a MIDI file cannot hold days of music.")


def _ticks(time_s: Float64[np.ndarray, " n"], ticks_per_beat: int) -> Int64[np.ndarray, " n"]:
    return np.rint(time_s * (ticks_per_beat * 1_000_000 // TEMPO_US)).astype(np.int64)


def _on_and_off(notes: Notes, beat: int) -> tuple[np.ndarray, np.ndarray]:
    """Ticks at which notes start and end; each lasts at least one."""
    onset = _ticks(notes.onset_s, beat)
    return onset, np.maximum(_ticks(notes.offset_s, beat), onset + 1)


def _channels(notes: Notes, lane: Int64[np.ndarray, " notes"]) -> dict[tuple[bool, int, int], int]:
    """A (port, channel) for each (is_drum, program, lane), as port * 16 + channel."""
    columns = (notes.is_drum.tolist(), notes.program.tolist(), lane.tolist())
    parts = set(zip(*columns, strict=True))
    if notes.pedal is not None:
        parts |= {(False, program, 0) for program in notes.pedal.program.tolist()}
    pitched = [channel for channel in range(16) if channel != DRUM_CHANNEL]
    channels: dict[tuple[bool, int, int], int] = {}
    counts = [0, 0]
    for part in sorted(parts):
        place = counts[part[0]]
        counts[part[0]] += 1
        if part[0]:
            channels[part] = place * 16 + DRUM_CHANNEL
        else:
            channels[part] = place // len(pitched) * 16 + pitched[place % len(pitched)]
    return channels


def _part_tracks(
    part: Notes, moves: Pedal | None, program: int, channel: int, beat: int
) -> Iterator[bytes]:
    """The tracks of one program: one, and more where notes overlap on a pitch."""
    onset, offset = _on_and_off(part, beat)
    velocity = np.clip(part.velocity, 1, 127)
    pitch = part.pitch.astype(np.int64)
    port, channel = divmod(channel, 16)
    name = "Drums" if channel == DRUM_CHANNEL else program_name(program)
    head = [_meta(NAME_META, name.encode()), bytes([0, 0xC0 | channel, program])]
    if port:
        head.insert(1, _meta(PORT_META, bytes([port])))
    bends = part.bends if channel != DRUM_CHANNEL else None
    if bends is not None:
        head += range_messages(wheel_range(bends), channel)
    voice = _voices(onset, offset, pitch, velocity)
    for number in range(int(voice.max(initial=0)) + 1):
        mine = voice == number
        count = int(mine.sum())
        # tick, rank at that tick, status, first, second: releases, pedals, wheels, then strikes
        events = [
            np.stack(
                [
                    offset[mine],
                    np.full(count, 0),
                    np.full(count, 0x80),
                    pitch[mine],
                    np.full(count, 64),
                ]
            ),
            np.stack(
                [onset[mine], np.full(count, 3), np.full(count, 0x90), pitch[mine], velocity[mine]]
            ),
        ]
        if moves is not None and number == 0:
            tick = _ticks(moves.time_s, beat)
            ones = np.ones(len(moves), dtype=np.int64)
            events.insert(1, np.stack([tick, ones, 0xB0 * ones, moves.number, moves.value]))
        if bends is not None and number == 0:
            points = _ticks(bends.time_s, beat)
            events.append(wheel_events(bends, onset, offset, points, rank=2))
        table = np.concatenate(events, axis=1)
        # Pedals keep their order, which tells a re-pedalling from a press; keys go by pitch.
        first = np.where((table[1] == 1), table[3] - 128, table[3])
        table = table[:, np.lexsort((first, table[1], table[0]))]
        yield _track([*head, *_encoded(table, channel)])


def _voices(
    onset: Int64[np.ndarray, " notes"],
    offset: Int64[np.ndarray, " notes"],
    pitch: Int64[np.ndarray, " notes"],
    velocity: UInt8[np.ndarray, " notes"],
) -> Int64[np.ndarray, " notes"]:
    """For each note the number of the track on which no other note of its pitch overlaps it."""
    voice = np.zeros(len(onset), dtype=np.int64)
    order = np.lexsort((velocity, offset, onset, pitch))
    clash = (np.diff(pitch[order]) == 0) & (onset[order][1:] < offset[order][:-1])
    for crowded in np.unique(pitch[order][1:][clash]):
        free_at: list[int] = []
        for index in order[pitch[order] == crowded]:
            lane = next((k for k, tick in enumerate(free_at) if tick <= onset[index]), len(free_at))
            free_at[lane : lane + 1] = [int(offset[index])]
            voice[index] = lane
    return voice


def _variable(number: int) -> bytes:
    """MIDI's variable-length number: seven bits a byte, the last without the top bit."""
    digits = [number & 0x7F]
    while number := number >> 7:
        digits.append(number & 0x7F | 0x80)
    return bytes(reversed(digits))


def _meta(kind: int, payload: bytes, delta: int = 0) -> bytes:
    return _variable(delta) + bytes([0xFF, kind]) + _variable(len(payload)) + payload


def _encoded(table: Int64[np.ndarray, "5 events"], channel: int) -> Iterator[bytes]:
    """Events with their delta times."""
    deltas = np.diff(table[0], prepend=0).tolist()
    messages = np.stack([table[2] | channel, table[3], table[4]], axis=1).tolist()
    for delta, message in zip(deltas, messages, strict=True):
        yield _variable(delta)
        yield bytes(message)


def _track(events: list[bytes]) -> bytes:
    body = b"".join(events) + _meta(END_META, b"")
    return b"MTrk" + len(body).to_bytes(4, "big") + body
