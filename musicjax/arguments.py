"""What the command line takes: verbs, their options and their help."""

import argparse
import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from musicjax.errors import ConfigError
from musicjax.version import __version__

if TYPE_CHECKING:
    from musicjax.tasks.choice import Choice

AUTO = "auto"  # musicjax.tasks.choice.AUTO, whose import would cost every command its time
DEFAULT_MODEL = "onsets_frames.small"
DEFAULT_PITCH_MODEL = "crepe.ours"


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong as everything else does: by an error with a sentence."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message.strip('. ')}; `{self.prog} --help` shows what it takes.")


def parse(args: list[str]) -> argparse.Namespace:
    """The arguments of one command. Leaves by SystemExit after --help.

    Raises ConfigError for a wrong argument.

    Options that only a model's decoding knows are looked up when one is met, so that everything
    else stays free of the cost of importing the model.
    """
    parser = build_parser()
    known, unknown = parser.parse_known_args(args)
    verb, model = _subparser(parser, known.verb), ""
    if unknown and known.verb in _WITH_DECODING:
        chosen = choice_of(known)
        model = known.model if chosen is None else chosen.name
        if model is None:
            from musicjax.tasks.live import choose_live

            model = choose_live(known.pitch)
        _add_decoding(verb, model)
        known, unknown = parser.parse_known_args(args)
    if unknown:
        flags = [flag for action in verb._actions for flag in action.option_strings]
        near = difflib.get_close_matches(unknown[0].split("=")[0], flags, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        of = f" of {model}" if model else ""
        verb.error(f"there is no option {unknown[0]}{of}{hint}")
    if known.verb in _WITH_REST and "--json" in known.rest:
        known.json, known.rest = True, [arg for arg in known.rest if arg != "--json"]
    return known


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = _Parser(
        prog="musicjax",
        description="Listen to music and write down what was heard.",
        epilog="`musicjax VERB --help` shows what a verb takes, with examples.",
    )
    parser.add_argument("--version", action="version", version=f"musicjax {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for build in (
        _add_transcribe,
        _add_pitch,
        _add_listen,
        _add_caption,
        _add_compare,
        _add_models,
        _add_train,
        _add_eval,
        _add_data,
        _add_convert,
    ):
        build(verbs)
    _add_bench(verbs)
    return parser


def _verb(verbs: Any, name: str, summary: str, examples: str) -> argparse.ArgumentParser:
    lines = "\n".join(f"  {line.strip()}".rstrip() for line in examples.strip().splitlines())
    verb = verbs.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    return verb


def _subparser(parser: argparse.ArgumentParser, verb: str) -> argparse.ArgumentParser:
    groups = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return next(groups).choices[verb]


def _add_common(verb: argparse.ArgumentParser, *, device: bool = True) -> None:
    if device:
        verb.add_argument("--device", metavar="NAME", help="cpu, gpu or cuda:1 (default: the best)")
    verb.add_argument("--json", action="store_true", help="print JSON, for programs")


def _add_transcribe(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "transcribe",
        "write down the notes of recordings",
        """
        musicjax transcribe song.flac -o song.mid
        musicjax transcribe song.flac -o song.mid -o song.png
        musicjax transcribe *.mp3 -o notes/ --format mid --format csv
        musicjax transcribe song.flac -o song.mid --pedals
        musicjax transcribe voice.flac -o voice.mid --instrument any --bends
        musicjax transcribe song.flac -o song.mid --model transkun.v2
        musicjax transcribe song.flac --model onsets_frames.small --onset-threshold 0.4

        Without --model the best model that fits and needs no download is taken; when a better one
        could be fetched, a line says which, how large it is and how to get it.
        Existing files are replaced as a whole. Options of the model's decoding, such as
        --onset-threshold and --frame-threshold of Onsets and Frames, are taken as well.
        """,
    )
    _add_files(verb, ("mid", "csv", "json", "png", "pdf", "svg"))
    _add_model(verb, AUTO)
    wanted = verb.add_argument_group("what --model auto looks for")
    wanted.add_argument(
        "--instrument",
        choices=("piano", "any"),
        help="a piano alone, or any instruments and voices (default: piano; any with --bends)",
    )
    wanted.add_argument("--pedals", action="store_true", help="pedal movements are to be written")
    wanted.add_argument("--bends", action="store_true", help="bends of pitch are to be written")
    wanted.add_argument(
        "--real-time", action="store_true", help="faster than it sounds, on one processor core"
    )
    _add_together(verb)
    _add_common(verb)


def _add_pitch(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "pitch",
        "follow the pitch of one voice or instrument",
        """
        musicjax pitch song.wav -o song.csv
        musicjax pitch song.wav -o song.mid -o song.png --model crepe.tiny
        musicjax pitch *.flac -o pitches/ --format csv --format json
        musicjax pitch song.wav -o song.csv --hop 5 --min-hz 80 --max-hz 1100

        CSV has a row a frame: time_s,f0_hz,confidence, with 0 Hz where there is no pitch. MIDI has
        the notes, and the pitch wheel follows the voice. crepe.ours comes with the package;
        crepe.full and crepe.tiny, the authors' own, are downloaded. Options of the model's
        decoding, such as --voicing, --silence-db, --leap and --decoder (viterbi, local, argmax) of
        CREPE, are taken as well.
        """,
    )
    _add_files(verb, ("csv", "mid", "json", "png", "pdf", "svg"))
    verb.add_argument("--hop", type=float, metavar="MS", help="milliseconds a frame (default: 10)")
    verb.add_argument(
        "--not-centred", action="store_true", help="let frames begin at their time, not surround it"
    )
    _add_model(verb, DEFAULT_PITCH_MODEL)
    _add_common(verb)


def _add_listen(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "listen",
        "write down notes, or follow a pitch, while it sounds",
        """
        musicjax listen
        musicjax listen -o take.mid --midi-port
        musicjax listen --pitch -o voice.csv
        musicjax listen --file song.flac --midi-port FLUID
        arecord -f S16_LE -r 16000 -c 1 | musicjax listen --stdin -o take.jsonl
        ffmpeg -i URL -f s16le -ac 2 -ar 44100 - | musicjax listen --stdin --rate 44100 --channels 2

        Ctrl-C ends, and all files are written. A terminal shows a piano roll or a pitch meter;
        elsewhere a line an event is printed, or JSON with --json. The microphone and MIDI ports
        need `pip install 'musicjax[live]'`. Sound that comes faster than the machine can hear it is
        dropped, and said to be; times stay those of the sound.
        """,
    )
    heard = verb.add_argument_group("what is heard (default: the microphone)")
    one = heard.add_mutually_exclusive_group()
    one.add_argument(
        "--device-in", metavar="NAME", help="a microphone, by number or name; ? lists them"
    )
    one.add_argument("--file", metavar="FILE", help="a recording, played at its own speed")
    one.add_argument("--stdin", action="store_true", help="raw samples, or a WAV file, on stdin")
    heard.add_argument("--format", metavar="F", help="s16le, s32le or f32le (default: s16le)")
    heard.add_argument("--rate", type=int, metavar="HZ", help="of --stdin (default: 16000)")
    heard.add_argument("--channels", type=int, metavar="N", help="of --stdin (default: 1)")
    heard.add_argument(
        "--as-fast-as-possible",
        action="store_true",
        help="of --file and --stdin: let sound wait to be heard, and drop nothing",
    )
    verb.add_argument("--pitch", action="store_true", help="follow the pitch of one voice")
    verb.add_argument(
        "--model", metavar="NAME", help="one that can listen (default: the one made for it)"
    )
    verb.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help=".mid, .jsonl or .csv file; may be given several times",
    )
    verb.add_argument(
        "--midi-port",
        nargs="?",
        const="",
        metavar="NAME",
        help="send notes to this MIDI port (? lists them); without a name, make one, musicjax",
    )
    verb.add_argument(
        "--buffer", type=float, default=1.0, metavar="S", help="of sound that may wait (default: 1)"
    )
    verb.add_argument("--plain", action="store_true", help="lines, also on a terminal")
    _add_common(verb)


