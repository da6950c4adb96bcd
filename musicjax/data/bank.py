"""An instrument as a bank of recorded notes, and the mixing of notes into audio.

Mixing stored tones is several hundred times faster than real time on one core, so that hours of
training audio cost minutes. A bank comes from recordings (`recorded_bank`), from any sound font
(`soundfont_bank`), or from a model of a piano (`musicjax.data.synth.modelled_piano`).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from musicjax.errors import DataError
from musicjax.notes import Notes

LAST_DAMPED_PITCH = 88  # strings above about E6 have no dampers and ring on after the key is up
SALAMANDER_LAYERS = 16  # the Salamander files are numbered v1 ... v16 over velocities 0 ... 127


@dataclass(frozen=True)
class Touch:
    """How an instrument answers to velocity and to the release of a key; drawn once a piece."""

    loudness_exponent: float = 1.7  # amplitude ~ (velocity / layer velocity) ** exponent
    damping_s: float = 0.08  # time constant of the damped string at middle C
    bass_damping: float = 2.0  # how much longer the damping takes at A0 than at middle C

    @classmethod
    def random(cls, rng: np.random.Generator) -> "Touch":
        """A plausible piano action."""
        return cls(
            loudness_exponent=rng.uniform(1.2, 2.2),
            damping_s=float(np.exp(rng.uniform(np.log(0.03), np.log(0.16)))),
            bass_damping=rng.uniform(1.2, 3.0),
        )

    def damping_time_s(self, pitch: int) -> float:
        """Time constant of the decay after the damper falls; infinite where there is no damper."""
        if pitch > LAST_DAMPED_PITCH:
            return np.inf
        return self.damping_s * self.bass_damping ** ((60 - pitch) / 39)


class NoteBank:
    """Tones by pitch and velocity layer, fetched on first use and mixed into pieces.

    Args:
      tone: `(pitch, layer) -> samples (N,) float32`, the attack at sample 0, key held down.
      velocities: the MIDI velocity at which each layer sounds right, ascending.
      sample_rate: of the tones, Hz.
    """

    def __init__(
        self,
        tone: Callable[[int, int], Shaped[np.ndarray, " N"]],
        velocities: Sequence[float],
        sample_rate: int,
    ):
        self.sample_rate = sample_rate
        self.velocities = np.asarray(velocities, np.float32)
        self._tone = tone
        self._tones: dict[tuple[int, int], Float32[np.ndarray, " N"]] = {}

    def tone(self, pitch: int, layer: int) -> Float32[np.ndarray, " N"]:
        """The stored tone; computed or read when first asked for."""
        if (pitch, layer) not in self._tones:
            samples = np.asarray(self._tone(pitch, layer))
            if samples.dtype == np.int16:  # as cached on disk
                samples = samples.astype(np.float32) / 32768
            self._tones[pitch, layer] = samples.astype(np.float32)
        return self._tones[pitch, layer]

    def render(
        self,
        notes: Notes,
        sample_rate: int,
        rng: np.random.Generator,
        *,
        touch: Touch | None = None,
        tail_s: float = 1.0,
    ) -> Float32[np.ndarray, " N"]:
        """Mix notes into mono audio.

        Args:
          notes: pedal is honoured (`Notes.sustained`); programs are ignored, drums are left out.
          sample_rate: must be the bank's own, Hz.
          rng: draws the touch when none is given; the same generator state gives the same audio.
          touch: answer to velocity and release.
          tail_s: sound kept after the last release, seconds.

        Returns:
          samples (N,) float32, unnormalised.
        """
        if sample_rate != self.sample_rate:
            raise DataError(
                f"sample_rate is {sample_rate} Hz but this bank holds tones at "
                f"{self.sample_rate} Hz; build the bank at the rate you want to render."
            )
        touch = touch or Touch.random(rng)
        notes = notes.sustained().sorted()
        length = int((notes.duration_s + tail_s) * sample_rate) + 1
        out = np.zeros(length, np.float32)
        # A key struck again silences its own string: what still rings is damped quickly.
        next_onset = _next_onset_of_same_pitch(notes)
        for i in range(len(notes)):
            if notes.is_drum[i]:
                continue
            pitch, velocity = int(notes.pitch[i]), int(notes.velocity[i])
            layer = int(np.argmin(np.abs(self.velocities - velocity)))
            gain = (max(velocity, 1) / self.velocities[layer]) ** touch.loudness_exponent
            tone = self.tone(pitch, layer)
            start = round(float(notes.onset_s[i]) * sample_rate)
            held = max(round(float(notes.offset_s[i]) * sample_rate) - start, 1)
            until = max(round(float(next_onset[i]) * sample_rate) - start, 1)
            damping = touch.damping_time_s(pitch)
            samples = _damp(tone, held, until, damping * sample_rate, 0.01 * sample_rate)
            end = min(start + len(samples), length)
            if start < end:
                out[start:end] += gain * samples[: end - start]
        return out


def _next_onset_of_same_pitch(notes: Notes) -> np.ndarray:
    """For each note (sorted by onset) the onset of the next one on the same key, or 1e9 seconds."""
    result = np.full(len(notes), 1e9)
    last: dict[int, int] = {}
    for i, pitch in enumerate(notes.pitch.tolist()):
        if pitch in last:
            result[last[pitch]] = notes.onset_s[i]
        last[pitch] = i
    return result


def _damp(
    tone: np.ndarray, held: int, until: int, damping: float, strike_damping: float
) -> np.ndarray:
    """Cut a tone where its damper falls (`held`) or its string is struck again (`until`)."""
    cut, constant = (held, damping) if held < until else (until, strike_damping)
    if cut >= len(tone) or not np.isfinite(constant):
        if until >= len(tone):
            return tone
        cut, constant = until, strike_damping
    tail = min(int(7 * constant), len(tone) - cut)  # exp(-7): -60 dB
    fade = np.exp(-np.arange(tail, dtype=np.float32) / np.float32(constant))
    return np.concatenate([tone[:cut], tone[cut : cut + tail] * fade])


_KEY_NAMES = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_FILE_NAME = re.compile(r"([A-G])(s|#|b)?(-?\d+)v(\d+)$")


def recorded_bank(folder: str | Path, sample_rate: int = 16000) -> NoteBank:
    """A bank from a folder of single-note recordings named like `Fs3v8.mp3` (key, velocity layer).

    Keys between the recorded ones are resampled from the nearest (a semitone at most for the
    usual minor thirds). The silence before each attack is trimmed. Layers are numbered as in the
    Salamander Grand Piano: layer n of 16 sounds right at velocity 8 n - 4.

    Raises:
      DataError: the folder holds no recording named that way.
    """
    import soxr

    from musicjax.audio import load_audio

    files: dict[int, dict[int, Path]] = {}
    for path in sorted(Path(folder).iterdir()) if Path(folder).is_dir() else []:
        if match := _FILE_NAME.match(path.stem):
            letter, accidental, octave, layer = match.groups()
            shift = {None: 0, "s": 1, "#": 1, "b": -1}[accidental]
            pitch = 12 * (int(octave) + 1) + _KEY_NAMES[letter] + shift
            files.setdefault(int(layer), {})[pitch] = path
    if not files:
        raise DataError(
            f"{folder} holds no note recordings; expected files named by key and velocity layer, "
            "for example A0v4.mp3, Cs1v12.flac."
        )
    layers = sorted(files)

    def tone(pitch: int, layer: int) -> np.ndarray:
        paths = files[layers[layer]]
        source = min(paths, key=lambda p: abs(p - pitch))
        samples = trim_lead(load_audio(paths[source], sample_rate).samples, sample_rate)
        if source != pitch:
            ratio = 2.0 ** ((pitch - source) / 12)
            samples = soxr.resample(samples, sample_rate * ratio, sample_rate)
        return samples

    return NoteBank(tone, [8 * n - 4 for n in layers], sample_rate)


def trim_lead(samples: np.ndarray, sample_rate: int, threshold_db: float = -40.0) -> np.ndarray:
    """Drop what comes before the attack: 1 ms before the level first passes the threshold
    (relative to the peak)."""
    loud = np.abs(samples) > np.max(np.abs(samples)) * 10 ** (threshold_db / 20)
    start = max(int(np.argmax(loud)) - sample_rate // 1000, 0)
    return samples[start:]


SOUNDFONT_VELOCITIES = (24, 48, 72, 96, 118)


def soundfont_bank(
    font: str | Path, program: int = 0, sample_rate: int = 16000, cache: str | Path | None = None
) -> NoteBank:
    """A bank of the 88 keys of one program of a sound font, rendered once through FluidSynth.

    Args:
      font: an .sf2 or .sf3 file.
      program: General MIDI program, 0 to 127.
      sample_rate: Hz.
      cache: folder in which the rendered tones are kept (about 40 MB a program), or None.
    """
    from musicjax.data.fluidsynth import synthesize

    stem = f"{Path(font).stem}-{program}-{sample_rate}.npz"
    kept = Path(cache) / stem if cache else None
    if kept and kept.exists():
        with np.load(kept) as archive:
            tones = {key: archive[key] for key in archive.files}
    else:
        pitches = np.arange(21, 109)
        hold_s = np.clip(9.0 * 2.0 ** (-(pitches - 36) / 24), 1.5, 10.0)
        starts = np.concatenate([[0], np.cumsum(np.round(hold_s + 0.5, 2))])
        tones = {}
        for layer, velocity in enumerate(SOUNDFONT_VELOCITIES):
            notes = Notes.from_arrays(
                onset_s=starts[:-1],
                offset_s=starts[:-1] + hold_s,
                pitch=pitches,
                velocity=np.full(len(pitches), velocity),
                program=np.full(len(pitches), program),
            )
            audio = synthesize(notes, font, sample_rate, reverb=False, gain=0.6)
            for pitch, start, hold in zip(pitches, starts, hold_s, strict=False):
                begin = round(start * sample_rate)
                tone = audio[begin : begin + round(hold * sample_rate)].copy()
                fade = min(sample_rate // 20, len(tone))
                tone[len(tone) - fade :] *= np.linspace(1, 0, fade, dtype=np.float32)
                tones[f"{pitch}_{layer}"] = np.round(np.clip(tone, -1, 1) * 32767).astype(np.int16)
        if kept:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(".partial.npz")
            np.savez(partial, **tones)
            partial.replace(kept)
    return NoteBank(
        lambda pitch, layer: tones[f"{pitch}_{layer}"], SOUNDFONT_VELOCITIES, sample_rate
    )
