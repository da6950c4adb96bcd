"""Writes the parts of README.md that are copied from elsewhere: models, results, commands.

    python .ci/readme.py            rewrite the tables between their markers
    python .ci/readme.py NAME       print the shell command that README.md marks with NAME

The table of models comes from the registry and the tables of scores and results from the JSON lines
in `benchmarks/results`: the newest line that fits a row's conditions. Tests check that README.md
says what this script would write, and `.ci/run` runs the commands that this script reads out, so
that neither can drift.
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Wanted:
    """One row of results: what it says, and which number of which line it quotes.

    `where` maps dotted fields to the values they must have; `field` is the dotted number.
    """

    says: str
    file: str
    where: Mapping[str, Any]
    field: str
    form: str


@dataclass(frozen=True)
class Row:
    """A row as printed: the sentence, the number, what it was measured on, and its file."""

    says: str
    value: str
    on: str
    file: str


def _compared(
    says: str, file: str, where: Mapping[str, Any], form: str, *peers: str
) -> list[Wanted]:
    """Our seconds of audio in a second, and a row for the time of each peer over ours."""
    ours = Wanted(says, file, {**where, "subject": "musicjax"}, "audio_s_per_s", form)
    return [ours] + [
        Wanted(f"time of {peer} / ours", file, {**where, "subject": peer}, "ratio.median", "{:.1f}")
        for peer in peers
    ]


def _waited(says: str, what: str, subject: str, field: str, form: str) -> Wanted:
    return Wanted(says, "command_line", {"facts.what": what, "subject": subject}, field, form)


def _unseen(says: str, score: str, model: str, name: str) -> Wanted:
    where = {"facts.set": "font, rooms", "facts.model": model}
    says = f"{says} F1, an unseen sound font in rooms, {name}"
    return Wanted(says, "accuracy", where, f"scores.{score}", "{:.3f}")


def _decoded(rows: int, *peers: str) -> list[Wanted]:
    """Seconds of audio that are decoded in a second at MT3's size, and peers' times over ours."""
    where = {"facts.part": "decode", "facts.size": "mt3", "facts.slots": rows, "facts.devices": 2}
    names = {"fixed": "fixed batches", "transformers": "transformers"}
    says = f"decoding at MT3's size, {rows} slots, × real time"
    ours = Wanted(says, "decode", {**where, "subject": "slots"}, "audio_s_per_s", "{:.0f}")
    return [ours] + [
        Wanted(
            f"time of {names[peer]} / ours",
            "decode",
            {**where, "subject": peer},
            "ratio.median",
            "{:.1f}",
        )
        for peer in peers
    ]


_CLIP, _HOUR = "transcribe 30 s", "transcribe an hour"
_RECORDINGS = {"bach_prelude": "the example of 34 s", "five minutes": "five minutes"}
_PIANO_PRESETS = (
    "onsets_frames",
    "onsets_frames_magenta",
    "ar_piano",
    "online_amt",
    "kong",
    "hft",
    "mt3",
)
_TRAINING = {"facts.case": "training_step", "facts.complexity": 16}
WANTED: tuple[Wanted, ...] = (
    _unseen("onset", "onset_f1", "onsets_frames.small", "`onsets_frames.small`"),
    _unseen("onset", "onset_f1", "basic_pitch", "Basic Pitch"),
    _unseen("onset and offset", "onset_offset_f1", "onsets_frames.small", "`onsets_frames.small`"),
    _waited("`import musicjax`", "start", "import musicjax", "steady.median", "{:.2f} s"),
    _waited("`musicjax --help`", "start", "musicjax --help", "steady.median", "{:.2f} s"),
    _waited("30 s of piano, first time", _CLIP, "cold", "steady.median", "{:.1f} s"),
    _waited("30 s of piano, any later time", _CLIP, "warm", "steady.median", "{:.1f} s"),
    _waited("an hour of piano", _HOUR, "warm", "steady.median", "{:.0f} s"),
    _waited("an hour of piano, peak memory", _HOUR, "warm", "peak_rss_mb", "{:.0f} MB"),
    *(
        wanted
        for recording, says in _RECORDINGS.items()
        for wanted in _compared(
            f"file in, notes out, {says}, × real time",
            "transcribe",
            {"facts.recording": recording, "facts.model": "onsets_frames.small"},
            "{:.0f}",
            "basic_pitch",
        )
    ),
    *_compared("training `small`, × real time", "onsets_frames", _TRAINING, "{:.0f}", "torch"),
    *(
        wanted
        for preset in _PIANO_PRESETS
        for wanted in _compared(
            f"front-end `{preset}`, × real time",
            "frontend",
            {"facts.preset": preset},
            "{:.0f}",
            *("librosa", "torch", "librosax"),
        )
    ),
    *(wanted for rows in (32, 64) for wanted in _decoded(rows, "fixed", "transformers")),
    Wanted(
        "reading MIDI, time of pretty_midi / ours",
        "notes",
        {"facts.part": "read_midi", "subject": "pretty_midi"},
        "ratio.median",
        "{:.1f}",
    ),
    Wanted(
        "scoring notes, time of mir_eval / ours",
        "notes",
        {"facts.part": "note_scores", "subject": "mir_eval"},
        "ratio.median",
        "{:.1f}",
    ),
)


def main() -> None:
    """Rewrite README.md, or print one of its commands."""
    path = ROOT / "README.md"
    text = path.read_text()
    if len(sys.argv) > 1:
        print(command(text, sys.argv[1]))
    else:
        path.write_text(written(text))


def written(text: str) -> str:
    """The README with all tables made anew."""
    text = _replaced(text, "models", model_table())
    text = _replaced(text, "scores", score_table(TRANSCRIBERS))
    text = _replaced(text, "pitch", score_table(TRACKERS))
    text = _replaced(text, "latency", latency_table())
    return _replaced(text, "results", result_table())


def command(text: str, name: str) -> str:
    """The shell command below the marker `<!-- command: name -->`."""
    found = re.search(rf"<!-- command: {name} -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    if not found:
        sys.exit(f"README.md has no command marked {name!r}")
    return found.group(1)


def block(text: str, language: str) -> str:
    """The first fenced block of a language."""
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    if not found:
        sys.exit(f"README.md has no block of {language}")
    return found.group(1)


def model_table() -> str:
    """One line a tag, from the cards."""
    sys.path.insert(0, str(ROOT))
    from musicjax.registry import find_card, list_models

    lines = ["| model | does | parameters | weights | licence |", "| --- | --- | --- | --- | --- |"]
    for name in list_models():
        _, _, card = find_card(name)
        count = card.parameters
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.0f} k" if count else ""
        lines.append(
            f"| `{name}` | {card.summary} | {size} | {_weights(card.source)} | {card.licence} |"
        )
    return "\n".join(lines)


def _weights(source: Any) -> str:
    if source is None:
        return "yours: train or convert"
    where = "in the package" if source.address.startswith("package:") else "fetched"
    size = source.wheel_bytes or source.size_bytes  # 0: of a folder that was never weighed
    return f"{where}, {size / 1e6:.1f} MB" if size else where


@dataclass(frozen=True)
class Scores:
    """A table of scores: a row for each subject of a file, a column for each set and score."""

    file: str
    head: str
    columns: Sequence[tuple[str, str, Sequence[str]]]  # what the column says, set, scores
    names: Mapping[str, str]  # of subjects that are not models of the zoo


TRANSCRIBERS = Scores(
    "accuracy",
    "transcriber",
    tuple(
        (says, where, (score,))
        for where, first in (
            ("clips", "piano: onset"),
            ("clips, rooms", "in rooms: onset"),
            ("font, rooms", "unseen font in rooms: onset"),
            ("ensembles", "ensembles: onset"),
        )
        for says, score in ((first, "onset_f1"), ("and offset", "onset_offset_f1"))
    ),
    {"basic_pitch": "Basic Pitch, the package", "transkun": "Transkun, the package"},
)
_CENTS = ("raw_pitch_50", "raw_pitch_25", "raw_pitch_10")
_VOICING = ("voicing_recall", "voicing_false_alarm")
TRACKERS = Scores(
    "pitch",
    "pitch tracker",
    tuple(
        (says, where, scores)
        for where, first in (
            ("voices", "voices: 50, 25, 10 cents"),
            ("hard", "hard: 50, 25, 10"),
            ("font", "instruments: 50, 25, 10"),
            ("sung", "a singer: 50, 25, 10"),
        )
        for says, scores in ((first, _CENTS), ("voicing: recall, false alarms", _VOICING))
    ),
    {"pyin": "pYIN, librosa's"},
)


def score_table(scores: Scores) -> str:
    """A row a subject, the best in the first column on top; what was not measured stays empty."""
    path = ROOT / f"benchmarks/results/{scores.file}.jsonl"
    newest: dict[str, dict[str, dict[str, float]]] = {}  # row -> set -> score -> value
    for line in map(json.loads, path.read_text().splitlines() if path.is_file() else ()):
        name = line["facts"].get("model", line["subject"])
        known = f"`{name}`" if line["subject"] == "musicjax" else scores.names.get(name, name)
        newest.setdefault(known, {})[line["facts"]["set"]] = line["scores"]
    first = scores.columns[0]
    rows = sorted(newest, key=lambda row: -newest[row].get(first[1], {}).get(first[2][0], 0.0))
    link = f"[{scores.head}](benchmarks/results/{scores.file}.jsonl)"
    says = " | ".join([link, *(column[0] for column in scores.columns)])
    lines = [f"| {says} |", f"| --- {'| --- ' * len(scores.columns)}|"]
    for row in rows:
        cells = (
            ", ".join(f"{newest[row][where][score]:.3f}" for score in some if where in newest[row])
            for _, where, some in scores.columns
        )
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


LIVE_SETS = ("clips", "clips, rooms", "font, rooms")
_STEP = ("p50", "p99", "worst")


def latency_table() -> str:
    """A row a model that is heard live: how late and how fast it is, and what it hears so."""
    path = "benchmarks/results/streaming.jsonl"
    times: dict[str, Any] = {}
    scores: dict[tuple[str, str], Any] = {}
    for line in map(json.loads, (ROOT / path).read_text().splitlines()):
        facts = line["facts"]
        if facts["what"] == "step" and line["trained"]:
            times[facts["model"]] = line
        elif facts["what"] == "notes":
            scores[facts["model"], facts["set"]] = line["scores"]
    heads = [f"[live]({path})", "latency", "a step each", "median", "99 %", "worst", "grown by"]
    heads += [f"onset F1, {name}: live (whole)" for name in LIVE_SETS]
    lines = [f"| {' | '.join(heads)} |", f"| --- {'| --- ' * (len(heads) - 1)}|"]
    for model, line in sorted(times.items(), key=lambda item: -item[1]["hop_ms"]):
        grown = f"{line['memory_mb']['growth']:.1f} MB in {line['facts']['minutes']:.0f} min"
        times_ms = [f"{line[key]:.0f} ms" for key in ("latency_ms", "hop_ms")]
        steps = [f"{line['step_ms'][at]:.1f} ms" for at in _STEP]
        told = [f"`{model}`", *times_ms, *steps, grown]
        for name in LIVE_SETS:
            found = scores.get((model, name))
            live, whole = ((found or {}).get(kind) for kind in ("streaming", "offline"))
            told.append(f"{live['onset_f1']:.3f} ({whole['onset_f1']:.3f})" if found else "")
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def result_rows() -> list[Row]:
    """The rows of results with the numbers of today's files; what was not measured has no row."""
    return [row for row in map(_row, WANTED) if row is not None]


