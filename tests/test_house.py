"""The house: import is free, rooms know only those before them, documents tell the truth."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# From foundations to front door. A room may import itself and those before it; the first group
# may be imported by all, and the registry reaches models by name only.
ROOMS = [
    "version", "errors", "types", "files", "registry", "audio", "nn", "decode", "notes",
    "text", "data", "hub", "train", "metrics", "plots", "infer", "tasks", "terminal", "arguments",
    "cli",
]  # fmt: skip
# What a folder of models/ may use: what a network is made of, never what runs it.
MODEL_ROOMS = {
    "errors", "types", "files", "registry", "audio", "nn", "decode", "notes", "text", "hub",
}  # fmt: skip
CONFIG_ROOMS = {*MODEL_ROOMS, "data", "train", "models"}


def python_files(folder: Path) -> list[Path]:
    """Sources below a folder, not following links, so that each file is met once."""
    return [p for p in sorted(folder.rglob("*.py")) if not any(q.is_symlink() for q in p.parents)]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every import in a file, at the top or inside a function: (line, dotted name)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            names = [a.name for a in node.names] if node.module == "musicjax" else [None]
            yield from ((node.lineno, ".".join(filter(None, (node.module, n)))) for n in names)


def rooms_imported(path: Path) -> Iterator[tuple[int, str]]:
    """Rooms of musicjax that a file imports: (line, name of the room)."""
    for line, name in imported(path):
        parts = name.split(".")
        if parts[0] == "musicjax":
            yield line, parts[1] if len(parts) > 1 else "musicjax"


def clean_python(code: str, *, cwd: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_needs_nothing_and_takes_no_time():
    code = """
import sys, time
begun = time.perf_counter()
import musicjax
took = time.perf_counter() - begun
print(took, *sorted({"jax", "numpy", "flax", "librosa", "matplotlib"} & set(sys.modules)))
"""
    took, *heavy = clean_python(code).split()
    assert heavy == []
    assert float(took) < 0.3


def test_public_names_are_there():
    code = "import musicjax; print(len([getattr(musicjax, n) for n in dir(musicjax)]))"
    assert int(clean_python(code)) >= 18


def test_listing_models_imports_no_jax():
    code = "import musicjax, sys; print(*musicjax.list_models()); print('jax' in sys.modules)"
    names, jax = clean_python(code).splitlines()
    assert names.split() and jax == "False"


def test_rooms_know_only_the_rooms_before_them(root):
    wrong = []
    for path in python_files(root / "musicjax"):
        room = path.relative_to(root / "musicjax").parts[0].removesuffix(".py")
        if room in ("__init__", "__main__"):
            continue
        assert room in ROOMS, f"{path}: a new room needs its place in the order"
        for line, other in rooms_imported(path):
            if (room, other) == ("cli", "configs"):  # looks a recipe up by name
                continue
            if other not in ROOMS or ROOMS.index(other) > ROOMS.index(room):
                wrong.append(f"{path.relative_to(root)}:{line} imports {other}")
    assert wrong == []


@pytest.mark.parametrize(
    ("folder", "allowed"), [("models", MODEL_ROOMS), ("configs", CONFIG_ROOMS)]
)
def test_models_and_configs_keep_to_their_rooms(root, folder, allowed):
    wrong = []
    for path in python_files(root / folder):
        own = ".".join(("musicjax", *path.relative_to(root).parts[:2])).removesuffix(".py")
        for line, name in imported(path):
            room = name.split(".")[1] if name.startswith("musicjax.") else None
            if room and room not in allowed and not name.startswith(own):
                wrong.append(f"{path.relative_to(root)}:{line} imports {name}")
    assert wrong == []


def test_nothing_is_imported_bare(root):
    """`import models` would make a second copy of each module, with classes that do not match."""
    wrong = []
    for folder in ("musicjax", "models", "configs", "tests", "benchmarks", "examples"):
        for path in python_files(root / folder):
            bare = [n for _, n in imported(path) if n.split(".")[0] in ("models", "configs")]
            wrong += [f"{path}: {name}" for name in bare]
    assert wrong == []
    code = """
