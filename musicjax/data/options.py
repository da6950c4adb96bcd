"""Typed options of a command line, read by tyro into a frozen dataclass."""

import contextlib
import io
import re
from collections.abc import Sequence
from typing import Any

from musicjax.errors import ConfigError

_BOX = re.compile("[╭╮╰╯│├┤]")
_RULE = re.compile(r"[─-]{8,}")
_ASIDE = ("For full helptext", "Argument helptext")


def read_options(config_type: type, args: Sequence[str], **settings: Any) -> Any:
    """An instance of a dataclass from `--field value` arguments; settings are those of tyro.cli.

    `--help` prints every field and leaves by SystemExit. Raises ConfigError for anything that
    cannot be read, with tyro's reasons in one sentence.
    """
    import tyro

    if {"-h", "--help"} & set(args):
        return tyro.cli(config_type, args=list(args), **settings)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(config_type, args=list(args), **settings)
    except SystemExit:
        asked = " ".join(args) or "none"
        raise ConfigError(
            f"the options {asked!r} cannot be read: {_reasons(said.getvalue())}. "
            "`--help` lists every field with its type and value."
        ) from None


def _reasons(panel: str) -> str:
    """What tyro printed, without its box, its heading and its advice."""
    parts: list[list[str]] = [[]]
    for line in panel.splitlines():
        words = _BOX.sub(" ", line).strip()
        if _RULE.search(words):
            parts.append([])
        elif words:
            parts[-1].append(words)
    told = [" ".join(lines) for lines in parts if lines and not lines[0].startswith(_ASIDE)]
    reasons = told[1:] or told  # the first is the heading
    return ". ".join(re.sub(r"^Error parsing ", "", r).strip(" .") for r in reasons)
