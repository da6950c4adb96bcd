"""Package, cache, mirror, address: the right file, checked, or a sentence on what to do."""

import errno
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest

from musicjax.errors import WeightsError
from musicjax.hub import cache, download, fetch, transfer
from musicjax.registry import Source

DATA = bytes(range(256)) * 4096  # one MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves DATA under any name; can break off, ignore ranges, refuse, or send another file."""

    data = DATA
    status = 0  # an error to answer with
    ranges = True
    break_after: int | None = None  # bytes of one reply before the connection is cut

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    def handle_error(self, request, client_address):
        """Cut connections are meant."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if self.server.status:
            self.send_error(self.server.status)
            return
        data, start = self.server.data, 0
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            if start >= len(data):
                self.send_error(416)
                return
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        cut = self.server.break_after
        self.wfile.write(data[start : len(data) if cut is None else start + cut])
        if cut is not None:
            self.connection.close()

    def log_message(self, *args):
        """Tests are quiet."""


@pytest.fixture
def server():
    served = Server()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUSICJAX_MIRROR", raising=False)
    monkeypatch.setattr(transfer, "WAIT_S", 0.0)


def source_at(address: str, data: bytes = DATA) -> Source:
    return Source(address, hashlib.sha256(data).hexdigest(), len(data))


def source_of(server: Server, data: bytes = DATA) -> Source:
    return source_at(f"http://127.0.0.1:{server.server_port}/models/w.safetensors", data)


def test_fetched_once_then_taken_from_the_cache(server):
    told = []
    source = source_of(server)
    path = fetch(source, progress=lambda there, total: told.append((there, total)))
    assert path.read_bytes() == DATA
    assert path.name == "w.safetensors"
    assert told[-1] == (len(DATA), len(DATA))
    assert fetch(source) == path
    assert server.asked == [None]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_goes_on(server, ranges):
    server.ranges = ranges
    server.break_after = 300_000 if ranges else None
    source = source_of(server)
    part = cache.cached_path(source).with_name("w.safetensors.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:100_000])
    assert fetch(source).read_bytes() == DATA
    assert server.asked[0] == "bytes=100000-"
    assert len(server.asked) == (4 if ranges else 1)
    assert not part.exists()


def test_a_download_that_never_moves_ends_in_a_sentence(server):
    server.break_after = 0
    with pytest.raises(WeightsError, match="MUSICJAX_MIRROR"):
        fetch(source_of(server))
    assert len(server.asked) == transfer.ATTEMPTS


def test_wrong_sha256_is_thrown_away(server):
    server.data = DATA[:-1] + b"x"
    source = source_of(server)
    with pytest.raises(WeightsError, match="thrown away") as told:
        fetch(source)
    assert source.sha256[:16] in str(told.value)
    assert not [p for p in cache.cached_path(source).parent.iterdir() if p.suffix != ".lock"]


def test_more_bytes_than_the_card_names_are_not_taken(server):
    server.data = DATA * 3
    with pytest.raises(WeightsError, match="more than"):
        fetch(source_of(server))


@pytest.mark.parametrize(("status", "asked"), [(404, 1), (503, transfer.ATTEMPTS)])
def test_refusals_of_the_server(server, status, asked):
    server.status = status
    with pytest.raises(WeightsError, match=str(status)):
        fetch(source_of(server))
    assert len(server.asked) == asked


@pytest.mark.parametrize("damage", [DATA[:1000], DATA[:-1] + b"x"])
def test_a_damaged_cached_file_is_fetched_again(server, damage):
    source = source_of(server)
    fetch(source).write_bytes(damage)
    assert fetch(source).read_bytes() == DATA
    assert len(server.asked) == 2


def test_a_damaged_cached_file_without_a_network_says_both():
    source = source_at("http://127.0.0.1:9/w.safetensors")
    path = cache.cached_path(source)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[:10])
    with pytest.raises(WeightsError) as told:
        fetch(source)
    for words in ("has 10 bytes", "MUSICJAX_MIRROR", "w.safetensors", source.sha256):
        assert words in str(told.value)


def test_the_mirror_stands_in_for_every_address(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path))
    (tmp_path / "w.safetensors").write_bytes(DATA)
    for address in ("https://nowhere.invalid/w.safetensors", "gs://b/w.safetensors",
                    "hf://owner/name/w.safetensors"):  # fmt: skip
        assert fetch(source_at(address)) == tmp_path / "w.safetensors"
    (tmp_path / "w.safetensors").write_bytes(DATA[:-5])
    with pytest.raises(WeightsError, match="mirror folder has"):
        fetch(source_at("gs://b/w.safetensors"))


def test_a_full_disk_says_so_and_keeps_what_is_there(server, monkeypatch):
    source = source_of(server)
    real_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def open_full(path, mode="r", *args, **kwargs):
        file = real_open(path, mode, *args, **kwargs)
        return Full(file) if path.suffix == ".part" and mode in ("wb", "ab") else file

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(WeightsError, match=r"disk is full.*MUSICJAX_CACHE"):
        fetch(source)


def test_a_cache_that_cannot_be_made_says_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="MUSICJAX_CACHE"):
        fetch(source_at("https://nowhere.invalid/w.safetensors"))


def test_weights_of_the_package_are_checked(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    file = tmp_path / "weights" / "w.safetensors"
    monkeypatch.setattr("importlib.resources.files", lambda name: tmp_path)
    source = source_at("package:w.safetensors")
    with pytest.raises(WeightsError, match="is missing"):
        fetch(source, system="any")
    file.write_bytes(DATA)
    assert fetch(source, system="any") == file
    file.write_bytes(DATA[:-1])
    with pytest.raises(WeightsError, match="install musicjax again"):
        fetch(source, system="any")


@pytest.mark.parametrize(
    ("address", "https"),
    [
        ("https://a.b/c", "https://a.b/c"),
        ("gs://bucket/x/y.bin", "https://storage.googleapis.com/bucket/x/y.bin"),
        ("hf://o/n/d/f.bin", "https://huggingface.co/o/n/resolve/main/d/f.bin"),
        ("hf://o/n@v1/f.bin", "https://huggingface.co/o/n/resolve/v1/f.bin"),
    ],
)
def test_addresses(address, https):
    assert download.https_address(address) == https


@pytest.mark.parametrize(
    "address", ["ftp://a/b", "hf://o/n", "w.safetensors", "file:///etc/passwd"]
)
def test_addresses_that_are_not_fetched(address):
    with pytest.raises(WeightsError, match="can be fetched"):
        download.https_address(address)


# Hugging Face's own client --------------------------------------------------------------------


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """A package huggingface_hub that hands out one file, and tells what it was asked for."""
    module = types.ModuleType("huggingface_hub")
    module.asked, module.file = [], tmp_path / "theirs" / "w.safetensors"
    module.file.parent.mkdir()
    module.file.write_bytes(DATA)

    def hf_hub_download(repository, file, *, revision):
        module.asked.append((repository, file, revision))
        return str(module.file)

    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_the_hub_s_own_client_is_taken_where_it_is(hugging_face, server):
    assert fetch(source_at("hf://owner/name@v1/w.safetensors")) == hugging_face.file
    assert hugging_face.asked == [("owner/name", "w.safetensors", "v1")]
    fetch(source_of(server))  # no other address is its business
    with pytest.raises(WeightsError, match="can be fetched"):
        fetch(source_at("hf://owner/name"))
    assert len(hugging_face.asked) == 1


def test_what_the_hub_s_client_says_is_told(hugging_face):
    def refuse(*args, **kwargs):
        raise PermissionError("the repository is gated\nand much more")

    hugging_face.hf_hub_download = refuse
    with pytest.raises(WeightsError, match=r"repository is gated\).*MUSICJAX_MIRROR") as told:
        fetch(source_at("hf://owner/name/w.safetensors"))
    assert "much more" not in str(told.value)


def test_another_file_of_the_hub_s_client_is_refused(hugging_face):
    hugging_face.file.write_bytes(DATA[:-1] + b"x")
    with pytest.raises(WeightsError, match="not the file that the card names"):
        fetch(source_at("hf://owner/name/w.safetensors"))


def test_without_the_hub_s_client_our_own_asks(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    address = f"http://127.0.0.1:{server.server_port}/w.safetensors"
    monkeypatch.setattr(download, "https_address", lambda _: address)
    assert fetch(source_at("hf://owner/name/w.safetensors")).read_bytes() == DATA


def test_a_hub_s_client_without_its_own_needs_is_told(tmp_path, monkeypatch):
    (tmp_path / "huggingface_hub.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "huggingface_hub", raising=False)
    with pytest.raises(WeightsError, match=r"a_package_that_is_not_there.*repair"):
        fetch(source_at("hf://owner/name/w.safetensors"))


# The lock -------------------------------------------------------------------------------------


def test_processes_wait_for_each_other(tmp_path):
    lock, told = tmp_path / "w.lock", tmp_path / "told"
    code = """
