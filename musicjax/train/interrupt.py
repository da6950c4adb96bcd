"""Stopping between two steps when the person or the cluster asks for it."""

import signal
import threading
from typing import Any

import jax


class Signals:
    """SIGTERM and Ctrl-C ask the loop to save and stop; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        # With many processes the cluster's own service agrees on the step at which all stop.
        here = threading.current_thread() is threading.main_thread()
        if here and jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    @property
    def name(self) -> str:
        """What stopped the run, in words."""
        return {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}.get(
            self.received,
            "the cluster",  # type: ignore[call-overload]
        )

    @property
    def exit_code(self) -> int:
        """The shell's convention: 128 plus the signal's number."""
        return 128 + (self.received or signal.SIGTERM)
