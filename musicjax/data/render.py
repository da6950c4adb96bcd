"""From MIDI files to training records: excerpts, re-performed, played by many instruments.

Every example follows from the seed and its number alone, so the work can be spread over
processes, stopped and taken up again, or prolonged, and the records stay the same.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from musicjax.data.augment import AugmentConfig, augment
from musicjax.data.compose import compose
from musicjax.data.corpora import SPLITS, Score, find_scores
from musicjax.data.ensemble import EnsembleConfig, orchestrate
from musicjax.data.fluidsynth import font_programs
from musicjax.data.instruments import FONT_SUFFIXES, expand_instruments, play
from musicjax.data.performance import ReperformConfig, playable, reperform
from musicjax.data.records import SUFFIX, Codec, Example, RecordSource, to_int16, write_shard
from musicjax.errors import ConfigError, DataError
from musicjax.files import atomic_write, make_folder
from musicjax.notes import Notes

COMPOSER = "composer:"
_MANIFEST = "corpus.json"
_FORMAT = 1
_FREE = ("out", "hours", "processes")  # may change between runs: no record depends on them
_OF_ENSEMBLES = ("ensemble", "band", "drums")
_TRIES = 20  # excerpts drawn until one has enough notes
_FEWEST_NOTES = 4
_PEAK = 0.9
_EXAMPLES_A_PIANO = 24  # records until `modelled:` means the next piano

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class RenderConfig:
    """Turn MIDI files into audio with exact notes, stored as sharded records."""

    out: Path
    """Folder to write the shards to; run again with the same options to go on after a stop."""
    midi: tuple[str, ...] = (COMPOSER,)
    """MIDI to play: folders, .tar.gz corpora, text files that list some, single files, or
    `composer:` for music made up on the spot."""
    weights: tuple[float, ...] = ()
    """How often to draw from each entry of `midi`; empty draws in proportion to their files."""
    split: str = "train"
    """Part of each corpus to use: train, valid, test or all."""
    instruments: tuple[str, ...] = ("modelled:",)
    """Sound fonts, folders of them, `bank:FOLDER` of recorded notes, or `modelled:` pianos."""
    programs: tuple[int, ...] = (0, 1)
    """General MIDI programs drawn for sound fonts when `piano` is on (0 grand, 1 bright grand)."""
    piano: bool = True
    """Play every part on the piano and leave out drums; off keeps the files' own programs."""
    ensemble: bool = False
    """Give the parts of each piece to other instruments (and do not make it a piano piece)."""
    band: EnsembleConfig = field(default_factory=EnsembleConfig)
    """How freely, when `ensemble` is on."""
    drums: tuple[str, ...] = ()
    """MIDI of drums, named as in `midi`, that ensembles without drums are joined by."""
    hours: float = 1.0
    """Hours of audio in all; a larger number later adds to the same folder."""
    excerpt_s: float = 60.0
    """Length of an example in seconds."""
    sample_rate: int = 16000
    """Sample rate of the records in Hz."""
    shard_size: int = 16
    """Examples in one shard."""
    codec: Codec = "pcm16"
    """pcm16 is quickest to read a crop from; flac takes about half the space."""
    as_written: bool = False
    """Play the files as they are instead of performing them anew."""
    performance: ReperformConfig = field(default_factory=ReperformConfig)
    """How freely the files are performed anew."""
    reverb_chance: float = 0.3
    """How often a sound font plays in FluidSynth's own room."""
    augmented: bool = False
    """Store rooms, noise and the like with the audio; training adds its own while reading."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Which rooms and noise, when `augmented` is on."""
    seed: int = 0
    """Seed of every draw."""
    processes: int = 0
    """Processes that render; 0 is one a core."""

    def __post_init__(self) -> None:
        if self.split not in (*SPLITS, "all"):
            raise ConfigError(f"split is {self.split!r}, expected all, {', '.join(SPLITS)}.")
        if self.hours <= 0 or self.excerpt_s <= 0 or self.shard_size < 1:
            raise ConfigError(
                f"hours ({self.hours}), excerpt_s ({self.excerpt_s}) and shard_size "
                f"({self.shard_size}) must be positive."
            )
        if self.drums and not self.ensemble:
            raise ConfigError("drums join ensembles only: set ensemble too, or leave drums out.")
        if self.weights and len(self.weights) != len(self.midi):
            raise ConfigError(
                f"weights has {len(self.weights)} numbers for {len(self.midi)} entries of midi: "
                "give one weight per entry, or none."
            )

    @property
    def as_piano(self) -> bool:
        """Whether every part is played on a piano."""
        return self.piano and not self.ensemble

    @property
    def num_examples(self) -> int:
        """Examples that make up `hours`."""
        return max(1, -(-round(self.hours * 3600) // round(self.excerpt_s)))


@dataclass(frozen=True)
class Repertoire:
    """Everything a worker needs to know of one job: files and instruments, looked up once."""

    config: RenderConfig
    entries: tuple[tuple[Score, ...], ...]  # an empty entry is the composer
    instruments: tuple[str, ...]
    drums: tuple[Score, ...] = ()

    @classmethod
    def find(cls, config: RenderConfig) -> "Repertoire":
        """Look up what the configuration names. Raises DataError for what is not there."""
        entries = tuple(
            () if entry == COMPOSER else tuple(find_scores(entry, config.split))
            for entry in config.midi
        )
        wanted = config.programs if config.as_piano else None
        instruments = expand_instruments(config.instruments, wanted)
        if config.ensemble:
            _check_fonts(instruments)
        drums = [score for entry in config.drums for score in find_scores(entry, config.split)]
        return cls(config, entries, instruments, tuple(drums))

    @functools.cached_property
    def odds(self) -> np.ndarray:
        """Probability of each entry."""
        most = max(map(len, self.entries)) or 1
        weights = self.config.weights or [len(scores) or most for scores in self.entries]
        return np.asarray(weights, float) / np.sum(weights)

    def digest(self) -> str:
        """A hash that changes when any record would."""
        fields = dataclasses.asdict(self.config)
        fields = {k: v for k, v in fields.items() if k not in _FREE}
        names = [[score.id for score in scores] for scores in self.entries]
        if self.config.ensemble:
            names.append([score.id for score in self.drums])
        else:  # corpora of piano are the same as before there were ensembles
            fields = {k: v for k, v in fields.items() if k not in _OF_ENSEMBLES}
        text = json.dumps([_FORMAT, fields, names, self.instruments], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def render_example(repertoire: Repertoire, index: int) -> Example:
    """Example number `index` of a job: the same whenever and wherever it is rendered."""
    config = repertoire.config
    rng = np.random.default_rng([config.seed, index])
    name, notes = _excerpt(repertoire, rng)
    instrument = repertoire.instruments[rng.integers(len(repertoire.instruments))]
    if config.ensemble:
        notes = _for_ensemble(notes, instrument, rng, repertoire)
    samples = play(
        _on_program(notes, instrument, rng, config),
        instrument,
        config.sample_rate,
        rng,
        piano=config.seed * 10007 + index // _EXAMPLES_A_PIANO,
        reverb_chance=config.reverb_chance,
    )
    length = round(config.excerpt_s * config.sample_rate)
    samples = np.pad(samples[:length], (0, max(0, length - len(samples))))
    if config.augmented:
        samples, notes = augment(samples, notes, config.sample_rate, rng, config.augment)
    else:
        samples = samples * np.float32(_PEAK / max(float(np.abs(samples).max()), 1e-6))
    source = Path(instrument).stem if not instrument.endswith(":") else instrument[:-1]
    return Example(f"{index:06d}:{name}:{source}", config.sample_rate, to_int16(samples), notes)


def _check_fonts(instruments: tuple[str, ...]) -> None:
    """That ensembles are played by sound fonts: banks hold one instrument."""
    banks = [name for name in instruments if Path(name).suffix not in FONT_SUFFIXES]
    if banks:
        raise ConfigError(
            f"ensembles are played by sound fonts and {', '.join(banks)} is none: name fonts or "
            "folders of them in instruments."
        )


def _for_ensemble(
    notes: Notes, instrument: str, rng: np.random.Generator, repertoire: Repertoire
) -> Notes:
    """The excerpt for instruments that the font has, with drums from a random score."""
    drums = None
    if repertoire.drums:
        drums = _read(repertoire.drums[rng.integers(len(repertoire.drums))])
    config, programs = repertoire.config, font_programs(instrument)
    notes = orchestrate(notes, rng, config.band, programs=programs, drums=drums)
    return notes.slice(0.0, config.excerpt_s, clip=True)


def _on_program(
    notes: Notes, instrument: str, rng: np.random.Generator, config: RenderConfig
) -> Notes:
    """The notes as a sound font plays them; the stored notes keep program 0 for every piano."""
    if not config.as_piano or Path(instrument).suffix not in FONT_SUFFIXES:
        return notes
    has = font_programs(instrument)
    usable = [program for program in config.programs if program in has]
    program = usable[rng.integers(len(usable))]
    pedal = notes.pedal
    if pedal is not None:
        pedal = dataclasses.replace(pedal, program=np.full(len(pedal), program))
    return dataclasses.replace(notes, program=np.full(len(notes), program), pedal=pedal)


def _excerpt(repertoire: Repertoire, rng: np.random.Generator) -> tuple[str, Notes]:
    """A part of a random piece in a random performance, cut to the length of an example."""
    config, failure = repertoire.config, None
    for _ in range(_TRIES):
        scores = repertoire.entries[rng.choice(len(repertoire.entries), p=repertoire.odds)]
        if not scores:
            return "composed", compose(rng, config.excerpt_s).slice(0, config.excerpt_s, clip=True)
        score = scores[rng.integers(len(scores))]
        try:
            notes = _read(score)
        except DataError as error:  # one damaged file in a corpus must not end the job
            failure = error
            continue
        if config.as_piano:
            notes = as_piano(notes)
        fastest = 1.0 if config.as_written else config.performance.tempo[1]
        wanted_s = config.excerpt_s * max(fastest, 1.0)
        start_s = float(rng.uniform(0, max(notes.duration_s - wanted_s, 0.0)))
        notes = notes.slice(start_s, start_s + wanted_s, clip=True).shift(-start_s)
        if not config.as_written:
            notes = reperform(notes, rng, config.performance)
        notes = notes.slice(0.0, config.excerpt_s, clip=True)
        if len(notes) >= _FEWEST_NOTES:
            return score.id, notes
    raise failure or DataError(
        f"{_TRIES} excerpts in a row of {', '.join(config.midi)} had fewer than {_FEWEST_NOTES} "
        "notes: are these piano pieces?"
    )


@functools.lru_cache(maxsize=64)
def _read(score: Score) -> Notes:
    return score.read()


def as_piano(notes: Notes) -> Notes:
    """All pitched parts together on one piano: doubled keys struck once, drums left out."""
    notes = notes[~notes.is_drum]
    pedal = notes.pedal
    if pedal is not None:
        pedal = dataclasses.replace(pedal, program=np.zeros(len(pedal), np.uint8))
    inside = (notes.pitch >= 21) & (notes.pitch <= 108)
    part = notes[inside]
    velocity = part.velocity.astype(float)
    return playable(part.onset_s, part.offset_s, part.pitch, velocity, pedal=pedal)


def render_corpus(config: RenderConfig, on_progress: Progress | None = None) -> int:
    """Render what is missing of a corpus; returns the number of examples in the folder.

    Finished shards are kept and skipped, so a stopped job is taken up by calling this again.

    Args:
      config: what to render.
      on_progress: called with (examples done, examples in all), several times a second.

    Raises:
      DataError: sources are missing, or the folder holds a corpus of another configuration.
      OutputError: the folder cannot be made.
    """
    repertoire = Repertoire.find(config)
    make_folder(config.out)
    _check_manifest(repertoire)
    shards = list(_shards(config))
    missing = [shard for shard in shards if not _is_complete(config.out, *shard)]
    still_to_do = sum(len(indices) for _, indices in missing)
    report = _Report(on_progress, config.num_examples - still_to_do, config.num_examples)
    processes = min(config.processes or os.cpu_count() or 1, max(len(missing), 1))
    if processes == 1:
        for name, indices in missing:
            _render_shard(repertoire, name, indices, report.one_more)
    else:
        _render_parallel(repertoire, missing, processes, report)
    for leftover in config.out.glob(f".*{SUFFIX}.*"):  # of a run that was killed in mid-shard
        leftover.unlink(missing_ok=True)
    _write_manifest(repertoire, shards, complete=True)
    return config.num_examples


class _Report:
    def __init__(self, on_progress: Progress | None, done: int, total: int) -> None:
        self._on_progress, self._before, self._total = on_progress, done, total
        self._count = 0
        self.show(0)

    def one_more(self) -> None:
        self._count += 1
        self.show(self._count)

    def show(self, rendered: int) -> None:
        if self._on_progress:
            self._on_progress(self._before + rendered, self._total)


def _shards(config: RenderConfig) -> Iterator[tuple[str, range]]:
    for number, start in enumerate(range(0, config.num_examples, config.shard_size)):
        stop = min(start + config.shard_size, config.num_examples)
        yield f"part-{number:05d}{SUFFIX}", range(start, stop)


def _is_complete(folder: Path, name: str, indices: range) -> bool:
    path = folder / name
    try:
        return path.exists() and len(RecordSource(path)) == len(indices)
    except DataError:
        return False


def _render_shard(
    repertoire: Repertoire, name: str, indices: range, one_more: Callable[[], None]
) -> None:
    def examples() -> Iterator[Example]:
        for index in indices:
            yield render_example(repertoire, index)
            one_more()

    write_shard(repertoire.config.out / name, examples(), repertoire.config.codec)


def _render_parallel(
    repertoire: Repertoire, shards: list[tuple[str, range]], processes: int, report: _Report
) -> None:
    # Spawned, not forked: the caller may have started jax, whose threads a fork would break.
    context = multiprocessing.get_context("spawn")
    count, stop = context.Value("q", 0), context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        processes, context, _start_worker, (repertoire, count, stop)
    ) as pool:
        waiting = {pool.submit(_work, name, indices) for name, indices in shards}
        try:
            while waiting:
                done, waiting = concurrent.futures.wait(waiting, timeout=0.25)
                for future in done:
                    future.result()
                report.show(count.value)
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_worker: dict[str, Any] = {}  # a worker process's own repertoire, counter and stop signal


def _start_worker(repertoire: Repertoire, count: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which sets `stop`
    _worker.update(repertoire=repertoire, count=count, stop=stop)


def _work(name: str, indices: range) -> None:
    def one_more() -> None:
        with _worker["count"].get_lock():
            _worker["count"].value += 1
        if _worker["stop"].is_set():
            raise InterruptedError("stopped by the parent process")

    _render_shard(_worker["repertoire"], name, indices, one_more)


def _check_manifest(repertoire: Repertoire) -> None:
    path = repertoire.config.out / _MANIFEST
    if path.exists():
        try:
            found = json.loads(path.read_text())["digest"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: delete the folder and render again.") from error
        if found != repertoire.digest():
            raise DataError(
                f"{repertoire.config.out} holds a corpus rendered with other options: give the "
                f"same options as before (they are in {path}), or another folder."
            )
    else:
        others = list(repertoire.config.out.glob(f"*{SUFFIX}"))
        if others:
            raise DataError(
                f"{repertoire.config.out} holds records that were not rendered here "
                f"({others[0].name}): give another folder."
            )
    _write_manifest(repertoire, list(_shards(repertoire.config)), complete=False)


def _write_manifest(
    repertoire: Repertoire, shards: list[tuple[str, range]], *, complete: bool
) -> None:
    manifest = {
        "format": _FORMAT,
        "digest": repertoire.digest(),
        "complete": complete,
        "examples": repertoire.config.num_examples,
        "shards": [name for name, _ in shards],
        "instruments": repertoire.instruments,
        "files": [len(scores) for scores in repertoire.entries],
        "config": dataclasses.asdict(repertoire.config),
    }
    with atomic_write(repertoire.config.out / _MANIFEST) as file:
        file.write(json.dumps(manifest, indent=1, default=str).encode())
