"""Puts this folder on the path, for the files that are written by hand here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
