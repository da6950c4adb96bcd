"""How well pitch is followed: CREPE in musicjax and in torchcrepe, and pYIN, on known pitch.

    python benchmarks/pitch.py                          # ours, tiny and full, all four sets
    python benchmarks/pitch.py --sizes tiny --pieces 2 --dry-run

Sets; what is absent is left out, with a line that says so:

    voices   generated voices whose pitch is exact: formants, vibrato, glides, leaps, rests, and
             noise from none to as loud as 10 dB below the voice, in a third of them without a
             fundamental; the 20 ms over which a voice fades in or out count neither way
    font     melodies played by instruments of a sound font, with rests; truth is the score
    hard     plucked strings, frequency modulation, glottal flow, resonant sweeps, whistles, small
             loudspeakers, in rooms, pink noise and talk (`pitch_pieces.py`); pitch is exact
    sung     a recorded voice with annotated pitch, from the clips beside the project

Scores are mir_eval's: raw pitch accuracy within 50, 25 and 10 cents and raw chroma accuracy
(octaves forgiven, 50 cents) over frames that have a pitch, whatever the tracker says of voicing;
and voicing recall, voicing false alarms and overall accuracy with the tracker's own voicing at its
defaults. All trackers look from 50 to 2006 Hz every 10 ms; pitches beyond do not count.

None of these sets and their generators is in the training data of `crepe.ours`: the generators are
others, and the sound font was kept apart.

musicjax and torchcrepe run on the same weights with their own decoders: "viterbi", the default of
both, and "local", the average around each frame's highest bin (`weighted_argmax`). torchcrepe
leaves voicing to the user; here it has the threshold that its manual suggests. It is measured when
it is installed: `pip install --no-deps torchcrepe`, with torch, torchaudio and resampy.

The upper limit is torchcrepe's own default. With it, its Viterbi path likes to stay at the highest
bin of all, whose transition to itself is likelier than any other's: there are recordings that it
never follows for that reason alone, and follows when its limit is lower.
"""

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import librosa
import numpy as np
from harness import RESULTS, environment
from pitch_pieces import hard

import musicjax
from musicjax.audio import load_audio
from musicjax.data.fluidsynth import available, synthesize
from musicjax.models.crepe.decode import decode
from musicjax.notes import Notes
from musicjax.notes.contour import read_contour

RATE, HOP, FRAME = 16_000, 160, 1024
MIN_HZ, MAX_HZ = 50.0, 2006.0
SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
FONT = Path("/usr/share/sounds/sf2/TimGM6mb.sf2")
# Program and lowest MIDI pitch of what plays the melodies, an octave and a half from there.
PLAYERS = {
    "violin": (40, 57),
    "cello": (42, 38),
    "trumpet": (56, 55),
    "tenor sax": (66, 46),
    "oboe": (68, 60),
    "clarinet": (71, 52),
    "flute": (73, 62),
    "guitar": (24, 42),
}
PERIODICITY = 0.21  # torchcrepe's manual
CENTS = (50, 25, 10)
SETS = ("voices", "hard", "font", "sung")
FIRST = 200  # seed of the first generated piece: those before were looked at while voicing was set
SIZES = ("ours", "tiny", "full")
TRACKERS = ("musicjax", "torchcrepe", "pyin")


class Piece(NamedTuple):
    """A sound and its pitch: samples at 16 kHz; times in s and Hz, 0 where there is none."""

    samples: np.ndarray
    time_s: np.ndarray
    f0_hz: np.ndarray


class Followed(NamedTuple):
    """What a tracker found: times, Hz of every frame, and whether it is said to have a pitch."""

    time_s: np.ndarray
    hz: np.ndarray
    voiced: np.ndarray


# From samples to what each decoder makes of them; the network runs once for all of them.
Tracker = Callable[[np.ndarray], dict[str, Followed]]