def _add_caption(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "caption",
        "write sentences about recordings",
        """
        musicjax caption song.flac --weights captioner.safetensors
        musicjax caption *.mp3 --weights captioner/ -o captions/ --format txt
        musicjax caption song.flac --weights runs/lp_musiccaps-tiny --beams 1 -o song.json
        musicjax caption song.flac --weights captioner/ --top-p 0.9 --seed 1

        No captioner has weights of its own here: convert the published ones (musicjax convert
        transfer.pth --to lp_musiccaps.base -o captioner/captioner.safetensors, with BART's
        tokenizer.json beside them), or train one (musicjax train lp_musiccaps tiny).
        """,
    )
    _add_files(verb, ("json", "csv", "txt"))
    verb.add_argument(
        "--weights",
        "--model",
        dest="model",
        required=True,
        metavar="FILE_OR_DIR",
        help="a .safetensors file, its folder, or the folder of a training run",
    )
    how = verb.add_mutually_exclusive_group()
    how.add_argument(
        "--beams", type=int, metavar="N", help="hypotheses side by side, 1: greedy (default: 5)"
    )
    how.add_argument(
        "--top-p", type=float, metavar="P", help="draw among the likeliest tokens of probability P"
    )
    verb.add_argument(
        "--temperature", type=float, metavar="T", help="of drawing (default: 1 with --top-p)"
    )
    verb.add_argument(
        "--repetition-penalty",
        type=float,
        metavar="X",
        help="above 1: fewer repetitions (default: 1.1 with --top-p, else 1)",
    )
    verb.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of a sentence")
    verb.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    verb.add_argument("--tokenizer", metavar="FILE", help="where it is not beside the weights")
    _add_common(verb)


