"""The command line: `musicjax <verb>`, one function a verb, each a thin road into the library.

Exit codes: 0 all done, 1 some files failed, 2 wrong use or input, 130 stopped by Ctrl-C.
Sentences and progress go to stderr; results, and nothing else with --json, to stdout.
"""

import argparse
import contextlib
import dataclasses
import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from musicjax.arguments import AUTO, build_parser, choice_of, decoding_of, parse, system_of
from musicjax.errors import ConfigError, ModelNotFoundError, MusicJaxError, WeightsError
from musicjax.terminal import Bar, print_json, say


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(args)
    except MusicJaxError as error:
        if "--json" in args:
            print_json({"error": str(error), "exit_code": error.exit_code})
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped; what was done is kept.")
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as done:  # argparse and tyro after --help
        return done.code if isinstance(done.code, int) else 2


def _run(args: list[str]) -> int:
    if not args:
        build_parser().print_help()
        return 2
    known = parse(args)
    return _VERBS[known.verb](known)


# The verbs ----------------------------------------------------------------------------------


def transcribe(args: argparse.Namespace) -> int:
    """Recordings to notes; exit code 1 when some files failed, 2 when all did."""
    from musicjax.tasks.files import plan, transcribe_files

    return _write_each(
        args, plan(args.files, args.output, args.format or ("mid",)), transcribe_files
    )


def pitch(args: argparse.Namespace) -> int:
    """Recordings of one voice to its pitch; exit codes as `transcribe`."""
    from musicjax.tasks.files import pitch_files, plan

    jobs = plan(args.files, args.output, args.format or ("csv",))
    return _write_each(args, jobs, pitch_files, hop_ms=args.hop, centred=not args.not_centred)


def listen(args: argparse.Namespace) -> int:
    """Sound as it comes to notes or pitch; exit code 1 when the sound failed on the way."""
    from musicjax.terminal.listen import run

    return run(args, decoding_of(args))


def caption(args: argparse.Namespace) -> int:
    """Recordings to sentences about them; exit codes as `transcribe`."""
    from musicjax import registry
    from musicjax.tasks.caption import FORMATS
    from musicjax.tasks.files import caption_files, plan

    system = args.model.split(".")[0]
    if system not in registry.systems() and not Path(args.model).exists():
        raise WeightsError(
            f"{args.model} does not exist; give a .safetensors file, its folder, or the folder of "
            "a training run."
        )
    jobs = plan(args.files, args.output, args.format or ("json",), known=FORMATS)
    names = ("beams", "top_p", "temperature", "repetition_penalty", "max_tokens", "tokenizer")
    given = {name: getattr(args, name) for name in names}
    return _write_each(args, jobs, caption_files, seed=args.seed, **given)


def _write_each(
    args: argparse.Namespace, jobs: Sequence[Any], do: Callable[..., Any], **settings: Any
) -> int:
    if args.skip_existing:
        there = [job for job in jobs if all(output.exists() for output in job.outputs)]
        jobs = [job for job in jobs if job not in there]
        say(f"{len(there)} of {len(there) + len(jobs)} recordings are there already.")
    if not jobs:
        return 0
    from musicjax.tasks.files import not_there

    lost, failed, advice = not_there(jobs), 0, _advice(args)
    outcomes: Iterable[Any] = lost
    with Bar(f"{len(jobs)} recordings" if len(jobs) > 1 else jobs[0].source.name) as bar:
        if len(lost) < len(jobs):
            model = _load(args, bar, **settings)
            bar.start(_total_seconds([job.source for job in jobs]))
            outcomes = do(model, jobs, progress=bar.heard, **decoding_of(args))
        for number, outcome in enumerate(outcomes, start=1):
            failed += outcome.error is not None
            bar.tell(f"{number}/{len(jobs)}")
            if args.json:
                print_json(dataclasses.asdict(outcome))
            with bar.aside():
                if outcome.error is not None:
                    say(outcome.error)
                elif not args.json:
                    where = ", ".join(outcome.outputs)
                    what = f"{outcome.notes} notes" if outcome.text is None else outcome.text
                    print(f"{outcome.source} -> {where}: {what}", flush=True)
                if outcome.doubt is not None:
                    say(f"{outcome.source}: {outcome.doubt}")
                if outcome.error is None and advice is not None:
                    say(advice)
                    advice = None
    if failed and len(jobs) > 1:
        say(f"{failed} of {len(jobs)} recordings failed; the others are done.")
    return 0 if not failed else 1 if failed < len(jobs) else 2


