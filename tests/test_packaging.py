"""What is installed is what is here: wheel, sdist and editable install, from a copy of the tree.

Nothing is downloaded: builds use the setuptools that is installed, and the installed package is
asked only for what needs no dependency (its registry).
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# The registry needs the standard library only, so it runs where nothing else is installed.
ASK = "import musicjax.registry as r, musicjax; print(musicjax.__file__, *r.list_models())"


@pytest.fixture(scope="module")
def tree(root, tmp_path_factory) -> Path:
    """A copy of the source tree, links kept as links, so that a build leaves nothing behind."""
    # Not imported: setuptools refuses to be, once another library has imported distutils.
    try:
        major = int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        major = 0
    if major < 77:
        pytest.skip("building needs setuptools>=77")
    copy = tmp_path_factory.mktemp("tree") / "musicjax"
    names = ["musicjax", "models", "configs", "pyproject.toml", "README.md", "LICENSE"]
    copy.mkdir()
    for name in names:
        source = root / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(source, copy / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(source, copy / name)
    assert (copy / "musicjax" / "models").is_symlink()
    return copy


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind: str, tree: Path, out: Path) -> Path:
    """Call the build backend directly, as pip and build do in their own environments."""
    out.mkdir(parents=True, exist_ok=True)
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(out)!r}))"
    return out / run(sys.executable, "-c", code, cwd=tree).splitlines()[-1]


def wheel_files(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def expected_files(root: Path) -> set[str]:
    """Every source file, card and weight file, under its name in the package."""
    wanted = set()
    for top, prefix in (("musicjax", ""), ("models", "musicjax/"), ("configs", "musicjax/")):
        for path in (root / top).rglob("*"):
            if path.suffix in (".py", ".md", ".safetensors") or path.name == "py.typed":
                wanted.add(prefix + path.relative_to(root).as_posix())
    return {w for w in wanted if "__pycache__" not in w and ".egg-info" not in w}


# What a download of all that is shipped may cost, by file of weights.
MOST_MB = {
    "crepe/weights/ours.safetensors": 4,
    "mt3/weights/mini.safetensors": 20,
    "onsets_frames/weights/small.safetensors": 10,
    "piano_ar/weights/small.safetensors": 10,
    "piano_ar/weights/small_fast.safetensors": 10,
}


def test_wheel_holds_every_file_as_a_file(tree, tmp_path):
    wheel = build("wheel", tree, tmp_path)
    files = wheel_files(wheel)
    assert expected_files(tree) <= set(files)
    assert {name.split("/")[0].split("-")[0] for name in files} == {"musicjax"}
    card = files["musicjax/models/onsets_frames/card.md"]
    assert card == (tree / "models" / "onsets_frames" / "card.md").read_bytes()
    sizes = {name: len(data) / 1e6 for name, data in files.items()}
    weights = {name: sizes.pop(name) for name in files if name.endswith(".safetensors")}
    assert set(weights) == {f"musicjax/models/{name}" for name in MOST_MB}
    assert all(weights[f"musicjax/models/{name}"] <= most for name, most in MOST_MB.items())
    assert sum(sizes.values()) < 4
    assert any(name.endswith("licenses/LICENSE") for name in files)


def test_sdist_gives_the_same_wheel(tree, tmp_path):
    direct = wheel_files(build("wheel", tree, tmp_path / "direct"))
    sdist = build("sdist", tree, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        assert not any(m.issym() or m.islnk() for m in archive.getmembers())
        archive.extractall(tmp_path, filter="data")
    unpacked = tmp_path / sdist.name.removesuffix(".tar.gz")
    again = wheel_files(build("wheel", unpacked, tmp_path / "again"))
    assert set(direct) == set(again)
    python = [name for name in direct if name.endswith((".py", ".md", ".safetensors"))]
    assert all(direct[name] == again[name] for name in python)


def test_wheel_runs_from_anywhere(tree, tmp_path):
    wheel = build("wheel", tree, tmp_path)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    out = run(sys.executable, "-S", "-c", ASK, cwd=tmp_path, PYTHONPATH=str(site))
    assert out.startswith(str(site)) and "onsets_frames." in out


def test_source_tree_runs_without_installing(tree, tmp_path):
    out = run(sys.executable, "-S", "-c", ASK, cwd=tree, PYTHONPATH=".")
    assert "onsets_frames." in out
    out = run(sys.executable, "-S", "-c", ASK, cwd=tmp_path, PYTHONPATH=str(tree))
    assert out.startswith(str(tree))


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_editable_install(tree, tmp_path, installer):
    environment = tmp_path / "environment"
    base = [sys.executable, "-m", "venv"]
    run(*base, *([] if installer == "pip" else ["--without-pip"]), environment, cwd=tmp_path)
    python = environment / ("Scripts" if os.name == "nt" else "bin") / "python"
    # The environment borrows the setuptools of this one, so that nothing is downloaded. It is
    # found, not imported: it refuses to be, once another library has imported distutils.
    found = importlib.util.find_spec("setuptools")
    borrowed = tmp_path / "borrowed"
    borrowed.mkdir()
    site = Path(found.origin).parent.parent
    for source in (*site.glob("setuptools*"), site / "_distutils_hack"):
        (borrowed / source.name).symlink_to(source)  # the code and its entry points
    options = ["--no-deps", "--no-build-isolation", "-e", tree]
    if installer == "pip":
        command: list = [python, "-m", "pip", "install", "-q", *options]
    elif shutil.which("uv"):
        command = ["uv", "pip", "install", "-q", "--python", python, *options]
    else:
        pytest.skip("uv is not installed")
    run(*command, cwd=tmp_path, PYTHONPATH=str(borrowed))

    out = run(python, "-c", ASK, cwd=tmp_path)
    assert out.startswith(str(tree)) and "onsets_frames." in out

    added = tree / "configs" / "added.py"  # a new system needs no new install
    added.write_text("NAME = 'added'\n")
    code = "import musicjax.configs.added as a; print(a.NAME)"
    try:
        assert run(python, "-c", code, cwd=tmp_path).strip() == "added"
    finally:
        added.unlink()
