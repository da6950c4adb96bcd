"""Means and rates over the steps between two log lines."""

import contextlib
import math
import time
from collections.abc import Iterator

from musicjax.train.config import RunConfig
from musicjax.train.state import learning_rate


class Meter:
    """Means of the numbers since the last log line, and rates over the wall time of their steps.

    The first step is not timed: it compiles, and its time is told apart as `compile_s`.
    """

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._rate = learning_rate(config.optim, config.steps)
        self._first_s: float | None = None
        self._untimed = 1
        self._reset()

    def _reset(self) -> None:
        self._values: list[dict[str, float]] = []
        self._since = time.perf_counter()
        self.stalled_s = 0.0

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context whose time does not count."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def add(self, values: dict[str, float]) -> None:
        """Count one finished step with its numbers."""
        self._values.append(values)
        if self._first_s is None:
            now = time.perf_counter()
            self._first_s, self._since, self.stalled_s = now - self._since, now, 0.0

    def summary(self, step: int) -> dict[str, float]:
        """Mean of each metric over finite steps, counters as they stand, rates; then start anew."""
        last, count = self._values[-1], len(self._values)
        spent = max(time.perf_counter() - self._since, 1e-9)
        result = {}
        for name in last:
            finite = [v[name] for v in self._values if math.isfinite(v[name])]
            result[name] = sum(finite) / len(finite) if finite else math.nan
        result["skipped"] = last["skipped"]
        del result["skipped_in_row"]
        result["learning_rate"] = float(self._rate(step - 1 - int(last["skipped"])))
        if timed := count - self._untimed:
            data = self._config.data
            result["step_s"] = spent / timed
            result["examples_per_s"] = data.batch_size / result["step_s"]
            result["audio_s_per_s"] = result["examples_per_s"] * data.clip_s
            result["input_stall"] = min(self.stalled_s / spent, 1.0)
        if self._untimed and self._first_s is not None:
            result["compile_s"] = self._first_s
            self._untimed = 0
        self._reset()
        return result
