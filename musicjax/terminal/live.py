"""The view of listening as it goes on: who listens to what, how loud it is, how well it goes."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from musicjax.infer.live import Figures, Moment
from musicjax.terminal.canvas import (
    ACCENT,
    BAD,
    FAINT,
    FAIR,
    GOOD,
    INK,
    PANEL,
    Line,
    bar,
    lines_to_segments,
    spark,
    style,
    text_line,
)
from musicjax.terminal.meter import PitchView
from musicjax.terminal.roll import RollView

FRAME_S = 0.05  # between two pictures; four times that when hearing leaves little time
_SHARE = 0.2  # of the time, at most, that drawing takes
_NOTICE_S = 8.0  # for which a sentence stays
_FLOOR_DB, _HOLD_S = -60.0, 1.5  # of the level meter
_LOADS = 16  # in the row of little columns, one a half second


class LiveView:
    """A whole screen that shows a listening; also a rich renderable.

    Args:
      model, source: names; that of the source may change as more is known of it.
      outputs: names of what the events are written to.
      pitch: show the pitch of one voice instead of notes.
      console: a terminal; None takes stderr.
      clock: seconds that pass; for tests.
    """

    def __init__(
        self,
        model: str,
        source: str,
        outputs: Sequence[str] = (),
        *,
        pitch: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(stderr=True) if console is None else console
        self.pitch, self.source = pitch, source
        self._names = (model, tuple(outputs))
        self._view: RollView | PitchView = PitchView() if pitch else RollView()
        self._figures = Figures()
        self._clock = clock
        self._next_s, self._held = -math.inf, (-math.inf, _FLOOR_DB)
        self._notice: tuple[float, str] = (-math.inf, "")
        self._loads: deque[float] = deque([0.0] * _LOADS, _LOADS)
        self._load_s = -math.inf
        self._live = Live(
            self,
            console=self.console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,  # events may go there
            redirect_stderr=False,
        )

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def tell(self, sentence: str) -> None:
        """Show a sentence for a while."""
        self._notice = (self._clock(), sentence)

    def show(self, moment: Moment) -> None:
        """Take what was heard, and draw when it is time for another picture."""
        self.take(moment)
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._live.refresh()
        took_s = self._clock() - now_s
        busy = self._figures.load > 0.8
        self._next_s = now_s + max(FRAME_S, took_s / _SHARE) * (4 if busy else 1)

    def take(self, moment: Moment) -> None:
        """Take what was heard."""
        self._view.add(moment.events)
        self._figures = moment.figures
        now_s, level = self._clock(), moment.figures.level_db
        if level >= self._held[1] or now_s - self._held[0] > _HOLD_S:
            self._held = (now_s, level)
        if now_s - self._load_s > 0.5:
            self._load_s = now_s
            self._loads.append(moment.figures.load)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width, height = options.max_width, options.height or console.height
        yield from lines_to_segments(self.lines(width, height))

    def lines(self, width: int, height: int) -> list[Line]:
        """The whole screen."""
        frame = [self._head(width), self._level(width)]
        foot = [self._told(width), self._foot(width)]
        room = max(height - len(frame) - len(foot), 0)
        shown = self._view.lines(width, room, self._figures.heard_s)
        return [*frame, *shown, *foot][:height]

    def _head(self, width: int) -> Line:
        model, outputs = self._names
        minutes, seconds = divmod(self._figures.time_s, 60)
        clock = f"{int(minutes)}:{seconds:04.1f} "
        lit = int(self._clock() * 2) % 2 == 0
        left = Text.assemble(
            (" ● ", style(BAD if lit else FAINT, PANEL)),
            ("musicjax ", style(INK, PANEL, True)),
            (f" {model}", style(ACCENT, PANEL)),
            (" hears ", style(FAINT, PANEL)),
            (self.source, style(INK, PANEL)),
            (" → " if outputs else "", style(FAINT, PANEL)),
            (", ".join(outputs), style(ACCENT, PANEL)),
        )
        left.truncate(max(width - len(clock), 0), overflow="ellipsis", pad=True)
        return text_line(left + Text(clock, style(INK, PANEL, True)), width)

    def _level(self, width: int) -> Line:
        """A bar of the level with the highest of late, and what sounds."""
        size = max(10, min(30, width // 4))
        level = self._figures.level_db
        share = _of_scale(level)
        filled = bar(share, size)
        text = Text(" level ", style(FAINT))
        for place, cell in enumerate(filled):
            db = _FLOOR_DB * (1 - (place + 0.5) / size)
            colour = BAD if db > -3 else FAIR if db > -12 else GOOD
            text.append(cell, style(colour, PANEL))
        held = min(size - 1, int(_of_scale(self._held[1]) * size))
        if self._held[1] > _FLOOR_DB and held >= math.ceil(share * size):
            colour = BAD if self._held[1] > -3 else FAIR if self._held[1] > -12 else GOOD
            text = text[: 7 + held] + Text("▏", style(colour, PANEL)) + text[8 + held :]
        shown = f"{level:4.0f} dB " if level > _FLOOR_DB else "   · dB "
        return text_line(text + Text(shown, style(FAINT)) + self._view.told(), width)

    def _told(self, width: int) -> Line:
        when_s, sentence = self._notice
        if self._clock() - when_s > _NOTICE_S:
            sentence = ""
        return text_line(Text(f" {sentence}", style(FAIR)), width)

    def _foot(self, width: int) -> Line:
        figures, text = self._figures, Text()

        def say(name: str, value: str, colour: int = INK) -> None:
            text.append(f" {name} ", style(FAINT, PANEL))
            text.append(value, style(colour, PANEL))
            text.append(" ", style(FAINT, PANEL))

        load = figures.load
        strain = BAD if load > 0.95 else FAIR if load > 0.6 else GOOD
        say("latency", f"{1000 * figures.latency_s:.0f} ms")
        say("load", f"{100 * load:.0f} % {spark(self._loads)}", strain)
        trouble = BAD if figures.overruns else FAIR if figures.underruns else INK
        say("over/under-runs", f"{figures.overruns}/{figures.underruns}", trouble)
        if figures.lost_s:
            say("lost", f"{figures.lost_s:.1f} s", BAD)
        if figures.bad_samples:
            say("no sound", str(figures.bad_samples), BAD)
        if not self.pitch:
            say("notes", str(self._view.count))
        keys = " Ctrl-C ends "
        text.truncate(max(width - len(keys), 0), overflow="ellipsis", pad=False)
        text.append(" " * max(width - len(keys) - len(text.plain), 0), style(INK, PANEL))
        return text_line(text + Text(keys, style(FAINT, PANEL)), width)


def _of_scale(level_db: float) -> float:
    return max(0.0, min(1.0, 1 - level_db / _FLOOR_DB))
