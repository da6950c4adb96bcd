"""The command `musicjax listen`: what hears what, where it is written, and how it ends."""

import argparse
import contextlib
import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from musicjax.errors import AudioError, ConfigError, MusicJaxError, OutputError
from musicjax.infer.live import Figures, Listening, check_times
from musicjax.infer.sinks import (
    JsonLines,
    Lines,
    MidiPort,
    Sink,
    closing,
    file_sink,
    midi_ports,
)
from musicjax.infer.sources import (
    Microphone,
    PcmFormat,
    PcmStream,
    PlayedFile,
    Source,
    microphones,
)
from musicjax.infer.stream import NoteOn, PitchFrame
from musicjax.terminal import Bar, print_json, say

NO_NAME = ""  # of --midi-port without one
WHICH = "?"  # asks for the names that there are


def run(args: argparse.Namespace, options: dict[str, Any]) -> int:
    """Listen as asked until the sound ends or Ctrl-C; exit code 1 when the sound failed midway."""
    from rich.console import Console

    from musicjax.tasks import live

    if WHICH in (args.device_in, args.midi_port):
        return _list(args)
    check_times(args.buffer)
    source = _source(args)
    console = Console(stderr=True)
    able = console.is_terminal and not console.is_dumb_terminal
    # Notes are drawn by colours alone; NO_COLOR and terminals without any get lines.
    able = able and console.color_system is not None and not console.no_color
    drawn = able and console.encoding.startswith("utf") and not args.plain
    with contextlib.ExitStack() as stack:
        stack.callback(source.close)
        model, pitch = live.resolve(args.model, args.pitch)
        sinks, end_s = _sinks(args, pitch, drawn), [0.0]
        stack.enter_context(closing(sinks, lambda: end_s[0]))
        with Bar("listening") as bar:
            streamer = live.load_streamer(
                model, device=args.device, progress=bar.fetched, **options
            )
        listening = Listening(streamer, source, buffer_s=args.buffer)
        outputs = [sink.name for sink in sinks if sink.name != "stdout"]
        view = None
        if drawn:
            from musicjax.terminal.live import LiveView

            view = LiveView(model, source.name, outputs, pitch=pitch, console=console)
            stack.enter_context(view)
        else:
            say(f"{model} hears {source.name}; Ctrl-C ends.")
        listening.tell = say if view is None else view.tell
        heard, failed, named = 0, None, source.name
        with _stopping(listening) as stopped:
            try:
                for moment in listening.moments():
                    if source.name != named:  # the head of a pipe has told what it is
                        named = source.name
                        if view is None:
                            say(f"sound comes from {named}.")
                        else:
                            view.source = named
                    end_s[0] = moment.figures.time_s
                    for sink in sinks if end_s[0] else ():
                        sink.write(moment.events)
                    heard += sum(_counts(event) for event in moment.events)
                    if view is not None:
                        view.show(moment)
                if not end_s[0] and not stopped:
                    raise AudioError(f"no sound came from {source.name}; nothing was written.")
            except MusicJaxError as error:
                if not end_s[0]:
                    raise
                failed = error
    outputs = outputs if end_s[0] else []  # which are written once there is sound
    if args.json:
        _print_end(listening.figures, outputs, failed)
    what = f"{heard} {'frames with a pitch' if pitch else 'notes'}"
    if outputs:
        what += f" -> {', '.join(outputs)}"
    return _told(source, listening.figures, what, failed)


def _list(args: argparse.Namespace) -> int:
    """Print the microphones and the MIDI ports, as asked."""
    found: dict[str, list[Any]] = {}
    if args.device_in == WHICH:
        found["microphones"] = [{"number": n, "name": name} for n, name in microphones()]
    if args.midi_port == WHICH:
        found["midi_ports"] = midi_ports()
    if args.json:
        print_json(found)
        return 0
    for device in found.get("microphones", ()):
        print(f"{device['number']:3}  {device['name']}")
    for port in found.get("midi_ports", ()):
        print(port)
    for what, there in found.items():
        if not there:
            say(f"there are no {what.replace('midi_', 'MIDI ')} here.")
    return 0


def _counts(event: Any) -> bool:
    return isinstance(event, NoteOn) or (isinstance(event, PitchFrame) and event.f0_hz > 0)


def _source(args: argparse.Namespace) -> Source:
    """What is listened to. Raises its errors, and ConfigError for options of another source."""
    raw = {"--format": args.format, "--rate": args.rate, "--channels": args.channels}
    given = [name for name, value in raw.items() if value is not None]
    if given and not args.stdin:
        raise ConfigError(f"{' and '.join(given)} tell how sound comes in with --stdin; give that.")
    if args.as_fast_as_possible and not (args.stdin or args.file):
        raise ConfigError("--as-fast-as-possible is for --file and --stdin; a microphone cannot.")
    if args.stdin:
        fields = {"kind": args.format, "sample_rate": args.rate, "channels": args.channels}
        form = PcmFormat(**{name: value for name, value in fields.items() if value is not None})
        return PcmStream(form=form, own_speed=False if args.as_fast_as_possible else None)
    if args.file:
        return PlayedFile(args.file, own_speed=not args.as_fast_as_possible)
    device = args.device_in
    return Microphone(int(device) if device and device.isdigit() else device)


def _sinks(args: argparse.Namespace, pitch: bool, drawn: bool) -> list[Sink]:
    """Where events go; all are opened before the model is loaded, which takes longer."""
    sinks: list[Sink] = []
    places = [os.path.realpath(output) for output in args.output]
    if args.file and os.path.realpath(args.file) in places:
        raise OutputError(f"the output {args.file} is also the input; write to another name.")
    if len(set(places)) < len(places):
        raise OutputError("two outputs are one file; give each a name of its own.")
    for output in args.output:
        sinks.append(file_sink(output, pitch=pitch))
    if args.midi_port is not None:
        sinks.append(MidiPort(None if args.midi_port == NO_NAME else args.midi_port))
    if args.json:
        sinks.append(JsonLines(sys.stdout))
    elif not drawn or not sys.stdout.isatty():
        sinks.append(Lines())
    return sinks


@contextlib.contextmanager
def _stopping(listening: Listening) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM end the stream, and all that was heard is written; a second Ctrl-C stops
    at once. Gives the signals that have come."""
    stopped: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if listening.queue.stopped and number == signal.SIGINT:
            raise KeyboardInterrupt
        stopped.append(number)
        listening.stop()

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_end(figures: Figures, outputs: list[str], failed: MusicJaxError | None) -> None:
    """How it went, as the last line of JSON."""
    told = {name: round(value, 6) for name, value in dataclasses.asdict(figures).items()}
    error = {} if failed is None else {"error": str(failed), "exit_code": 1}
    print_json({"event": "end", **told, "outputs": outputs, **error})


def _told(source: Source, figures: Figures, what: str, failed: MusicJaxError | None) -> int:
    """How it went, in a sentence; the exit code."""
    trouble = [
        f"{figures.lost_s:.1f} s were lost in {figures.overruns} over-runs"
        * bool(figures.overruns),
        f"{figures.underruns} under-runs" * bool(figures.underruns),
        f"{figures.bad_samples} samples were no sound" * bool(figures.bad_samples),
    ]
    also = "".join(f"; {sentence}" for sentence in trouble if sentence)
    if failed is not None:
        say(str(failed))
    say(f"heard {figures.time_s:.1f} s of {source.name}: {what}{also}.")
    return 0 if failed is None else 1
