"""The one stopwatch: every speed that this project states was measured here.

A benchmark is a script beside this file that hands over what it compares:

>>> from harness import Case, Subject, compare
>>> compare(
...     Case("frontend", audio_s=30.0, batch=1, dtype="float32", facts={"preset": "kong"}),
...     [Subject("musicjax", jitted, (audio,)), Subject("librosa", theirs, (audio,))],
... )

What is measured, and how:

compile   tracing and compiling ahead of time, for a function that came from `jax.jit`
first     the first call after that (for anything else: the first call, with whatever it sets up)
steady    later calls: median, 10th and 90th percentile of at least `min_repeats`
ratio     peers run interleaved (A B C A B C …), so that a busy machine slows all alike; the ratio
          is the median over rounds of peer time / time of the first subject (2.0: peer is slower)
memory    peak resident size of the process while the subject ran its first call (on Linux the
          high-water mark is reset before it), and the device's own peak where it keeps one

Each subject gives one JSON line in `results/<benchmark>.jsonl`, with device, cores, load, versions,
revision and date. Clocks stop only after the result is there (`block_until_ready`).
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax

from musicjax.infer.bench import Steady, peak_rss_mb
from musicjax.infer.bench import environment as machine

RESULTS = Path(__file__).resolve().parent / "results"

# Dense bf16 peak of one device, for MFU (NVIDIA data sheets, SXM form).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "librosa",
    "torch",
    "torchaudio",
    "transformers",
    "librosax",
)


@dataclass(frozen=True)
class Case:
    """What is done, the same for all subjects.

    `audio_s` counts all seconds of the batch; `flops` and `bytes_moved` are analytic counts of one
    call, given where achieved FLOP/s, MFU or bandwidth should be told.
    """

    benchmark: str
    audio_s: float
    batch: int = 1
    dtype: str = "float32"
    flops: float | None = None
    bytes_moved: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """Who does it: a function and its arguments.

    `build` makes the function to be timed, and its time counts as compiling; without it a
    function from `jax.jit` is lowered and compiled for `args`, and any other is called as it is.
    `wait` blocks until a result is really there (jax and torch results need none). `memory_mb`
    tells the peak of work done elsewhere, in a process of its own.
    """

    name: str
    function: Callable | None
    args: tuple = ()
    build: Callable[[], Callable] | None = None
    wait: Callable[[Any], Any] | None = None
    memory_mb: Callable[[], float] = peak_rss_mb


@dataclass(frozen=True)
class Timing:
    """One subject's measurement; `ratio` is peer time / time of the first subject."""

    subject: str
    compile_s: float | None
    first_s: float
    steady: Steady
    ratio: Steady
    audio_s_per_s: float
    peak_rss_mb: float
    device_peak_mb: float | None


def compare(
    case: Case,
    subjects: Sequence[Subject],
    *,
    min_repeats: int = 20,
    budget_s: float = 60.0,
    record: bool = True,
    results: Path = RESULTS,
) -> list[Timing]:
    """Measure all subjects on one case, print a line each, and append them to the results.

    Rounds go on until `min_repeats` are done; then until `budget_s` is spent or five times as many
    are done, whichever comes first. A case so slow that `min_repeats` would take more than ten
    budgets stops after three rounds once the budget is spent; its line tells its `repeats`.
    """
    starts = [_start(subject) for subject in subjects]
    calls = [call for call, *_ in starts]
    # One round unseen, for caches, thread pools and clock frequency.
    warm = [_clock(call) for call in calls] if min_repeats > 1 else [0.0]
    slow = min_repeats * sum(warm) > 10 * budget_s > 0
    times: list[list[float]] = [[] for _ in subjects]
    begun = time.perf_counter()
    for repeat in range(5 * min_repeats):
        if repeat >= (3 if slow else min_repeats) and time.perf_counter() - begun > budget_s:
            break
        for call, values in zip(calls, times, strict=True):
            values.append(_clock(call))

    timings = []
    for subject, values, (_, compile_s, first_s, rss, device) in zip(
        subjects, times, starts, strict=True
    ):
        steady = Steady.of(values)
        timings.append(
            Timing(
                subject=subject.name,
                compile_s=compile_s,
                first_s=first_s,
                steady=steady,
                ratio=Steady.of([v / v0 for v, v0 in zip(values, times[0], strict=True)]),
                audio_s_per_s=case.audio_s / steady.median,
                peak_rss_mb=rss,
                device_peak_mb=device,
            )
        )
    for timing in timings:
        print(_sentence(case, timing))
    if record:
        append(case, timings, results)
    return timings