def compare(args: argparse.Namespace) -> int:
    """What several models hear in one recording; exit code 1 when some failed, 2 when all did."""
    from musicjax.infer import cores_as_devices
    from musicjax.tasks.choice import at_hand
    from musicjax.tasks.comparison import Comparison
    from musicjax.tasks.comparison import compare as run
    from musicjax.tasks.files import plan

    (job,) = plan([args.file], args.output or ["."], ("png",), known=Comparison.FORMATS)
    cores_as_devices()
    names = [n for n in args.models.split(",") if n] if args.models else at_hand()
    with Bar(f"{len(names)} models") as bar:
        bar.start((_total_seconds([job.source]) or 0.0) * len(names) or None)
        found = run(
            args.file,
            names,
            truth=args.truth,
            device=args.device,
            fetched=bar.fetched,
            progress=bar.heard,
        )
    for sentence in found.failures.values():
        say(sentence)
    if not found.notes:
        if args.json:
            print_json(found.as_dict())
        return 2
    for output in job.outputs:
        if output.suffix.lower() == ".json":
            found.write(output)
        else:
            found.plot(output, start_s=args.start, end_s=args.end)
    if args.json:
        print_json(found.as_dict() | {"outputs": [str(output) for output in job.outputs]})
    else:
        _print_comparison(found)
        print(f"{args.file} -> {', '.join(map(str, job.outputs))}")
    return 1 if found.failures else 0


