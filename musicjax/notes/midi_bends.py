"""Bends of single notes as MIDI has them: one pitch wheel a channel, moved while a note sounds.

A wheel moves every note of its channel, so notes that bend while others sound go to channels of
their own (as MIDI's polyphonic expression does it), and notes that do not bend share one.
"""

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int64

from musicjax.notes.bends import Bends
from musicjax.notes.notes import Notes

WHEEL = 0xE0
CENTRE = 8192
COMMON_RANGE = 2  # semitones up and down that a wheel reaches where nothing else is said
RPN_MSB, RPN_LSB, DATA_ENTRY, DATA_ENTRY_LSB = 101, 100, 6, 38


def lanes(
    notes: Notes, onset: Int64[np.ndarray, " notes"], offset: Int64[np.ndarray, " notes"]
) -> Int64[np.ndarray, " notes"]:
    """For each note the number of the channel that it shares within its program, from 0.

    On one channel no note sounds together with one that bends. `onset` and `offset` are ticks.
    """
    lane = np.zeros(len(notes), np.int64)
    if notes.bends is None:
        return lane
    bends = (notes.bends.count > 0) & ~notes.is_drum
    for program in np.unique(notes.program[bends]):
        mine = np.flatnonzero((notes.program == program) & ~notes.is_drum)
        ends: list[
            tuple[int, int]
        ] = []  # when the last note of a lane ends, and the last that bends
        for index in mine[np.lexsort((notes.pitch[mine], onset[mine]))]:
            start, bent = onset[index], bends[index]
            free = (
                k
                for k, (last, last_bent) in enumerate(ends)
                if start >= (last, last_bent)[not bent]
            )
            number = next(free, len(ends))
            last, last_bent = ends[number] if number < len(ends) else (0, 0)
            stop = int(offset[index])
            ends[number : number + 1] = [
                (max(last, stop), max(last_bent, stop) if bent else last_bent)
            ]
            lane[index] = number
    return lane


def wheel_range(bends: Bends) -> int:
    """Semitones that a wheel must reach up and down for all points: 2, or more where needed."""
    return max(COMMON_RANGE, math.ceil(np.abs(bends.semitones).max(initial=0.0)))


def range_messages(semitones: int, channel: int) -> Iterator[bytes]:
    """What tells a synthesizer how far the wheel of a channel reaches, each with delta time 0."""
    if semitones == COMMON_RANGE:
        return
    for number, value in ((RPN_MSB, 0), (RPN_LSB, 0), (DATA_ENTRY, semitones), (DATA_ENTRY_LSB, 0)):
        yield bytes([0, 0xB0 | channel, number, value])


def wheel_events(
    bends: Bends,
    onset: Int64[np.ndarray, " notes"],
    offset: Int64[np.ndarray, " notes"],
    tick: Int64[np.ndarray, " points"],
    rank: int,
) -> Int64[np.ndarray, "5 events"]:
    """Movements of one channel's wheel: tick, rank, status, low and high seven bits.

    Each note finds the wheel where it wants it at its onset, and moves it until its end. `tick`
    are the points' times.
    """
    reach = wheel_range(bends)
    owner = np.repeat(np.arange(len(bends)), bends.count)
    inside = tick < offset[owner]
    moved = np.rint(bends.semitones / reach * CENTRE).astype(np.int64)
    when = np.concatenate([onset, np.maximum(tick, onset[owner])[inside]])
    value = np.concatenate([np.zeros(len(onset), np.int64), moved[inside]])
    order = np.argsort(when, kind="stable")
    when, value = when[order], np.clip(value[order] + CENTRE, 0, 2 * CENTRE - 1)
    last = np.append(when[1:] != when[:-1], True)  # of several at one tick the last one counts
    when, value = when[last], value[last]
    new = value != np.concatenate([[CENTRE], value[:-1]])
    when, value = when[new], value[new]
    ones = np.ones(len(when), np.int64)
    return np.stack([when, rank * ones, WHEEL * ones, value & 127, value >> 7])


def bends_of_notes(
    channel: Int64[np.ndarray, " notes"],
    onset: Int64[np.ndarray, " notes"],
    offset: Int64[np.ndarray, " notes"],
    events: list[tuple[int, int, float]],
) -> tuple[Int64[np.ndarray, " notes"], Int64[np.ndarray, " points"], np.ndarray]:
    """What wheels did to notes: points of each note, and the ticks and semitones of all points.

    `events` are (channel, tick, semitones) of every movement. A note that a wheel left in the
    middle all the time has no points.
    """
    counts = np.zeros(len(onset), np.int64)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    table = np.array(events, np.float64).reshape(-1, 3)
    for number in np.unique(table[:, 0]):
        mine = table[table[:, 0] == number]
        mine = mine[np.argsort(mine[:, 1], kind="stable")]
        tick, value = mine[:, 1].astype(np.int64), mine[:, 2]
        for note in np.flatnonzero(channel == number):
            first = max(int(np.searchsorted(tick, onset[note], "right")) - 1, 0)
            stop = int(np.searchsorted(tick, offset[note], "left"))
            first += int(np.argmax(value[first:stop] != 0)) if stop > first else 0
            if value[first:stop].any():
                found[int(note)] = np.maximum(tick[first:stop], onset[note]), value[first:stop]
                counts[note] = stop - first
    if not found:
        return counts, np.zeros(0, np.int64), np.zeros(0)
    ticks, values = zip(*(found[note] for note in sorted(found)), strict=True)
    return counts, np.concatenate(ticks), np.concatenate(values)
