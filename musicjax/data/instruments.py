"""Instruments by name: sound fonts, banks of recorded notes, modelled pianos."""

import functools
import os
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from musicjax.data.bank import NoteBank, recorded_bank, soundfont_bank
from musicjax.data.fluidsynth import Reverb, font_programs, synthesize
from musicjax.data.synth import modelled_piano
from musicjax.errors import DataError
from musicjax.notes import Notes

FONT_SUFFIXES = (".sf2", ".sf3")
_MODELLED, _BANK = "modelled:", "bank:"
_OPEN_BANKS = 3  # kept per process; a complete bank takes some 200 MB


def expand_instruments(
    names: tuple[str, ...], programs: tuple[int, ...] | None = None
) -> tuple[str, ...]:
    """Instrument names with folders replaced by the sound fonts in them, each checked.

    Args:
      names: sound fonts (.sf2, .sf3), folders of sound fonts, `bank:FOLDER` of recorded notes, or
        `modelled:` for pianos made up by formula (`modelled:7` for always the same).
      programs: fonts in folders that have none of these are passed over.

    Raises:
      DataError: nothing there, a folder without such fonts, or a named font without the programs.
    """
    expanded: list[str] = []
    for name in names:
        if name.startswith(_MODELLED):
            expanded.append(name)
        elif name.startswith(_BANK):
            if not Path(name.removeprefix(_BANK)).is_dir():
                raise DataError(f"instrument {name!r}: there is no folder of that name.")
            expanded.append(name)
        elif Path(name).is_dir():
            fonts = sorted(p for p in Path(name).rglob("*") if p.suffix in FONT_SUFFIXES)
            distinct = dict.fromkeys(os.path.realpath(p) for p in fonts if p.exists())
            usable = [font for font in distinct if _has_any(font, programs)]
            if not usable:
                raise DataError(
                    f"no sound font ({', '.join(FONT_SUFFIXES)}) in {name}"
                    f"{f' with one of the programs {programs}' if distinct else ''}; write "
                    f"{_BANK}{name} if it holds recorded notes."
                )
            expanded += usable
        elif Path(name).is_file():
            if not _has_any(name, programs):
                raise DataError(f"sound font {name} has none of the programs {programs}.")
            expanded.append(name)
        else:
            raise DataError(
                f"instrument {name!r} does not exist: expected a sound font, a folder of them, "
                f"{_BANK}FOLDER or {_MODELLED}"
            )
    if not expanded:
        raise DataError("no instruments: name a sound font, bank:FOLDER or modelled:")
    return tuple(expanded)


def _has_any(font: str, programs: tuple[int, ...] | None) -> bool:
    return programs is None or bool(font_programs(font) & set(programs))


@functools.lru_cache(maxsize=_OPEN_BANKS)
def open_bank(name: str, sample_rate: int) -> NoteBank:
    """The bank of notes that a name stands for: `modelled:SEED`, `bank:FOLDER`, a folder of
    recorded notes, or a sound font (its program 0; `FONT:PROGRAM` for another)."""
    if name.startswith(_MODELLED):
        seed = name.removeprefix(_MODELLED) or "0"
        return modelled_piano(np.random.default_rng([int(seed), 0x9A]), sample_rate)
    path, _, program = name.removeprefix(_BANK).partition(":")
    if Path(path).suffix in FONT_SUFFIXES:
        return soundfont_bank(path, int(program or 0), sample_rate)
    return recorded_bank(path, sample_rate)


def play(
    notes: Notes,
    instrument: str,
    sample_rate: int,
    rng: np.random.Generator,
    *,
    piano: int = 0,
    reverb_chance: float = 0.0,
) -> Float32[np.ndarray, " N"]:
    """Render notes on an instrument named as in `expand_instruments`.

    Args:
      notes: with pedal and programs; banks ignore programs and leave out drums.
      instrument: one expanded name.
      sample_rate: Hz.
      rng: draws the touch of a bank and the room of a sound font.
      piano: which modelled piano `modelled:` means.
      reverb_chance: how often a sound font is played in FluidSynth's own room.

    Returns:
      samples (N,) float32, unnormalised.
    """
    if Path(instrument).suffix in FONT_SUFFIXES:
        reverb: Reverb | bool = False
        if rng.random() < reverb_chance:
            size, damping, level = rng.uniform(0.1, 0.9), rng.uniform(0, 0.8), rng.uniform(0.1, 0.9)
            reverb = Reverb(size, damping, 0.5, level)
        return synthesize(notes, instrument, sample_rate, reverb=reverb)
    name = f"{_MODELLED}{piano}" if instrument == _MODELLED else instrument
    return open_bank(name, sample_rate).render(notes, sample_rate, rng)
