"""Eight virtual devices give what one gives, and send no more around than they must."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def said(root):
    """What `transformer_devices.py` prints and warns of on eight virtual devices."""
    done = subprocess.run(
        [sys.executable, str(HERE / "transformer_devices.py")],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(root), str(HERE)]),
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_PLATFORMS": "cpu",
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def eight(said):
    """Its results."""
    (line,) = (x for x in said.stdout.splitlines() if x.startswith("RESULTS "))
    return json.loads(line.removeprefix("RESULTS "))


def test_the_layout_does_not_change_what_comes_out(eight):
    for name, report in eight.items():
        for what in ("logits_of", "trained"):
            assert report[what]["gap"] < 1e-5, (name, what)
        assert report["decoded"]["gap"] == 0, name
    assert max(report["kinds"] for report in eight.values()) > 3  # rows that say something


def test_weights_are_cut_by_the_table(eight):
    assert eight["data"]["query"] == [None, None]
    assert eight["cut"]["query"] == eight["bart"]["query"] == ["fsdp", "tensor"]


def test_data_parallel_gathers_nothing(eight):
    for what in ("logits_of", "decoded", "trained"):
        assert eight["data"][what]["gathered"] == 0, what
        assert eight["cut"][what]["gathered"] > 0, what  # so gathers are seen where there are any


def test_no_tensor_is_laid_out_anew_by_gathering_it(said):
    assert "rematerialization" not in said.stderr
