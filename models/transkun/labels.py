"""Notes and pedals of a clip to the intervals that the network should find. NumPy only."""

import math

import numpy as np

from musicjax.errors import DataError
from musicjax.models.transkun.config import TranskunConfig, label_room
from musicjax.notes import Notes, Pedal
from musicjax.notes.notes import PEDAL_DOWN

_PRESSED = 127  # velocity of a pedal


def targets(
    notes: Notes, start_s: float, num_samples: int, config: TranskunConfig
) -> dict[str, np.ndarray]:
    """The true intervals of the clip that starts at `start_s`, one array a property, (K,) each.

    K = `label_room(num_samples, config)`. exists: which of the K there are. symbol: index of pedal
    or key. start, end: nearest frames of onset and offset. shift (K, 2): how far they lie behind
    those frames, -0.5..0.5 frames. inside (K, 2): whether they lie inside the clip. velocity:
    0..127. Notes and pedals that reach out of the clip are cut at its borders; notes last until
    their key is released, whatever the pedal does. A note that begins while its key still sounds
    ends the one before, and two that frames cannot tell apart become one.
    Raises DataError when a clip has more events than `config.max_events_per_s` makes room for.
    """
    length_s = num_samples / config.frontend.sample_rate
    frame_s = config.frontend.hop_length / config.frontend.sample_rate
    rows: list[list[float]] = []
    for symbol, events in enumerate(_events(notes, start_s, length_s, config)):
        rows += _intervals(symbol, events, length_s, frame_s)
    room = label_room(num_samples, config)
    if len(rows) > room:
        raise DataError(
            f"a clip of {length_s:.2f} s has {len(rows)} notes and pedal movements and room for "
            f"{room}; raise model.max_events_per_s."
        )
    table = np.zeros((room, 9))
    table[: len(rows)] = np.asarray(rows).reshape(-1, 9)
    return {
        "exists": table[:, 0].astype(np.uint8),
        "symbol": table[:, 1].astype(np.int32),
        "start": table[:, 2].astype(np.int32),
        "end": table[:, 3].astype(np.int32),
        "shift": table[:, 4:6].astype(np.float32),
        "inside": table[:, 6:8].astype(np.uint8),
        "velocity": table[:, 8].astype(np.int32),
    }


_Span = tuple[float, float, int]  # onset and offset in seconds of the clip, velocity


def _events(
    notes: Notes, start_s: float, length_s: float, config: TranskunConfig
) -> list[list[_Span]]:
    """What each symbol does in the clip, in order, without overlap."""
    spans: list[list[_Span]] = [_presses(notes.pedal, number) for number in config.pedals]
    last_s = notes.duration_s
    spans = [[(a, last_s if math.isinf(b) else b, v) for a, b, v in track] for track in spans]
    ordered = notes.sorted()
    for pitch in range(config.min_pitch, config.min_pitch + config.num_pitches):
        mine = ordered[(ordered.pitch == pitch) & ~ordered.is_drum]
        spans.append([(n.onset_s, n.offset_s, n.velocity) for n in mine])
    tracks = []
    for track in spans:
        placed = []
        for k, (onset_s, offset_s, velocity) in enumerate(track):
            if k + 1 < len(track):
                offset_s = min(offset_s, track[k + 1][0])
            if onset_s < offset_s and offset_s > start_s and onset_s < start_s + length_s:
                placed.append((onset_s - start_s, offset_s - start_s, velocity))
        tracks.append(placed)
    return tracks


def _presses(pedal: Pedal | None, number: int) -> list[_Span]:
    """When one pedal is down; infinity where it is never released."""
    if pedal is None:
        return []
    moves = pedal[pedal.number == number]
    presses: list[_Span] = []
    down_s: float | None = None
    for time_s, value in zip(moves.time_s.tolist(), moves.value.tolist(), strict=True):
        if value >= PEDAL_DOWN and down_s is None:
            down_s = time_s
        elif value < PEDAL_DOWN and down_s is not None:
            presses.append((down_s, time_s, _PRESSED))
            down_s = None
    if down_s is not None:
        presses.append((down_s, math.inf, _PRESSED))
    return presses


def _intervals(
    symbol: int, events: list[_Span], length_s: float, frame_s: float
) -> list[list[float]]:
    """Rows (1, symbol, start, end, shifts, inside, velocity) of one symbol."""
    rows: list[list[float]] = []
    for onset_s, offset_s, velocity in events:
        has_onset, has_offset = onset_s >= 0, offset_s < length_s
        on, off = max(onset_s, 0.0) / frame_s, min(offset_s, length_s) / frame_s
        start, end = round(on), round(off)
        row = [1, symbol, start, end, on - start, off - end, has_onset, has_offset, velocity]
        if rows and (start < rows[-1][3] or rows[-1][2] == rows[-1][3] == start == end):
            rows[-1] = [*rows[-1][:3], end, rows[-1][4], off - end, rows[-1][6], has_offset,
                        rows[-1][8]]  # fmt: skip
        else:
            rows.append(row)
    return rows