import sys, musicjax
musicjax.list_models()
print(sorted({"models", "configs"} & set(sys.modules)))
"""
    assert clean_python(code, cwd=root) == "[]"


def test_files_and_functions_stay_readable(root):
    """Limits with room above the aim (500 lines a file, 60 a function): a smell made visible."""
    long = []
    for folder in ("musicjax", "models", "configs", "benchmarks"):
        for path in python_files(root / folder):
            source = path.read_text()
            if source.count("\n") > 600:
                long.append(f"{path.relative_to(root)}: {source.count(chr(10))} lines")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 80:
                        long.append(f"{path.relative_to(root)}: {node.name} has {lines} lines")
    assert long == []


def test_dependencies_are_the_ones_imported(root):
    """Each core dependency is imported somewhere, and each import is a dependency of some extra."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    alias = {"orbax_checkpoint": "orbax", "tensorboardx": "tensorboardX", "absl_py": "absl"}
    used_if_there = {"huggingface_hub"}  # for hf:// addresses; https does without it

    def modules(requirements: list[str]) -> set[str]:
        direct = [r for r in requirements if "python_version" not in r]  # others' missing pieces
        names = [re.split(r"[<>=\[;! ]", r)[0].replace("-", "_").lower() for r in direct]
        return {alias.get(name, name) for name in names} - {"musicjax"}

    core = modules(project["dependencies"])
    extras = modules([r for rs in project["optional-dependencies"].values() for r in rs])
    used = set()
    for folder in ("musicjax", "models", "configs"):
        for path in python_files(root / folder):
            used |= {name.split(".")[0] for _, name in imported(path)}
    third_party = used - set(sys.stdlib_module_names) - {"musicjax"}
    assert core - third_party == set()
    assert third_party - core - extras - used_if_there == set()


# Documents -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def readme_writer(root):
    spec = importlib.util.spec_from_file_location("readme_writer", root / ".ci" / "readme.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_readme_tables_are_the_generated_ones(root, readme_writer):
    text = (root / "README.md").read_text()
    assert readme_writer.written(text) == text, "run: python .ci/readme.py"


def test_readme_numbers_are_in_their_files(root, readme_writer):
    """Each number of the table of results, to the digits shown, stands in the file it names."""
    table = readme_writer.between((root / "README.md").read_text(), "results")
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    assert rows
    for _, value, _, link in rows:
        quoted = value.split()[0].replace(",", "")
        digits = len(quoted.partition(".")[2])
        file = root / link.split("(")[1].rstrip(")")
        found = {f"{n:.{digits}f}" for line in file.open() for n in numbers(json.loads(line))}
        assert quoted in found, f"{value} is not in {file.name}"


@pytest.mark.parametrize(
    ("table", "file"), [("scores", "accuracy"), ("pitch", "pitch"), ("latency", "streaming")]
)
def test_readme_scores_are_in_their_files(root, readme_writer, table, file):
    """Each score of a table, to three digits, stands in the file that its head links to."""
    text = readme_writer.between((root / "README.md").read_text(), table)
    head, _, *rows = text.splitlines()
    assert f"(benchmarks/results/{file}.jsonl)" in head
    lines = (root / "benchmarks" / "results" / f"{file}.jsonl").read_text().splitlines()
    found = {f"{n:.3f}" for line in lines for n in numbers(json.loads(line).get("scores"))}
    quoted = [number for row in rows for number in re.findall(r"\d\.\d{3}", row)]
    assert quoted and set(quoted) <= found


def numbers(value: Any) -> Iterator[float]:
    """All numbers anywhere in parsed JSON."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from numbers(part)
    elif isinstance(value, int | float):
        yield value


def test_readme_commands_and_files_exist(root, readme_writer):
    text = (root / "README.md").read_text()
    transcribe = readme_writer.command(text, "transcribe")
    assert transcribe.startswith("pip install . && musicjax transcribe examples/")
    assert readme_writer.command(text, "test") == 'pip install ".[test]" && pytest'
    for name in re.findall(r"examples/[\w.-]+|benchmarks/[\w./-]+\.\w+", text):
        assert (root / name).exists(), f"README.md speaks of {name}"
    for target in re.findall(r"\]\((?!https?:|#)([^)]+)\)", text):
        assert (root / target).exists(), f"README.md links to {target}"


def test_readme_python_runs(root, readme_writer, tmp_path):
    """The ten lines of Python in the README, as they are printed."""
    code = readme_writer.block((root / "README.md").read_text(), "python")
    assert len(code.strip().splitlines()) <= 14
    compile(code, "README.md", "exec")


@pytest.mark.slow
def test_readme_python_gives_what_it_says(root, readme_writer, tmp_path):
    code = readme_writer.block((root / "README.md").read_text(), "python")
    (tmp_path / "examples").symlink_to(root / "examples")
    here = importlib.util.find_spec("musicjax").origin
    environment = {**os.environ, "PYTHONPATH": str(Path(here).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert done.returncode == 0
    assert list(tmp_path.glob("*.mid"))


def test_the_project_speaks_only_of_itself(root):
    """No path of a developer's machine, no unfinished business."""
    words = re.compile(r"/wor[k]/|/roo[t]/|/hom[e]/\w|TOD[O]|FIXM[E]")
    skip = {".git", "build", "dist", "runs", "__pycache__"}
    wrong = []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root).parts
        if skip & set(inside) or any(p.is_symlink() for p in path.parents) or not path.is_file():
            continue
        if path.suffix in (".py", ".md", ".toml", ".sh", ".cfg") or inside[0] == ".ci":
            wrong += [f"{path.relative_to(root)}: {w}" for w in words.findall(path.read_text())]
    assert wrong == []
