"""Puts the little system on the path, for these tests and for the processes they start."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))


@pytest.fixture
def start(root: Path) -> Callable[..., subprocess.Popen]:
    """Start a Python program of this folder with given arguments and environment."""
    running = []

    def run(script: str, *args: str, **environment: str) -> subprocess.Popen:
        paths = os.pathsep.join([str(root), str(HERE)])
        process: Any = subprocess.Popen(
            [sys.executable, str(HERE / script), *args],
            env={**os.environ, "PYTHONPATH": paths, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        running.append(process)
        return process

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