def result_table() -> str:
    """What was measured, each number with the file it came from."""
    lines = ["| measured | | on | file |", "| --- | --- | --- | --- |"]
    for row in result_rows():
        lines.append(
            f"| {row.says} | {row.value} | {row.on} | [{Path(row.file).name}]({row.file}) |"
        )
    return "\n".join(lines)


def _row(wanted: Wanted) -> Row | None:
    file = f"benchmarks/results/{wanted.file}.jsonl"
    if not (ROOT / file).is_file():
        return None
    lines = [json.loads(line) for line in (ROOT / file).read_text().splitlines() if line.strip()]
    fits = [x for x in lines if all(_dig(x, k) == v for k, v in wanted.where.items())]
    if not fits:
        return None
    line = fits[-1]
    cores, on = line.get("cores"), line["device"]
    if cores is not None:
        on += ", one core" if cores == 1 else f", {cores} cores"
    return Row(wanted.says, wanted.form.format(_dig(line, wanted.field)), on, file)


def _dig(line: Any, field: str) -> Any:
    for name in field.split("."):
        line = line.get(name) if isinstance(line, Mapping) else None
    return line


def between(text: str, name: str) -> str:
    """What stands between the markers of that name."""
    start, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    if start not in text or end not in text:
        sys.exit(f"README.md lacks the markers {start.strip()} and {end.strip()}")
    return text.split(start, 1)[1].split(end, 1)[0]


def _replaced(text: str, name: str, content: str) -> str:
    start = f"<!-- {name} -->\n"
    old = between(text, name)
    return text.replace(f"{start}{old}", f"{start}{content}", 1)


if __name__ == "__main__":
    main()