def main() -> None:
    """Score every tracker on every set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=SIZES, choices=SIZES)
    parser.add_argument(
        "--pieces",
        type=int,
        default=12,
        help="generated voices, and melodies; half as many as there are hard pieces",
    )
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--trackers", nargs="+", default=TRACKERS, choices=TRACKERS)
    parser.add_argument("--dry-run", action="store_true", help="print, but record nothing")
    arguments = parser.parse_args()
    trackers: list[Tracker] = [by_pyin] if "pyin" in arguments.trackers else []
    for size in arguments.sizes:
        if "musicjax" in arguments.trackers:
            trackers.append(by_musicjax(size))
        if "torchcrepe" in arguments.trackers and size != "ours":
            if importlib.util.find_spec("torchcrepe") is None:
                print("torchcrepe is not installed: left out")
            else:
                trackers.append(by_torchcrepe(size))
    made = sets(arguments.sets, arguments.pieces, arguments.font, arguments.shared)
    for name, pieces in made.items():
        for track in trackers:
            scores: dict[str, list[dict[str, float]]] = {}
            for piece in pieces:
                for subject, found in track(piece.samples).items():
                    scores.setdefault(subject, []).append(scored(piece, found))
            for subject, each in scores.items():
                mean = {key: float(np.mean([score[key] for score in each])) for key in each[0]}
                told = " · ".join(f"{key} {value:.3f}" for key, value in mean.items())
                print(f"{name:6s} {subject:24s} {len(pieces):3d} pieces · {told}", flush=True)
                if not arguments.dry_run:
                    record(name, subject, pieces, mean)


def scored(piece: Piece, found: Followed) -> dict[str, float]:
    """mir_eval's scores; a negative frequency tells it a pitch that is not said to sound."""
    from mir_eval import melody

    estimate = np.where(found.voiced, found.hz, -found.hz)
    both = melody.to_cent_voicing(piece.time_s, piece.f0_hz, found.time_s, estimate)
    reference_voiced, _, estimate_voiced, _ = both
    scores = {f"raw_pitch_{c}": melody.raw_pitch_accuracy(*both, cent_tolerance=c) for c in CENTS}
    scores["raw_chroma"] = melody.raw_chroma_accuracy(*both)
    recall, false_alarm = melody.voicing_measures(reference_voiced, estimate_voiced)
    scores |= {"voicing_recall": recall, "voicing_false_alarm": false_alarm}
    scores["overall"] = melody.overall_accuracy(*both)
    return {key: float(value) for key, value in scores.items()}


