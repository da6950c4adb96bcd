"""Notes to audio through FluidSynth and any sound font, in memory.

The synthesizer is FluidSynth's library: a font is loaded once and only the programs that are
played, which for compressed fonts (.sf3) saves most of the time that the `fluidsynth` program
would spend on every piece.
"""

import ctypes
import ctypes.util
import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from musicjax.errors import DataError, MissingDependencyError
from musicjax.notes import Notes

_BLOCK = 64  # FluidSynth acts on events between blocks of this many samples
_LEAST_RATE = 32000  # below it FluidSynth's interpolation folds the top of 44.1 kHz fonts down
_DRUM_CHANNEL, _DRUM_BANK = 9, 128
_FAILED = -1
_LEVELS = 5  # FluidSynth's log levels, all silenced: failures become errors here
_OPEN_FONTS = 8  # kept per process and rate
_PRESET = np.dtype([("name", "S20"), ("program", "<u2"), ("bank", "<u2"), ("rest", "V14")])


@dataclass(frozen=True)
class Reverb:
    """FluidSynth's own room. All from 0 to 1 but width (0 to 100, stereo spread)."""

    room_size: float = 0.2
    damping: float = 0.0
    width: float = 0.5
    level: float = 0.9


def available() -> bool:
    """Whether the FluidSynth library is installed."""
    return _library_name() is not None