def _add_compare(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "compare",
        "draw what several models hear in a recording, one above the other",
        """
        musicjax compare song.flac -o rolls.png
        musicjax compare song.flac --models transkun.v2,onsets_frames.small -o rolls.png
        musicjax compare song.flac --truth song.mid -o rolls.png -o scores.json
        musicjax compare song.flac --truth song.mid --models a.safetensors,runs/b --end 60

        With a truth, the notes that were played, each model's are coloured by hit, miss and extra
        and scored; without one, by how many of the models hear them. A model that fails is told
        and left out.
        """,
    )
    verb.add_argument("file", metavar="FILE", help="a recording: an audio or video file")
    verb.add_argument(
        "--models",
        metavar="A,B,C",
        help="names of `musicjax models`, .safetensors files or run folders (default: all "
        "transcribers that need no download)",
    )
    verb.add_argument(
        "--truth", metavar="NOTES", help="what was played: a .mid, .csv or .json file"
    )
    verb.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help=".png, .pdf or .svg picture, or .json scores; may be given several times",
    )
    verb.add_argument("--start", type=float, default=0.0, metavar="S", help="of the picture")
    verb.add_argument("--end", type=float, metavar="S", help="of the picture (default: all)")
    _add_common(verb)


def _add_files(verb: argparse.ArgumentParser, forms: tuple[str, ...]) -> None:
    endings = " or ".join(", ".join(f".{form}" for form in forms).rsplit(", ", 1))
    verb.add_argument("files", nargs="+", metavar="FILE", help="recordings: audio or video files")
    verb.add_argument(
        "-o",
        "--output",
        action="append",
        default=[],
        metavar="OUT",
        help=f"{endings} file, or a folder; may be given several times "
        "(default: the current folder)",
    )
    verb.add_argument(
        "--format",
        action="append",
        choices=forms,
        help=f"what is written into a folder; may be given several times (default: {forms[0]})",
    )
    verb.add_argument(
        "--skip-existing", action="store_true", help="pass over recordings whose files are there"
    )


def _add_model(verb: argparse.ArgumentParser, default: str = DEFAULT_MODEL) -> None:
    verb.add_argument(
        "--model",
        default=default,
        metavar="NAME",
        help="a name of `musicjax models` or a .safetensors file (default: %(default)s)",
    )


def _add_together(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--together",
        action=argparse.BooleanOptionalAction,
        help="of models that write tokens (MT3): let the segments of a recording agree on "
        "instruments and held notes, or hear each alone (the default)",
    )


def _add_models(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "models",
        "list the models that are known",
        """
        musicjax models
        musicjax models 'onsets*'
        musicjax models --json
        """,
    )
    verb.add_argument("pattern", nargs="?", default="*", help="a name with * and ?, or a system")
    _add_common(verb, device=False)


def _add_train(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "train",
        "train a model",
        """
        musicjax train onsets_frames tiny
        musicjax train onsets_frames small --data.train data/piano/train --optim.lr 5e-4
        musicjax train onsets_frames tiny --init onsets_frames.small
        musicjax train onsets_frames tiny --init runs/piano@2000
        musicjax train onsets_frames tiny --help      (every field of the run)
        musicjax train my_config.py base

        The same command goes on with a run that was stopped.
        """,
    )
    verb.add_argument("config", metavar="CONFIG", help="a name of musicjax/configs, or a .py file")
    verb.add_argument(
        "rest",
        nargs=argparse.REMAINDER,
        metavar="[VARIANT] [--field.value …]",
        help="the recipe of the config, and fields that are to differ from it",
    )
    _add_common(verb, device=False)


def _add_eval(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "eval",
        "score a model on recordings whose notes are known",
        """
        musicjax eval onsets_frames.small recordings/
        musicjax eval runs/piano data/piano/test --json
        musicjax eval onsets_frames.small composer:

        DATA is a folder of recordings with .mid or .csv files of the same names beside them, a
        folder of records written by `musicjax data`, or composer: for music made up on the spot.
        """,
    )
    verb.add_argument("model", metavar="MODEL", help="a name, a .safetensors file or a run folder")
    verb.add_argument("data", nargs="+", metavar="DATA", help="what to score it on")
    _add_together(verb)
    _add_common(verb)


def _add_data(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "data",
        "make training data: render, import or compose",
        """
        musicjax data render --out data/made-up --hours 2
        musicjax data import maestro ~/maestro-v3.0.0
        musicjax data compose --out pieces --count 5
        musicjax data render --help      (every option)
        """,
    )
    verb.add_argument("action", choices=("render", "import", "compose"))
    verb.add_argument("rest", nargs=argparse.REMAINDER, metavar="…", help="see ACTION --help")
    _add_common(verb, device=False)


