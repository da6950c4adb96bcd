"""Drawing with characters: half blocks for coloured squares, braille for lines, bars of eighths."""

import functools
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int
from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

PAPER, PANEL, INK, FAINT = 0x0D1016, 0x12161F, 0xD9DEE8, 0x5D6778
GOOD, FAIR, BAD, ACCENT = 0x5FD6B4, 0xFBB659, 0xFF5C6C, 0x6FC7E8
_TOUCH = (0x7A3B6E, 0xC0486A, 0xEE7752, 0xFBB659, 0xFFF0B3)  # soft to loud, as in the pictures

Line = list[Segment]


def mixed(first: int, second: int, share: float) -> int:
    """A colour between two, 0xRRGGBB: `share` of the second."""
    parts = []
    for shift in (16, 8, 0):
        one, two = first >> shift & 255, second >> shift & 255
        parts.append(round(one + (two - one) * share) << shift)
    return sum(parts)


@functools.cache
def touch(velocity: int) -> int:
    """The colour of a velocity, 0..127."""
    place = max(0, min(velocity, 127)) / 127 * (len(_TOUCH) - 1)
    low = min(int(place), len(_TOUCH) - 2)
    return mixed(_TOUCH[low], _TOUCH[low + 1], place - low)


@functools.lru_cache(maxsize=8192)
def style(ink: int, paper: int = PAPER, bold: bool = False) -> Style:
    """A rich style of two colours."""
    colours = (Color.from_rgb(c >> 16, c >> 8 & 255, c & 255) for c in (ink, paper))
    front, back = colours
    return Style(color=front, bgcolor=back, bold=bold)


def half_blocks(upper: Int[np.ndarray, " W"], lower: Int[np.ndarray, " W"]) -> Line:
    """Two rows of coloured squares as one line of characters."""
    line: Line = []
    above, below = upper.tolist(), lower.tolist()
    begun = 0
    for place in range(1, len(above) + 1):
        if place < len(above) and (above[place], below[place]) == (above[begun], below[begun]):
            continue
        one, two = above[begun], below[begun]
        line.append(Segment((" " if one == two else "▀") * (place - begun), style(one, two)))
        begun = place
    return line


def braille(dots: Bool[np.ndarray, "h w"]) -> list[str]:
    """Dots as lines of braille: four dots high and two wide in a character, filled up with none."""
    height, width = -(-dots.shape[0] // 4), -(-dots.shape[1] // 2)
    whole = np.zeros((4 * height, 2 * width), bool)
    whole[: dots.shape[0], : dots.shape[1]] = dots
    cells = whole.reshape(height, 4, width, 2)
    bits = np.array([[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]])
    codes = 0x2800 + (cells * bits[None, :, None, :]).sum(axis=(1, 3))
    return ["".join(map(chr, row)) for row in codes.tolist()]


def bar(share: float, width: int) -> str:
    """A bar that fills a share of so many characters, in eighths of one."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (" ▏▎▍▌▋▊▉"[rest] if rest else ""))[:width].ljust(width)


def spark(shares: Iterable[float]) -> str:
    """Shares of 0..1 as a row of little columns."""
    return "".join("▁▂▃▄▅▆▇█"[min(7, max(0, int(share * 8)))] for share in shares)


def text_line(text: Text, width: int) -> Line:
    """One line of a text, cut or filled up to the width, on the paper."""
    text = text.copy()
    base = style(INK) + text.style if isinstance(text.style, Style) else style(INK)
    text.truncate(width, overflow="ellipsis", pad=True)
    shown: Line = []
    marks = sorted({0, len(text.plain), *(m for span in text.spans for m in span[:2])})
    for begin, end in itertools.pairwise(marks):
        inner = base
        for span in text.spans:
            if span.start <= begin and end <= span.end and isinstance(span.style, Style):
                inner = inner + span.style
        shown.append(Segment(text.plain[begin:end], inner))
    return shown


def lines_to_segments(lines: Iterable[Line]) -> Iterator[Segment]:
    """All lines, each ended, for rich."""
    for number, line in enumerate(lines):
        if number:
            yield Segment.line()
        yield from line
