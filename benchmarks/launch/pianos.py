"""Recorded pianos of public sample libraries, as the banks of notes that trainings here were fed.

    git clone https://github.com/freepats/upright-piano-KW clones/upright-piano-KW
    python benchmarks/launch/pianos.py clones banks
    musicjax data render --instruments bank:banks/kw ...

A library is known by the name of its folder; those that are not there are named and left out.
Each note is written as one file called by key and layer (`A#4v10.flac`, see
`musicjax.data.bank.recorded_bank`), in mono. Most libraries level their layers and leave loudness
to the player: where the softest layer is within 8 dB of the loudest, layers are set apart again.

The cards name the licences. `cf3` is for validation: no training has heard it.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path

import librosa
import numpy as np
import soundfile

from musicjax.data.bank import trim_lead

LEVELLED_DB = 8.0
LOUDNESS_EXPONENT = 1.6  # amplitude ~ velocity ** exponent, in the middle of what `Touch` draws


@dataclass(frozen=True)
class Library:
    """One piano: the folder of its clone, and how its files are named.

    `pattern` finds `key` (a name or a MIDI number) and `layer`, if there are several, in a path
    below the folder; `layers` numbers them of 16 as the Salamander's are; `transpose` corrects
    names that count octaves otherwise.
    """

    clone: str
    pattern: str
    layers: dict[str, int]
    transpose: int = 0


LIBRARIES = {
    "splendid": Library(
        "SplendidGrandPiano",
        r"Samples/(?P<layer>[FMP]{2}) (?P<key>[A-G]#?-?\d)\.flac",
        {"pp": 3, "mp": 7, "mf": 10, "ff": 15},
        transpose=12,
    ),
    "headroom_close": Library(
        "BengtNilsson.HeadroomPiano",
        r"Samples/HEADROOM PIANO LEVEL(?P<layer>\d) CLOSE (?P<key>\d+)\.flac",
        {"1": 3, "2": 6, "3": 9, "4": 12, "5": 15},
    ),
    "headroom_decca": Library(
        "BengtNilsson.HeadroomPiano",
        r"Samples/HEADROOM PIANO LEVEL(?P<layer>\d) DECCA (?P<key>\d+)\.flac",
        {"1": 3, "2": 6, "3": 9, "4": 12, "5": 15},
    ),
    "kw": Library(
        "upright-piano-KW",
        r"samples/(?P<key>[A-G]#?\d)v(?P<layer>[LH])\.flac",
        {"l": 7, "h": 14},
    ),
    "fb": Library("old-piano-FB", r"samples/(?P<key>[A-G]#?\d)\.flac", {"": 11}),
    "cf3": Library(
        "MatsHelgesson.MaestroConcertGrandPiano",
        r"Samples/mcg_(?P<layer>[pmf]+)_(?P<key>\d+)\.flac",
        {"p": 4, "mp": 7, "mf": 10, "f": 13, "ff": 15},
    ),
}


def main() -> None:
    """Write a bank for every library whose clone is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clones", type=Path, help="folder of the libraries' clones")
    parser.add_argument("out", type=Path, help="folder for the banks")
    arguments = parser.parse_args()
    for name, library in LIBRARIES.items():
        if not (arguments.clones / library.clone).is_dir():
            print(f"{name}: no folder {arguments.clones / library.clone}")
            continue
        print(f"{name}: {write_bank(library, arguments.clones, arguments.out / name)}")


def write_bank(library: Library, clones: Path, out: Path) -> str:
    """Write one piano's notes; returns what was found in words."""
    notes: dict[tuple[str, int], tuple[np.ndarray, int]] = {}
    root = clones / library.clone
    for path in sorted(root.rglob("*.flac")):
        match = re.fullmatch(library.pattern, path.relative_to(root).as_posix(), re.IGNORECASE)
        if match is None:
            continue
        found = match.groupdict()
        key = found["key"]
        pitch = int(key) if key.isdigit() else int(librosa.note_to_midi(key))
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        mono = trim_lead(samples.mean(axis=1), rate)
        notes[(found.get("layer") or "").lower(), pitch + library.transpose] = mono, rate
    if not notes:
        raise SystemExit(f"{root} holds no file named like {library.pattern}")
    level = {
        layer: float(np.median([attack_db(*note) for (n, _), note in notes.items() if n == layer]))
        for layer in library.layers
    }
    levelled = len(level) > 1 and max(level.values()) - min(level.values()) < LEVELLED_DB
    out.mkdir(parents=True, exist_ok=True)
    for (layer, pitch), (samples, rate) in notes.items():
        number = library.layers[layer]
        gain = ((8 * number - 4) / 127) ** LOUDNESS_EXPONENT if levelled else 1.0
        key = librosa.midi_to_note(pitch, unicode=False)
        soundfile.write(out / f"{key}v{number}.flac", gain * samples, rate, subtype="PCM_24")
    loudness = ", ".join(f"{layer or 'one layer'} {db:.1f} dB" for layer, db in level.items())
    return f"{len(notes)} notes; {loudness}{'; set apart' if levelled else ''}"


def attack_db(samples: np.ndarray, rate: int) -> float:
    """Mean power of the first half second, decibels of full scale."""
    return 10 * float(np.log10(np.mean(samples[: rate // 2] ** 2) + 1e-12))


if __name__ == "__main__":
    main()