def _print_comparison(found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    scores = {
        "onset_f1": "onset F1",
        "onset_precision": "P",
        "onset_recall": "R",
        "onset_offset_f1": "and offset F1",
        "frame_f1": "frame F1",
    }
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", overflow="fold")
    for column in ("notes", *(scores.values() if found.truth is not None else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for name, notes in found.notes.items():
        row = found.scores[name].as_dict() if name in found.scores else {}
        table.add_row(name, str(len(notes)), *(f"{row[s]:.3f}" for s in scores if row))
    Console().print(table)


def models(args: argparse.Namespace) -> int:
    """The table of models."""
    from musicjax import registry

    names = registry.list_models(args.pattern)
    if not names:
        registry.find_card(args.pattern)  # raises with near matches, unless it is a wildcard
        raise ModelNotFoundError(f"no model matches {args.pattern!r}; `musicjax models` lists all.")
    rows = [_model_row(name) for name in names]
    if args.json:
        print_json(rows)
        return 0
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(_model_lines(rows, width)))
    return 0


def _model_lines(rows: Sequence[dict[str, Any]], width: int | None) -> Iterator[str]:
    """A line a model; where these are wider than the terminal, what it is stands below."""
    cells = [("model", "size", "weights", "licence", "what it is")]
    for row in rows:
        count = row["parameters"]
        size = f"{count / 1e6:.1f} M" if count >= 1e5 else f"{count / 1e3:.0f} k" if count else ""
        licence = row["licence"].partition(" (")[0]  # the card has the rest
        cells.append((row["name"], size, row["weights"], licence, row["summary"]))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    whole = sum(widths) + 2 * (len(widths) - 1)
    width = whole if width is None else width
    for name, size, weights, licence, summary in cells:
        given = (name.ljust(widths[0]), size.rjust(widths[1]), weights.ljust(widths[2]))
        line = "  ".join((*given, licence.ljust(widths[3])))
        if whole <= width:
            yield f"{line}  {summary}"
            continue
        yield line.rstrip()
        yield from textwrap.wrap(summary, width, initial_indent="  ", subsequent_indent="  ")


def _model_row(name: str) -> dict[str, Any]:
    from musicjax import registry
    from musicjax.hub.availability import availability

    system, _, card = registry.find_card(name)
    row = dataclasses.asdict(card) | {"scores": dict(card.scores)}
    weights = str(availability(card))
    return {"name": name, "task": system.task, "title": system.title, **row, "weights": weights}


def train(args: argparse.Namespace) -> int:
    """One training run; tells the path of the weights."""
    get_config = _get_config(args.config)
    rest = list(args.rest)
    variant = [rest.pop(0)] if rest and not rest[0].startswith("-") else []
    config = get_config(*variant)
    from musicjax.train import parse_overrides
    from musicjax.train import train as run

    config = parse_overrides(config, rest)
    from musicjax.infer import keep_compiled
    from musicjax.tasks.loading import evaluation

    keep_compiled()
    weights = run(config, evaluate=evaluation(config))
    if args.json:
        print_json({"weights": weights})
    else:
        print(weights)
    return 0


def _get_config(name: str) -> Callable[..., Any]:
    import pkgutil

    import musicjax.configs

    path = Path(name)
    if path.suffix == ".py" and path.is_file():
        from importlib import util

        spec = util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None  # a .py file always has both
        module = util.module_from_spec(spec)
        spec.loader.exec_module(module)
    else:
        known = sorted(m.name for m in pkgutil.iter_modules(musicjax.configs.__path__))
        if name not in known:
            raise ConfigError(
                f"there is no config {name!r}; there are {', '.join(known)}, and any .py file that "
                "defines get_config(variant)."
            )
        module = importlib.import_module(f"musicjax.configs.{name}")
    if not hasattr(module, "get_config"):
        raise ConfigError(f"{name} defines no get_config(variant), which a config must.")
    return module.get_config


def evaluate(args: argparse.Namespace) -> int:
    """Scores of a model, the mean over pieces first."""
    from musicjax.data import examples
    from musicjax.data.pipeline import open_source
    from musicjax.tasks.transcribe import evaluate as score

    for entry in args.data:
        if ":" not in entry and not Path(entry).exists():
            open_source(entry)  # says what is missing, before a model is loaded for it
    with Bar(", ".join(args.data)) as bar:
        transcriber = _load(args, bar)
        bar.start(None)
        pieces = examples(tuple(args.data), transcriber.sample_rate)
        found = score(transcriber, pieces, progress=bar.heard, **decoding_of(args))
    advice = _advice(args)
    if advice is not None:
        say(advice)
    if args.json:
        print_json({"model": transcriber.name, "data": args.data, **found})
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    names = [name for name in found["mean"] if name.endswith("f1")]
    for column in ("piece", *names):
        table.add_column(column.replace("_", " "), justify="left" if column == "piece" else "right")
    for piece, scores in found["each"].items():
        table.add_row(piece, *(f"{scores[n]:.3f}" if n in scores else "" for n in names))
    mean = f"mean of {found['pieces']}"
    table.add_row(mean, *(f"{found['mean'][name]:.3f}" for name in names), style="bold")
    Console().print(table)
    return 0


def data(args: argparse.Namespace) -> int:
    """Training data: the typed options of `musicjax.data` do the talking."""
    from musicjax.data.verbs import command

    done = command(args.action, args.rest)
    if args.json:
        print_json(done.facts)
    else:
        print(*done.lines, sep="\n", flush=True)
    return 0


def convert(args: argparse.Namespace) -> int:
    """A public checkpoint, or one of a training run, to one .safetensors file."""
    from musicjax.files import check_writable

    check_writable(args.output)
    *layout, checkpoint = args.checkpoint
    _check_layout(layout, Path(checkpoint))
    with Bar(f"{checkpoint} -> {args.output}") as bar:
        bar.start(None)
        how = _convert_run if args.model is None else _convert_public
        told = how(Path(checkpoint), args)
    if args.json:
        print_json({"output": args.output, **told})
    else:
        print(f"{checkpoint} -> {args.output}")
    return 0


def _convert_run(path: Path, args: argparse.Namespace) -> dict[str, Any]:
    from musicjax.hub import read_header
    from musicjax.train.checkpoints import export_checkpoint

    if path.is_dir():
        export_checkpoint(
            path, args.output, step=args.step, dtype=args.dtype, compute_dtype=args.compute_dtype
        )
    elif path.suffix == ".safetensors":
        _convert_ours(path, args)
    else:
        raise ConfigError(
            f"{path} is not the folder of a training run; say with --model which system's public "
            "checkpoint it is."
        )
    header = read_header(args.output)
    return {"system": header["system"], **header["extra"]}


def _convert_ours(path: Path, args: argparse.Namespace) -> None:
    from musicjax.hub import load_model, read_header, save_weights
    from musicjax.types import computing_in

    if args.step is not None:
        raise ConfigError(f"--step chooses a checkpoint of a run folder; {path} is one file.")
    extra = read_header(path)["extra"]
    found = load_model(path)
    save_weights(
        args.output,
        found.model,
        computing_in(found.config, args.compute_dtype),
        system=found.system.name,
        dtype=args.dtype,
        extra=extra,
    )


def _convert_public(source: Path, args: argparse.Namespace) -> dict[str, Any]:
    from musicjax import registry
    from musicjax.hub import save_weights
    from musicjax.hub.fingerprint import fingerprint
    from musicjax.hub.pretrained import is_pretrained
    from musicjax.types import computing_in

    system, tag, _ = registry.find_card(args.model)
    if args.step is not None:
        raise ConfigError("--step chooses a checkpoint of a run folder; leave out --model for one.")
    if is_pretrained(source):
        raise ConfigError(f"{source} is a folder of transformers: {_NO_TRANSFORMERS}")
    try:
        module = importlib.import_module(f"musicjax.models.{system.name}.convert")
    except ModuleNotFoundError as error:
        raise ConfigError(f"{system.name} has no public checkpoints that are known.") from error
    model, config = module.convert(source, tag)
    config = computing_in(config, args.compute_dtype)
    extra = {"source": source.name, "source_sha256": fingerprint(source)}
    save_weights(args.output, model, config, system=system.name, dtype=args.dtype, extra=extra)
    return {"system": system.name, "tag": tag, **extra}


_NO_TRANSFORMERS = (
    "no system here has published weights of that kind, so that convert reads none. In Python "
    "musicjax.hub.load_transformer reads the Transformer in it."
)


def _check_layout(layout: Sequence[str], path: Path) -> None:
    """That a folder is of the kind that was said, if one was."""
    if not layout:
        return
    from musicjax.hub.t5x import is_t5x

    if layout == ["transformers"]:
        raise ConfigError(f"{path} is said to be a folder of transformers: {_NO_TRANSFORMERS}")
    if layout != ["t5x"]:
        raise ConfigError(
            "convert takes one checkpoint, and before it t5x where it is a folder of T5X; it was "
            f"given {' '.join([*layout, str(path)])}."
        )
    if not is_t5x(path):
        raise WeightsError(f"{path} is not a checkpoint folder of t5x; check the path.")


def bench(args: argparse.Namespace) -> int:
    """Audio in, notes or a pitch out: first call, steady state, memory."""
    from musicjax.infer.bench import measure

    if args.seconds <= 0 or args.repeats < 1:
        raise ConfigError("--seconds and --repeats must be above 0.")
    task = "transcribe" if args.model == AUTO else system_of(args.model).task
    if task not in ("transcribe", "pitch"):
        raise ConfigError(
            f"{args.model} does {task!r}; bench measures models that transcribe or follow a pitch."
        )
    with Bar(f"bench {args.model}") as bar:
        model = _load(args, bar, window_s=args.window, batch_size=args.batch)
        bar.start(None)
        row = {"model": model.name} | measure(
            getattr(model, task),
            sample_rate=model.sample_rate,
            seconds=args.seconds,
            repeats=args.repeats,
        )
    if args.json:
        print_json(row)
        return 0
    print(
        f"{row['model']} on {row['device']}, {row['cores']} cores: {row['seconds']:.0f} s of audio "
        f"first in {row['first_s']:.2f} s, then in {row['median_s']:.3f} s "
        f"[{row['p10_s']:.3f}, {row['p90_s']:.3f}] of {row['repeats']}, "
        f"{row['times_real_time']:.0f} times real time; peak memory {row['peak_rss_mb']} MB"
    )
    return 0


def _load(args: argparse.Namespace, bar: Bar, **settings: Any) -> Any:
    from musicjax.infer import cores_as_devices
    from musicjax.tasks import load

    cores_as_devices()
    chosen = choice_of(args)
    task, name = _TASK_OF_VERB.get(args.verb), args.model if chosen is None else chosen.name
    if getattr(args, "together", None) is not None:
        settings["together"] = args.together
    return load(name, task=task, device=args.device, progress=bar.fetched, **settings)


def _advice(args: argparse.Namespace) -> str | None:
    """A sentence where a better model than the one that was chosen could be fetched."""
    chosen = choice_of(args)
    return None if chosen is None or chosen.better is None else str(chosen)


def _total_seconds(paths: Sequence[Path]) -> float | None:
    """Seconds of audio in all files that tell it; None where none does."""
    from musicjax.audio import probe

    total = 0.0
    for path in paths:
        with contextlib.suppress(MusicJaxError, OSError, RuntimeError):
            total += probe(path).duration_s
    return total or None


_TASK_OF_VERB = {
    "transcribe": "transcribe",
    "eval": "transcribe",
    "pitch": "pitch",
    "caption": "caption",
}
_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "transcribe": transcribe,
    "pitch": pitch,
    "listen": listen,
    "caption": caption,
    "compare": compare,
    "models": models,
    "train": train,
    "eval": evaluate,
    "data": data,
    "convert": convert,
    "bench": bench,
}
