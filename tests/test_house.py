"""The house itself: cheap import, the order of the rooms, names that must not be imported bare."""

import subprocess
import sys


def test_import_is_free():
    code = "import musicjax, sys; print(sorted({'jax', 'numpy', 'flax'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
