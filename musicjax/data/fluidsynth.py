"""Notes to audio through FluidSynth and any SoundFont: one call of the `fluidsynth` program."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from musicjax.errors import DataError, MissingDependencyError
from musicjax.notes import Notes, write_midi


def available() -> bool:
    """Whether the `fluidsynth` program is installed."""
    return shutil.which("fluidsynth") is not None


def synthesize(
    notes: Notes,
    font: str | Path,
    sample_rate: int = 16000,
    *,
    reverb: bool = False,
    chorus: bool = False,
    gain: float = 0.5,
) -> Float32[np.ndarray, " N"]:
    """Render notes (with their pedal and programs) through a sound font, mixed to mono.

    The synthesiser runs at 44.1 kHz, where its interpolation is clean, and is resampled.

    Args:
      notes: what to play.
      font: an .sf2 or .sf3 file.
      sample_rate: of the result, Hz.
      reverb, chorus: FluidSynth's own effects.
      gain: FluidSynth's master gain; 0.5 leaves head-room for thick chords.

    Raises:
      MissingDependencyError: no `fluidsynth` program on the path.
      DataError: the font is missing or FluidSynth refuses it.
    """
    if not available():
        raise MissingDependencyError(
            "rendering through a sound font needs the `fluidsynth` program; install it (Debian: "
            "apt install fluidsynth, macOS: brew install fluid-synth) or render with a note bank."
        )
    if not Path(font).is_file():
        raise DataError(f"no sound font at {font}; give the path of an .sf2 or .sf3 file.")
    import soxr

    with tempfile.TemporaryDirectory() as folder:
        midi, raw = Path(folder) / "in.mid", Path(folder) / "out.raw"
        write_midi(notes, midi)
        command = ["fluidsynth", "-n", "-i", "-q", "-g", str(gain), "-r", "44100"]
        command += ["-R", str(int(reverb)), "-C", str(int(chorus))]
        command += ["-O", "s16", "-E", "little", "-T", "raw", "-F", str(raw), str(font), str(midi)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not raw.exists() or "failed to load" in done.stderr.lower():
            reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise DataError(f"FluidSynth could not render with {font}: {reason[0]}")
        stereo = np.fromfile(raw, "<i2").reshape(-1, 2)
    mono = stereo.astype(np.float32).mean(axis=1) / 32768
    return soxr.resample(mono, 44100, sample_rate).astype(np.float32)