import sys
from pathlib import Path
from musicjax.hub import cache
print("ready", flush=True)
with cache.locked(Path(sys.argv[1])), open(sys.argv[2], "a") as file:
    file.write("other\\n")
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with cache.locked(lock):
        other = subprocess.Popen(
            [sys.executable, "-c", code, str(lock), str(told)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.3)
        told.write_text("we\n")
    other.communicate(timeout=60)
    assert told.read_text() == "we\nother\n"


def test_windows_has_a_lock_too(tmp_path, monkeypatch):
    done, held_by_others = [], [errno.EACCES, errno.EDEADLK]

    def locking(handle, how, count):
        assert (os.lseek(handle, 0, os.SEEK_CUR), count) == (0, 1)
        if how == 2 and held_by_others:
            raise OSError(held_by_others.pop(), "held")
        done.append(how)

    windows = types.SimpleNamespace(locking=locking, LK_NBLCK=2, LK_UNLCK=0)
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", windows)
    monkeypatch.setattr(cache, "_LOCK_POLL_S", 0.0)
    with cache.locked(tmp_path / "w.lock"):
        assert done == [2]
    assert done == [2, 0]
    held_by_others.append(errno.EBADF)
    with pytest.raises(OSError, match="held"), cache.locked(tmp_path / "w.lock"):
        pytest.fail("it is not locked")