def _add_convert(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "convert",
        "turn a public checkpoint, or one of a training run, into a .safetensors file",
        """
        musicjax convert model-500000.pt --to onsets_frames.port -o port.safetensors
        musicjax convert t5x checkpoint_1000000/ --to mt3 -o mt3.safetensors
        musicjax convert runs/piano --step 2000 -o step2000.safetensors
        musicjax convert runs/piano/best.safetensors --compute-dtype float32 -o cpu.safetensors

        The word t5x before a checkpoint says that it must be a folder of that kind.
        """,
    )
    verb.usage = "musicjax convert [LAYOUT] CHECKPOINT [--to NAME] -o OUT [options]"
    verb.add_argument(
        "checkpoint",
        nargs="+",
        metavar="CHECKPOINT",
        help="the file or folder as it was published, the folder of a run, or weights of ours",
    )
    verb.add_argument("-o", "--output", required=True, metavar="OUT", help="a .safetensors file")
    verb.add_argument(
        "--to",
        "--model",
        dest="model",
        metavar="NAME",
        help="system.tag that a public checkpoint is of; left out for runs and for weights of ours",
    )
    verb.add_argument(
        "--step", type=int, metavar="N", help="which checkpoint of a run (default: the newest)"
    )
    verb.add_argument(
        "--dtype", choices=("float32", "float16", "bfloat16"), default="float32", help="to store in"
    )
    verb.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        help="that the model computes in (default: as it was trained; bfloat16 is slow on CPUs)",
    )
    _add_common(verb, device=False)


def _add_bench(verbs: Any) -> None:
    verb = _verb(
        verbs,
        "bench",
        "measure how fast a model goes from audio to notes, or to a pitch",
        """
        musicjax bench
        musicjax bench --model crepe.ours
        musicjax bench --model onsets_frames.small --seconds 30 --repeats 20 --json
        musicjax bench --batch 8 --window 20
        """,
    )
    _add_model(verb)
    verb.add_argument("--seconds", type=float, default=30.0, help="length of the audio")
    verb.add_argument("--repeats", type=int, default=10, help="steady calls (median is told)")
    verb.add_argument("--batch", type=int, help="windows computed at once")
    verb.add_argument("--window", type=float, metavar="SECONDS", help="length of a window")
    _add_common(verb)


def choice_of(args: argparse.Namespace) -> "Choice | None":
    """The model that is chosen for a command; None where one is named. Raises as `choose`."""
    wanted = {name: getattr(args, name) for name in _WISHES if hasattr(args, name)}
    given = [f"--{name.replace('_', '-')}" for name, value in wanted.items() if value]
    if args.model == AUTO and args.verb in _CHOOSING:
        from musicjax.tasks.choice import choose

        return choose(**wanted)
    if given:
        raise ConfigError(
            f"{' and '.join(given)} would choose a model, but --model {args.model} names one; "
            "leave out either."
        )
    return None


# Options of a model's decoding --------------------------------------------------------------

_CHOOSING = ("transcribe", "eval", "bench")
_WISHES = ("instrument", "pedals", "bends", "real_time")
_WITH_REST = ("train", "data")  # options that are read elsewhere
_WITH_DECODING = ("transcribe", "pitch", "listen", "eval")
_DECODING = "decoding_"


def _add_decoding(verb: argparse.ArgumentParser, model: str) -> None:
    """Add the keyword options of the system's decode function, typed by its annotations."""
    import typing

    from musicjax.tasks.options import decode_options

    system = system_of(model)
    hints = typing.get_type_hints(system.resolve("decode"))
    for name in decode_options(system):
        flag = f"--{name.replace('_', '-')}"
        kind = _reader(flag, hints.get(name, str))
        verb.add_argument(
            flag, dest=_DECODING + name, metavar="VALUE", type=kind, default=argparse.SUPPRESS
        )


def _reader(flag: str, kind: Any) -> Callable[[str], Any]:
    from musicjax.hub.typed_json import from_json

    def read(text: str) -> Any:
        try:
            value = json.loads(text.lower())
        except json.JSONDecodeError:
            value = text
        try:
            return from_json(kind, value, flag)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return read


def system_of(model: str) -> Any:
    """The system of a model by its name, or of a weights file by what it says of itself."""
    from musicjax import registry

    if Path(model).suffix == ".safetensors" or Path(model).is_dir():
        from musicjax.hub.weights import find_weights, read_header

        return registry.find_system(read_header(find_weights(model))["system"])
    return registry.find_card(model)[0]


def decoding_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options for the model's decoding that a command was given."""
    found = {k: v for k, v in vars(args).items() if k.startswith(_DECODING)}
    return {name.removeprefix(_DECODING): value for name, value in found.items()}
