"""How fast a model is, audio in to notes out, as a person meets it; and on what machine.

`benchmarks/harness.py`, which compares peers, counts with the same pieces.
"""

import datetime
import importlib.metadata
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Steady:
    """Distribution of repeated measurements, in seconds (or of ratios, without unit)."""

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Steady":
        """Median and outer deciles; of a single value, that value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        deciles = statistics.quantiles(values, n=10, method="inclusive")
        return cls(statistics.median(values), deciles[0], deciles[-1], len(values))


def measure(
    transcribe: Callable[[np.ndarray, int], Any],
    *,
    sample_rate: int,
    seconds: float = 30.0,
    repeats: int = 10,
) -> dict[str, Any]:
    """Time `transcribe(samples, sample_rate)` on `seconds` of a made-up recording.

    `first_s` is the first call, which compiles (or reads the compile cache); `median_s`, `p10_s`
    and `p90_s` are over `repeats` later calls; `times_real_time` is seconds / median_s.
    `peak_rss_mb` is the largest resident size of the process so far.
    """
    samples = _recording(seconds, sample_rate)

    def timed() -> float:
        begun = time.perf_counter()
        transcribe(samples, sample_rate)
        return time.perf_counter() - begun

    first_s = timed()
    steady = Steady.of([timed() for _ in range(repeats)])
    return {
        "seconds": seconds,
        "first_s": round(first_s, 4),
        "median_s": round(steady.median, 4),
        "p10_s": round(steady.p10, 4),
        "p90_s": round(steady.p90, 4),
        "repeats": steady.repeats,
        "times_real_time": round(seconds / steady.median, 1),
        "peak_rss_mb": round(peak_rss_mb()),
        **environment(),
    }


def _recording(seconds: float, sample_rate: int) -> np.ndarray:
    """Decaying tones at random pitches and a little noise: about as dense as a piano piece."""
    rng = np.random.default_rng(0)
    samples = 1e-3 * rng.standard_normal(round(seconds * sample_rate)).astype(np.float32)
    time_s = np.arange(sample_rate) / sample_rate
    for start in np.arange(0, len(samples) - sample_rate, sample_rate // 8):
        hz = 440 * 2 ** ((rng.integers(36, 96) - 69) / 12)
        tone = 0.2 * np.sin(2 * np.pi * hz * time_s) * np.exp(-4 * time_s)
        samples[start : start + sample_rate] += tone.astype(np.float32)
    return samples


def peak_rss_mb() -> float:
    """Largest resident size of this process so far, in MB; NaN where the system does not tell.

    On Linux it counts from the last reset of the high-water mark (see proc_pid_clear_refs(5)).
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    scale = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def environment(packages: Sequence[str] = ("jax", "jaxlib", "flax", "numpy")) -> dict[str, Any]:
    """Device, cores, load, versions and date: what a number means nothing without."""
    device = jax.devices()[0].device_kind
    affinity = getattr(os, "sched_getaffinity", None)
    load = getattr(os, "getloadavg", None)
    return {
        "device": _cpu_name() if device == "cpu" else device,
        "num_devices": jax.device_count(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_1min": round(load()[0], 2) if load else None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(s.split(":", 1)[1].strip() for s in lines if s.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
