"""How fast a model is, audio in to notes out, as a person meets it."""

import datetime
import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


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
    times = sorted(timed() for _ in range(max(repeats, 2)))
    tenths = statistics.quantiles(times, n=10, method="inclusive")
    median_s = statistics.median(times)
    return {
        "seconds": seconds,
        "first_s": round(first_s, 4),
        "median_s": round(median_s, 4),
        "p10_s": round(tenths[0], 4),
        "p90_s": round(tenths[-1], 4),
        "repeats": len(times),
        "times_real_time": round(seconds / median_s, 1),
        "peak_rss_mb": round(_peak_mb()),
        **_where(),
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


def _peak_mb() -> float:
    scale = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


def _where() -> dict[str, Any]:
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "device": jax.devices()[0].device_kind,
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {n: importlib.metadata.version(n) for n in ("jax", "jaxlib", "flax", "numpy")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
