"""The stopwatch of benchmarks/harness.py, on work so small that only its bookkeeping shows."""

import importlib.util
import json
import sys
import time

import jax
import jax.numpy as jnp
import pytest


@pytest.fixture(scope="module")
def harness(root):
    spec = importlib.util.spec_from_file_location("harness", root / "benchmarks" / "harness.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def test_compare_measures_and_records(harness, tmp_path, capsys):
    x = jnp.ones((8, 8))
    case = harness.Case("unit", audio_s=2.0, batch=8, flops=1e3, bytes_moved=1e6, facts={"n": 8})
    subjects = [
        harness.Subject("jitted", jax.jit(lambda a: a @ a), (x,)),
        harness.Subject("slow", time.sleep, (0.002,)),
        harness.Subject("built", None, (3,), build=lambda: lambda n: n + 1),
    ]
    jitted, slow, built = harness.compare(
        case, subjects, min_repeats=5, budget_s=0.01, results=tmp_path
    )
    assert jitted.compile_s > 0 and slow.compile_s is None and built.compile_s >= 0
    assert jitted.ratio.median == 1.0 and slow.ratio.median > 1.0
    assert slow.steady.median >= 0.002
    assert slow.steady.p10 <= slow.steady.median <= slow.steady.p90
    assert 5 <= slow.steady.repeats <= 25
    assert slow.audio_s_per_s == pytest.approx(2.0 / slow.steady.median)
    assert jitted.peak_rss_mb > 10

    lines = [json.loads(line) for line in (tmp_path / "unit.jsonl").read_text().splitlines()]
    assert [line["subject"] for line in lines] == ["jitted", "slow", "built"]
    for key in ("device", "cores", "versions", "revision", "date", "dtype", "batch", "gb_per_s"):
        assert key in lines[0]
    assert lines[0]["facts"] == {"n": 8}
    assert lines[0]["versions"]["jax"] == jax.__version__
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_results_are_appended(harness, tmp_path):
    case = harness.Case("unit", audio_s=1.0)
    for _ in range(2):
        once = harness.Subject("a", int)
        harness.compare(case, [once], min_repeats=2, budget_s=0.0, results=tmp_path)
    assert len((tmp_path / "unit.jsonl").read_text().splitlines()) == 2