def synthesize(
    notes: Notes,
    font: str | os.PathLike[str],
    sample_rate: int = 16000,
    *,
    reverb: Reverb | bool = False,
    chorus: bool = False,
    gain: float = 0.5,
    tail_s: float = 1.5,
) -> Float32[np.ndarray, " N"]:
    """Render notes (with their pedals and programs) through a sound font, mixed to mono.

    Args:
      notes: what to play; drums go to the drum kit. At most 15 programs.
      font: an .sf2 or .sf3 file.
      sample_rate: of the result, Hz. The synthesizer runs at a multiple of at least 32 kHz.
      reverb, chorus: FluidSynth's own effects.
      gain: FluidSynth's master gain; 0.5 leaves head-room for thick chords.
      tail_s: sound kept after the last release, seconds.

    Raises:
      MissingDependencyError: FluidSynth is not installed.
      DataError: the font is missing, is not one, or has no sound for these notes.
    """
    if not Path(font).is_file():
        raise DataError(f"no sound font at {font}; give the path of an .sf2 or .sf3 file.")
    multiple = -(-_LEAST_RATE // sample_rate)
    synthesizer = _synthesizer(os.path.realpath(font), multiple * sample_rate)
    samples = synthesizer.render(
        notes, Reverb() if reverb is True else reverb, chorus, gain, tail_s
    )
    if len(notes) and not np.abs(samples).max() > 1e-4:
        raise DataError(
            f"{font} is silent for programs {sorted(set(notes.program.tolist()))}: "
            "choose a font that has them, such as one for General MIDI."
        )
    if multiple == 1:
        return samples
    import soxr

    return soxr.resample(samples, multiple * sample_rate, sample_rate).astype(np.float32)


@functools.cache
def font_programs(font: str | os.PathLike[str]) -> frozenset[int]:
    """The General MIDI programs (bank 0) of a sound font, read from its table of presets.

    Raises:
      DataError: the file is no sound font.
    """
    with open(font, "rb") as file:
        form, _, kind = struct.unpack("<4sI4s", file.read(12).ljust(12, b"\0"))
        if (form, kind) != (b"RIFF", b"sfbk"):
            raise DataError(f"{font} is not a sound font: give an .sf2 or .sf3 file.")
        while len(head := file.read(12)) == 12:
            _, size, kind = struct.unpack("<4sI4s", head)
            if kind != b"pdta":
                file.seek(size - 4, os.SEEK_CUR)
                if size % 2 and file.read(1) != b"\0":  # writers of .sf3 forget the padding byte
                    file.seek(-1, os.SEEK_CUR)
                continue
            name, size = struct.unpack("<4sI", file.read(8).ljust(8, b"\0"))
            if name != b"phdr":
                break
            presets = np.frombuffer(file.read(size // 38 * 38), _PRESET)[:-1]  # the last is a mark
            return frozenset(presets["program"][presets["bank"] == 0].tolist())
    raise DataError(f"{font} has no table of presets: it is damaged.")


@functools.lru_cache(maxsize=_OPEN_FONTS)
def _synthesizer(font: str, rate: int) -> "_Synthesizer":
    return _Synthesizer(font, rate)


class _Synthesizer:
    """FluidSynth with one font. Not for two threads at once.

    One instance holds the font and the samples of each program that was ever played. Each piece is
    played by an instance of its own, because a used one never sounds exactly the same again: its
    reverb and chorus keep moving.
    """

    def __init__(self, font: str, rate: int) -> None:
        self._lib = _library()
        self._rate = rate
        self._settings = self._lib.new_fluid_settings()
        for name, number in (
            ("synth.dynamic-sample-loading", 1),
            ("synth.polyphony", 512),
            ("synth.cpu-cores", 1),
            ("synth.lock-memory", 0),
        ):
            self._lib.fluid_settings_setint(self._settings, name.encode(), number)
        rate_name = b"synth.sample-rate"
        self._lib.fluid_settings_setnum(self._settings, rate_name, rate)
        self._keeper = self._lib.new_fluid_synth(self._settings)
        self._font = self._lib.fluid_synth_sfload(self._keeper, os.fsencode(font), 1)
        if self._font == _FAILED:
            raise DataError(f"FluidSynth cannot read {font}: give an .sf2 or .sf3 sound font.")

    def __del__(self) -> None:
        if getattr(self, "_keeper", None):
            self._lib.delete_fluid_synth(self._keeper)
            self._lib.delete_fluid_settings(self._settings)

    def render(
        self, notes: Notes, reverb: Reverb | bool, chorus: bool, gain: float, tail_s: float
    ) -> Float32[np.ndarray, " N"]:
        channels = self._assign_channels(notes)
        for program in channels:  # the keeper's own use of a program keeps its samples loaded
            self._select(self._keeper, 0, program)
        lib, font = self._lib, self._lib.fluid_synth_get_sfont_by_id(self._keeper, self._font)
        synth = lib.new_fluid_synth(self._settings)
        try:
            lib.fluid_synth_add_sfont(synth, font)
            lib.fluid_synth_set_gain(synth, gain)
            lib.fluid_synth_set_chorus_on(synth, int(chorus))
            lib.fluid_synth_set_reverb_on(synth, int(bool(reverb)))
            if isinstance(reverb, Reverb):
                values = (reverb.room_size, reverb.damping, reverb.width, reverb.level)
                lib.fluid_synth_set_reverb(synth, *values)
            for program, channel in channels.items():
                self._select(synth, channel, program)
            if notes.is_drum.any():
                self._select(synth, _DRUM_CHANNEL, 0, _DRUM_BANK)
            return self._play(synth, notes, channels, tail_s)
        finally:
            lib.fluid_synth_remove_sfont(synth, font)
            lib.delete_fluid_synth(synth)

    def _play(
        self, synth: Any, notes: Notes, channels: dict[int, int], tail_s: float
    ) -> Float32[np.ndarray, " N"]:
        end_s = max(notes.duration_s, 0.0) + tail_s
        out = np.zeros((2, -(-round(end_s * self._rate) // _BLOCK) * _BLOCK), np.float32)
        position = 0
        for block, action, channel, first, second in _events(notes, channels, self._rate):
            position = self._advance(synth, out, position, block * _BLOCK)
            function = getattr(self._lib, f"fluid_synth_{action}")
            function(synth, channel, first, *(() if second is None else (second,)))
        self._advance(synth, out, position, out.shape[1])
        return out.mean(axis=0)

    def _select(self, synth: Any, channel: int, program: int, bank: int = 0) -> None:
        self._lib.fluid_synth_program_select(synth, channel, self._font, bank, program)

    def _assign_channels(self, notes: Notes) -> dict[int, int]:
        programs = sorted(set(notes.program[~notes.is_drum].tolist()))
        free = [c for c in range(16) if c != _DRUM_CHANNEL]
        if len(programs) > len(free):
            raise DataError(
                f"the piece uses {len(programs)} programs; FluidSynth plays {len(free)} at a time: "
                "split it by program."
            )
        return dict(zip(programs, free, strict=False))

    def _advance(self, synth: Any, out: np.ndarray, position: int, until: int) -> int:
        until = min(until, out.shape[1])
        if until <= position:
            return position
        left = out[0, position:until].ctypes.data_as(ctypes.c_void_p)
        right = out[1, position:until].ctypes.data_as(ctypes.c_void_p)
        self._lib.fluid_synth_write_float(synth, until - position, left, 0, 1, right, 0, 1)
        return until


Event = tuple[int, str, int, int, int | None]


def _events(notes: Notes, channels: dict[int, int], rate: int) -> Iterator[Event]:
    """(block, function, channel, first, second argument) in the order of time; at one time keys
    come up, then pedals move, then keys go down."""
    events: list[tuple[int, int, Event]] = []

    def add(time_s: float, rank: int, action: str, channel: int, first: int, second: int | None):
        block = max(round(time_s * rate / _BLOCK), 0)
        events.append((block, rank, (block, action, channel, first, second)))

    for note in notes:
        channel = _DRUM_CHANNEL if note.is_drum else channels[note.program]
        # A block is 2 ms at most: a note shorter than that would never be heard.
        off_s = max(note.offset_s, note.onset_s + 2 * _BLOCK / rate)
        add(note.onset_s, 2, "noteon", channel, note.pitch, note.velocity)
        add(off_s, 0, "noteoff", channel, note.pitch, None)
    if notes.pedal is not None:
        pedal = notes.pedal
        columns = (pedal.time_s, pedal.number, pedal.value, pedal.program)
        for time_s, number, value, program in zip(*(c.tolist() for c in columns), strict=True):
            if program in channels:
                add(time_s, 1, "cc", channels[program], number, value)
    events.sort(key=lambda event: event[:2])
    return (event for _, _, event in events)


def _library_name() -> str | None:
    return ctypes.util.find_library("fluidsynth") or ctypes.util.find_library("libfluidsynth-3")


@functools.cache
def _library() -> Any:
    name = _library_name()
    if name is None:
        raise MissingDependencyError(
            "rendering through a sound font needs FluidSynth; install it (Debian: apt install "
            "fluidsynth, macOS: brew install fluid-synth) or render with `modelled:` or `bank:`."
        )
    lib = ctypes.CDLL(name)
    pointer = ctypes.c_void_p
    lib.new_fluid_settings.restype = lib.new_fluid_synth.restype = pointer
    lib.new_fluid_synth.argtypes = [pointer]
    lib.fluid_settings_setint.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
    lib.fluid_settings_setnum.argtypes = [pointer, ctypes.c_char_p, ctypes.c_double]
    lib.fluid_synth_sfload.argtypes = [pointer, ctypes.c_char_p, ctypes.c_int]
    lib.fluid_synth_set_gain.argtypes = [pointer, ctypes.c_float]
    lib.fluid_synth_set_reverb.argtypes = [pointer, *4 * [ctypes.c_double]]
    lib.fluid_synth_get_sfont_by_id.argtypes = [pointer, ctypes.c_int]
    lib.fluid_synth_get_sfont_by_id.restype = pointer
    lib.fluid_synth_add_sfont.argtypes = lib.fluid_synth_remove_sfont.argtypes = 2 * [pointer]
    lib.fluid_synth_write_float.argtypes = [
        *(pointer, ctypes.c_int),
        *(pointer, ctypes.c_int, ctypes.c_int),
        *(pointer, ctypes.c_int, ctypes.c_int),
    ]
    for action, count in (
        ("set_chorus_on", 1),
        ("set_reverb_on", 1),
        ("program_select", 4),
        ("noteon", 3),
        ("noteoff", 2),
        ("cc", 3),
    ):
        getattr(lib, f"fluid_synth_{action}").argtypes = [pointer, *count * [ctypes.c_int]]
    for destroy in (lib.delete_fluid_synth, lib.delete_fluid_settings):
        destroy.argtypes, destroy.restype = [pointer], None
    for level in range(_LEVELS):
        lib.fluid_set_log_function(level, None, None)
    return lib