def record(name: str, subject: str, pieces: list[Piece], mean: dict[str, float]) -> None:
    """Append a line to the results."""
    line = {
        "benchmark": "pitch",
        "facts": {"set": name},
        "subject": subject,
        "pieces": len(pieces),
        "audio_s": round(sum(len(piece.samples) / RATE for piece in pieces), 1),
        "scores": {key: round(value, 4) for key, value in mean.items()},
        **environment(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    with (RESULTS / "pitch.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


# Trackers -------------------------------------------------------------------------------------


def by_musicjax(size: str) -> Tracker:
    """Ours, with the likeliest path and with the local average."""
    tracker = musicjax.load(f"crepe.{size}")

    def track(samples: np.ndarray) -> dict[str, Followed]:
        heard = tracker.activations(samples, RATE)
        found = {}
        for decoder in ("viterbi", "local"):
            limits = {"decoder": decoder, "min_hz": MIN_HZ, "max_hz": MAX_HZ}
            every = decode(heard, tracker.config, voicing=0.0, **limits)
            own = decode(heard, tracker.config, **limits)
            hz = np.where(own.voiced, own.f0_hz, every.f0_hz)
            found[f"musicjax {size} {decoder}"] = Followed(own.time_s, hz, own.voiced)
        return found

    return track


def by_torchcrepe(size: str) -> Tracker:
    """torchcrepe with its default decoder and with its local average."""
    import torch
    import torchcrepe

    decoders = {"viterbi": torchcrepe.decode.viterbi, "local": torchcrepe.decode.weighted_argmax}

    def track(samples: np.ndarray) -> dict[str, Followed]:
        audio = torch.from_numpy(samples[None])
        with torch.inference_mode():
            frames = torchcrepe.preprocess(audio, RATE, HOP, batch_size=128)
            heard = torch.cat([torchcrepe.infer(some, size) for some in frames])
        heard = heard.reshape(1, -1, torchcrepe.PITCH_BINS).transpose(1, 2)
        found = {}
        for name, decoder in decoders.items():
            torch.manual_seed(0)  # it adds random noise to its pitches, by numpy or by torch
            np.random.seed(0)  # noqa: NPY002 - the generator that it draws from
            pitch, sure = torchcrepe.postprocess(
                heard.clone(), MIN_HZ, MAX_HZ, decoder, return_periodicity=True
            )
            sure = torchcrepe.threshold.Silence(-60.0)(sure, audio, RATE, HOP)
            hz = pitch[0].numpy().astype(np.float64)
            time_s = np.arange(len(hz)) * HOP / RATE
            voiced = sure[0].numpy() >= PERIODICITY
            found[f"torchcrepe {size} {name}"] = Followed(time_s, hz, voiced)
        return found

    return track


def by_pyin(samples: np.ndarray) -> dict[str, Followed]:
    """pYIN (Mauch and Dixon 2014), librosa's."""
    hz, voiced, _ = librosa.pyin(
        samples, fmin=MIN_HZ, fmax=MAX_HZ, sr=RATE, frame_length=FRAME, hop_length=HOP, fill_na=None
    )
    return {"pyin": Followed(np.arange(len(hz)) * HOP / RATE, hz, voiced)}


# Sets -----------------------------------------------------------------------------------------


def sets(wanted: Sequence[str], count: int, font: Path, shared: Path) -> dict[str, list[Piece]]:
    """Every set that is wanted and can be made, by name; the same at every call."""
    found = {}
    if "voices" in wanted:
        found["voices"] = [voice(FIRST + i) for i in range(count)]
    if "hard" in wanted:
        found["hard"] = [Piece(*hard(FIRST + i)) for i in range(2 * count)]
    if "font" in wanted and available() and font.is_file():
        players = list(PLAYERS.values())
        found["font"] = [melody(i, font, *players[i % len(players)]) for i in range(count)]
    path = shared / "clips" / "voice_vocadito1_a.flac"
    if "sung" in wanted and path.is_file():
        truth = read_contour(path.with_suffix(".f0.csv"))
        samples = np.asarray(load_audio(path, RATE).samples, np.float32)
        found["sung"] = [Piece(samples, truth.time_s, truth.f0_hz)]
    for name in wanted:
        if name not in found:
            print(f"{name}: FluidSynth, {font} or {path} is missing: left out")
    return {name: [within(piece) for piece in pieces] for name, pieces in found.items()}


def within(piece: Piece) -> Piece:
    """The piece without the frames whose pitch no tracker looks for."""
    counts = (piece.f0_hz == 0) | ((piece.f0_hz >= MIN_HZ) & (piece.f0_hz <= MAX_HZ))
    return Piece(piece.samples, piece.time_s[counts], piece.f0_hz[counts])


def voice(seed: int, seconds: float = 8.0) -> Piece:
    """A generated voice: notes that glide, leap and rest, sung on a vowel in some noise."""
    rng = np.random.default_rng([0xF0, seed])
    time = np.arange(round(seconds * RATE)) / RATE
    knots, sounds = line(rng, seconds, low=rng.uniform(38, 62))
    midi = np.interp(time, *knots)
    midi = midi + rng.uniform(0, 0.5) * np.sin(2 * np.pi * rng.uniform(4.5, 6.5) * time)
    hz = 440 * 2 ** ((midi - 69) / 12)
    phase = 2 * np.pi * np.cumsum(hz) / RATE
    formants = rng.uniform([300, 800, 2200], [900, 1900, 3200])
    samples = np.zeros(len(time))
    for harmonic in range(1 + (seed % 3 == 2), 40):
        own = harmonic * hz
        vowel = sum(np.exp(-(((own - f) / (80 + 0.1 * f)) ** 2)) for f in formants) + 0.05
        level = vowel * harmonic**-0.7 * np.clip((7500 - own) / 500, 0, 1)
        samples += level * np.sin(harmonic * phase + rng.uniform(0, 2 * np.pi))
    gate = np.zeros(len(time))
    for begin, end in sounds:
        gate[(time >= begin) & (time < end)] = 1.0
    ramp = np.hanning(321) / np.hanning(321).sum()
    loudness = np.convolve(gate, ramp, "same")
    samples = 0.1 * samples * loudness / max(1e-9, samples.std())
    noise = rng.normal(size=len(time))
    if seed % 2:  # brown rather than white, leaking so that it does not drift away
        noise = np.convolve(noise, 0.99 ** np.arange(1000))[: len(time)]
    samples += 0.1 * 10 ** (-rng.uniform(10, 60) / 20) * noise / noise.std()
    place = np.arange(0, len(time), HOP)
    counts = (loudness[place] < 1e-6) | (loudness[place] > 1 - 1e-6)
    truth = np.where(gate[place] > 0, hz[place], 0.0)
    return Piece(samples.astype(np.float32), time[place][counts], truth[counts])


def line(
    rng: np.random.Generator, seconds: float, low: float
) -> tuple[tuple[list[float], list[float]], list[tuple[float, float]]]:
    """Knots of a melody over an octave and a half as (times, MIDI), and when it sounds."""
    now, times, pitches, sounds = 0.1, [0.0], [low + 6.0], [(0.1, 0.1)]
    while now < seconds - 0.2:
        length = min(rng.uniform(0.12, 0.9), seconds - 0.1 - now)
        pitch = low + rng.uniform(0, 18)
        glide = rng.choice([0.005, 0.03, 0.15])
        times += [now + min(glide, 0.5 * length), now + length]
        pitches += [pitch, pitch + rng.normal(0, 0.3)]
        if rng.random() < 0.3:
            sounds.append((now, now + length))
        else:
            sounds[-1] = (sounds[-1][0], now + length)
        now += length
        if rng.random() < 0.25:
            now += rng.uniform(0.1, 0.4)
            sounds.append((now, now))
    return (times, pitches), sounds


def melody(seed: int, font: Path, program: int, low: int) -> Piece:
    """A melody of the sound font, with a rest of a second after every four notes.

    A note's pitch counts from 30 ms after its onset to its end. After its end it rings on, which is
    neither a note of the score nor silence: half a second of that does not count.
    """
    rng = np.random.default_rng([0xF1, seed])
    length = rng.choice([0.15, 0.25, 0.5, 0.8], 16)
    onset = 0.5 + np.concatenate([[0.0], np.cumsum(length)[:-1]]) + np.arange(16) // 4
    offset = onset + length * rng.choice([0.7, 0.95], len(length))
    pitch = low + rng.integers(0, 18, len(length))
    notes = Notes.from_arrays(onset, offset, pitch, rng.integers(50, 120, len(length)), program)
    samples = synthesize(notes, font, RATE, tail_s=1.0)
    samples = 0.5 * samples / np.abs(samples).max()
    time = np.arange(0, offset[-1] + 1.0, HOP / RATE)
    hz, begins, rings = np.zeros(len(time)), np.zeros(len(time), bool), np.zeros(len(time), bool)
    for begin, end, own in zip(onset, offset, pitch, strict=True):
        hz[(time >= begin) & (time < end)] = 440 * 2 ** ((own - 69) / 12)
        begins |= (time >= begin) & (time < begin + 0.03)
        rings |= (time >= end) & (time < end + 0.5)
    counts = ~begins & ((hz > 0) | ~rings)
    return Piece(samples, time[counts], hz[counts])


if __name__ == "__main__":
    main()