def append(case: Case, timings: Sequence[Timing], results: Path = RESULTS) -> Path:
    """Write one JSON line per timing to `results/<benchmark>.jsonl`; returns the file."""
    where = environment()
    results.mkdir(parents=True, exist_ok=True)
    path = results / f"{case.benchmark}.jsonl"
    with path.open("a") as file:
        for timing in timings:
            line = {**asdict(case), **asdict(timing), **_rates(case, timing, where), **where}
            file.write(json.dumps(_rounded(line)) + "\n")
    return path


def environment() -> dict[str, Any]:
    """The machine as `musicjax bench` tells it, how jax was set, the peers and the revision."""
    return {
        **machine([name for name in _PACKAGES if name in sys.modules]),
        "compile_cache": bool(jax.config.jax_compilation_cache_dir),
        "matmul_precision": jax.config.jax_default_matmul_precision,
        "revision": _revision(),
    }


def _start(subject: Subject) -> tuple[Callable[[], Any], float | None, float, float, float | None]:
    """Compile and call once: (call, compile_s, first_s, peak RSS in MB, device peak in MB)."""
    function, compile_s = subject.function, None
    _reset_high_water()
    build = subject.build
    if build is None and _is_jitted(function):

        def build() -> Callable:
            return subject.function.lower(*subject.args).compile()

    if build is not None:
        begun = time.perf_counter()
        function = build()
        compile_s = time.perf_counter() - begun
    wait = subject.wait or _wait

    def call() -> Any:
        return wait(function(*subject.args))

    first_s = _clock(call)
    return call, compile_s, first_s, subject.memory_mb(), _device_peak_mb()


def _is_jitted(function: Any) -> bool:
    return isinstance(function, jax.stages.Wrapped)


def _clock(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _wait(result: Any) -> Any:
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.synchronize()
    return jax.block_until_ready(result)


def _reset_high_water() -> None:
    with contextlib.suppress(OSError):  # not Linux: the mark is then the process's peak so far
        Path("/proc/self/clear_refs").write_text("5")


def _device_peak_mb() -> float | None:
    stats = jax.devices()[0].memory_stats()
    return stats["peak_bytes_in_use"] / 2**20 if stats else None


def _rates(case: Case, timing: Timing, where: Mapping[str, Any]) -> dict[str, float]:
    rates = {}
    if case.flops is not None:
        rates["flops_per_s"] = case.flops / timing.steady.median
        peak = next((v for k, v in PEAK_FLOPS.items() if k in where["device"]), None)
        if peak is not None:
            rates["mfu"] = rates["flops_per_s"] / (peak * where["num_devices"])
    if case.bytes_moved is not None:
        rates["gb_per_s"] = case.bytes_moved / timing.steady.median / 1e9
    return rates


def _sentence(case: Case, timing: Timing) -> str:
    facts = " ".join(f"{k}={v}" for k, v in case.facts.items())
    compiled = "" if timing.compile_s is None else f"compile {timing.compile_s:.2f} s, "
    return (
        f"{case.benchmark} {facts} | {timing.subject}: {compiled}first {timing.first_s:.3f} s, "
        f"steady {1e3 * timing.steady.median:.2f} ms [{1e3 * timing.steady.p10:.2f}, "
        f"{1e3 * timing.steady.p90:.2f}] x{timing.steady.repeats}, "
        f"{timing.audio_s_per_s:.0f} s of audio per s, ratio {timing.ratio.median:.2f}, "
        f"peak {timing.peak_rss_mb:.0f} MB"
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return value


def _revision() -> str:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=RESULTS.parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()
