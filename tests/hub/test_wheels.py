"""A member of a wheel on a package index: by our own client, by pip, or a sentence."""

import base64
import hashlib
import http.server
import io
import json
import os
import random
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from musicjax.errors import WeightsError
from musicjax.hub import cache, fetch, package_index, transfer, wheels
from musicjax.registry import Source

WHEEL = "toy_weights-1.2-py3-none-any.whl"
INSIDE = "toy_weights/assets/tiny.pth"
MEMBER = random.Random(0).randbytes(150_000)


def make_wheel(member=MEMBER, mode=0o100644, method=zipfile.ZIP_DEFLATED):
    """A wheel that pip takes for one: metadata, a large neighbour and the member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        info = "toy_weights-1.2.dist-info"
        metadata = "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.2\n"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("toy_weights/assets/full.pth", random.Random(1).randbytes(600_000))
        entry = zipfile.ZipInfo(INSIDE)
        entry.external_attr, entry.compress_type = mode << 16, method
        archive.writestr(entry, member)
        archive.writestr(f"{info}/RECORD", "")
    return file.getvalue()


DATA = make_wheel()


def source_of(data=DATA, member=MEMBER, inside=INSIDE):
    return Source(
        f"pypi:{WHEEL}/{inside}",
        hashlib.sha256(member).hexdigest(),
        len(member),
        wheel_sha256=hashlib.sha256(data).hexdigest(),
        wheel_bytes=len(data),
    )


class Index(http.server.ThreadingHTTPServer):
    """A simple repository that can refuse ranges, break off, ask for a password or be wrong."""

    data = DATA
    ranges = True
    speaks = "html"
    status = 0
    break_after: int | None = None  # bytes of one reply
    dies_after: int | None = None  # bytes of all files; then every reply is cut at once
    password = ""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}/simple"

    def handle_error(self, request, client_address):
        """Cut connections are meant."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Index

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.asked.append((self.path, asked))
        login = base64.b64encode(server.password.encode()).decode()
        if server.password and self.headers.get("Authorization") != f"Basic {login}":
            self.send_error(401)
        elif server.status:
            self.send_error(server.status)
        elif self.path == "/simple/toy-weights/":
            self.page()
        elif self.path == f"/files/{WHEEL}":
            self.file(asked)
        else:
            self.send_error(404)

    def page(self):
        sha256 = hashlib.sha256(self.server.data).hexdigest()
        kind, text = "text/html", f'<a href="../../files/{WHEEL}#sha256={sha256}">{WHEEL}</a>'
        if self.server.speaks == "json" and "json" in self.headers.get("Accept", ""):
            kind = "application/vnd.pypi.simple.v1+json"
            file = {"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {"sha256": sha256}}
            page = {"meta": {"api-version": "1.0"}, "name": "toy-weights", "files": [file]}
            text = json.dumps(page)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def file(self, asked):
        data, first, last = self.server.data, 0, len(self.server.data) - 1
        if asked and self.server.ranges:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), int(end or last)
            self.send_response(206)
        else:
            self.send_response(200)
        piece = data[first : last + 1]
        self.send_header("Content-Length", str(len(piece)))
        self.end_headers()
        cut = self.server.break_after
        cut = cut if cut is not None and len(piece) > cut else len(piece)
        if self.server.dies_after is not None:
            cut = min(cut, max(self.server.dies_after - self.server.sent, 0))
        self.server.sent += cut
        self.wfile.write(piece[:cut])
        if cut < len(piece):
            self.connection.close()

    def log_message(self, *args):
        """Tests are quiet."""


@pytest.fixture
def index(monkeypatch):
    served = Index()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("PIP_INDEX_URL", served.address)
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_settings(tmp_path, monkeypatch):
    """No settings but the test's."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")) or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("UV_CONFIG_FILE", str(tmp_path / "none.toml"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUSICJAX_MIRROR", raising=False)
    monkeypatch.setattr(transfer, "WAIT_S", 0.0)


@pytest.fixture
def no_pip(monkeypatch):
    monkeypatch.setattr(wheels, "_pip", lambda: None)


def left_over(source):
    """What lies in the cache beside the weights."""
    kept = cache.cached_path(source)
    return sorted(p.name for p in kept.parent.iterdir() if p != kept and p.suffix != ".lock")


# Our own client -------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["html", "json"])
def test_only_the_member_is_taken_from_a_server_that_can(index, no_pip, speaks):
    index.speaks = speaks
    told = []
    source = source_of()
    path = fetch(source, progress=lambda there, total: told.append((there, total)))
    assert path.read_bytes() == MEMBER
    assert path.name == "tiny.pth"
    assert index.sent < len(DATA) / 2
    assert told[-1][0] == told[-1][1]
    assert left_over(source) == []
    asked = len(index.asked)
    assert fetch(source) == path
    assert len(index.asked) == asked


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("ranges", [True, False])
def test_both_ways_unpack_both_kinds(index, no_pip, ranges, method):
    index.ranges, index.data = ranges, make_wheel(method=method)
    source = source_of(index.data)
    assert fetch(source).read_bytes() == MEMBER
    assert left_over(source) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_transfer_goes_on(index, no_pip, ranges):
    index.ranges = True
    index.break_after = 70_000  # larger than the blocks of the table of contents
    source = source_of()
    if not ranges:  # the wheel as a whole, of which a part is there
        index.ranges, index.break_after = False, None
    part = cache.cached_path(source).with_name(f"{WHEEL}.{'piece' if ranges else 'part'}")
    assert fetch(source).read_bytes() == MEMBER
    files = [asked for path, asked in index.asked if path.startswith("/files")]
    assert len(files) >= (4 if ranges else 2)
    assert not part.exists()


def test_a_stopped_process_left_a_piece_and_the_next_goes_on(index, no_pip):
    source = source_of()
    fetch(source)
    first = int(index.asked[-1][1].removeprefix("bytes=").split("-")[0])
    cached = cache.cached_path(source)
    cached.unlink()
    cached.with_name(f"{WHEEL}.piece").write_bytes(DATA[first : first + 50_000])
    assert fetch(source).read_bytes() == MEMBER
    assert index.asked[-1][1].startswith(f"bytes={first + 50_000}-")


def test_a_whole_wheel_that_was_left_is_used_without_a_network(no_pip):
    source = source_of()
    cached = cache.cached_path(source)
    cached.parent.mkdir(parents=True)
    cached.with_name(WHEEL).write_bytes(DATA)
    assert fetch(source).read_bytes() == MEMBER
    assert left_over(source) == []


@pytest.mark.parametrize("ranges", [True, False])
def test_a_changed_wheel_is_refused(index, no_pip, ranges):
    index.ranges, index.data = ranges, make_wheel(MEMBER[::-1])
    source = source_of()
    with pytest.raises(WeightsError, match=r"not the file that the card|not the card's") as told:
        fetch(source)
    assert "sha256" in str(told.value)
    assert not cache.cached_path(source).exists()


def test_an_index_in_folders(tmp_path, no_pip, monkeypatch):
    folder = tmp_path / "simple" / "toy-weights"
    folder.mkdir(parents=True)
    (folder / WHEEL).write_bytes(b"another")
    (tmp_path / "links").mkdir()
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "simple").as_uri())
    with pytest.raises(WeightsError, match="another file of that name"):
        fetch(source_of())
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    (tmp_path / "links" / WHEEL).write_bytes(DATA)
    assert fetch(source_of()).read_bytes() == MEMBER
    assert (tmp_path / "links" / WHEEL).read_bytes() == DATA


def test_a_password_goes_to_its_host_and_into_no_message(index, no_pip, monkeypatch, tmp_path):
    index.password = "who:s3cret@"
    with_login = index.address.replace("//", "//who:s3cret%40@")
    monkeypatch.setenv("PIP_INDEX_URL", with_login)
    assert fetch(source_of()).read_bytes() == MEMBER
    cache.cached_path(source_of()).unlink()
    monkeypatch.setenv("PIP_INDEX_URL", index.address)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login who password s3cret@\n")
    (tmp_path / "netrc").chmod(0o600)
    assert fetch(source_of()).read_bytes() == MEMBER
    cache.cached_path(source_of()).unlink()
    monkeypatch.setenv("PIP_INDEX_URL", with_login.replace("s3cret", "s3cre7"))
    with pytest.raises(WeightsError, match="401") as told:
        fetch(source_of())
    assert "s3cre7" not in str(told.value)


def test_without_pip_and_without_an_index_the_sentence_says_both(no_pip):
    with pytest.raises(WeightsError) as told:
        fetch(source_of())
    for words in ("no pip", "UV_DEFAULT_INDEX", "MUSICJAX_MIRROR", WHEEL, "toy-weights==1.2"):
        assert words in str(told.value)


@pytest.mark.parametrize("status", [404, 503])
def test_an_index_that_fails_or_has_no_such_file(index, no_pip, status):
    index.status = status
    with pytest.raises(WeightsError, match=r"no index that is configured|answered 503"):
        fetch(source_of())


def test_an_unreachable_index_names_the_file_for_the_mirror(no_pip, monkeypatch):
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    with pytest.raises(WeightsError) as told:
        fetch(source_of())
    for words in (WHEEL, source_of().wheel_sha256, "tiny.pth", "MUSICJAX_MIRROR", "127.0.0.1:9"):
        assert words in str(told.value)


# The mirror, and wheels that are not what they should be --------------------------------------


def test_the_mirror_may_hold_the_wheel_or_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path))
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    (tmp_path / WHEEL).write_bytes(DATA)
    assert fetch(source_of()).read_bytes() == MEMBER
    assert (tmp_path / WHEEL).is_file()
    cache.cached_path(source_of()).unlink()
    (tmp_path / WHEEL).write_bytes(DATA[:-1] + b"x")
    with pytest.raises(WeightsError, match="mirror folder is not the wheel"):
        fetch(source_of())
    (tmp_path / WHEEL).unlink()
    (tmp_path / "tiny.pth").write_bytes(MEMBER)
    assert fetch(source_of()) == tmp_path / "tiny.pth"


def put_in_mirror(data, tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path))
    (tmp_path / WHEEL).write_bytes(data)


def test_members_that_are_not_what_the_card_names(tmp_path, monkeypatch):
    data = make_wheel(MEMBER * 2)
    put_in_mirror(data, tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="larger than"):
        fetch(source_of(data))
    with pytest.raises(WeightsError, match=r"holds no toy_weights/gone\.pth"):
        fetch(source_of(data, inside="toy_weights/gone.pth"))
    data = make_wheel(b"../../../etc/passwd", mode=0o120777)
    put_in_mirror(data, tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="is a link or a folder"):
        fetch(source_of(data))
    put_in_mirror(b"not a zip", tmp_path, monkeypatch)
    with pytest.raises(WeightsError, match="not a whole wheel"):
        fetch(source_of(b"not a zip"))


@pytest.mark.parametrize(
    "address",
    [
        "pypi:toy-1.0.tar.gz/a.pth",
        "pypi:toy_weights-1.2-py3-none-any.whl",
        "pypi:toy_weights-1.2-py3-none-any.whl/../../a.pth",
        "pypi:toy_weights-1.2-py3-none-any.whl//etc/a.pth",
        "https://a.b/toy_weights-1.2-py3-none-any.whl/a.pth",
    ],
)
def test_addresses_that_name_no_file_in_a_wheel(address):
    with pytest.raises(WeightsError, match="does not name a file in a wheel"):
        wheels.parse_address(address)


def test_an_address_tells_all_four_parts():
    member = wheels.parse_address("pypi:toy_weights-1.2-py3-none-any.whl/a/b.pth")
    assert member == wheels.Member("toy-weights", "1.2", WHEEL, "a/b.pth")


def test_a_full_disk_says_so(tmp_path, monkeypatch):
    put_in_mirror(DATA, tmp_path, monkeypatch)
    real_open = Path.open

    def open_full(path, mode="r", *args, **kwargs):
        if path.suffix == ".part" and mode == "wb":
            raise OSError(28, "No space left on device")
        return real_open(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(WeightsError, match=r"disk is full.*MUSICJAX_CACHE"):
        fetch(source_of())


# By pip ---------------------------------------------------------------------------------------


def test_pip_is_found_without_being_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = wheels._pip()
    if command is None:
        pytest.skip("this Python carries no pip of its own")
    said = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert said.stdout.startswith("pip ")


needs_pip = pytest.mark.skipif(wheels._pip() is None, reason="there is no pip at all")


@pytest.fixture
def only_pip(monkeypatch):
    """An index of a kind that our own client does not get into."""

    def refused(errand, default):
        raise transfer.Unreachable("ours is not let in")

    monkeypatch.setattr(wheels, "_by_our_client", refused)


@needs_pip
def test_by_pip(index, only_pip):
    told = []
    source = source_of()
    path = fetch(source, progress=lambda there, total: told.append((there, total)))
    assert path.read_bytes() == MEMBER
    assert all(total == len(DATA) for _, total in told)
    assert left_over(source) == []
    path.unlink()
    index.data = make_wheel(MEMBER[::-1])
    with pytest.raises(WeightsError, match=r"not let in.*another file.*MUSICJAX_MIRROR"):
        fetch(source)
    assert left_over(source) == []


@needs_pip
def test_pip_does_not_call_a_broken_connection_another_file(index, only_pip):
    index.dies_after = 300_000
    with pytest.raises(WeightsError, match=r"broke|not enough bytes|[Ii]ncomplete"):
        fetch(source_of())


@needs_pip
@pytest.mark.parametrize("retries", ["", "0"])
def test_pip_does_not_try_for_minutes(index, only_pip, monkeypatch, retries):
    if retries:  # the user's own choice
        monkeypatch.setenv("PIP_RETRIES", retries)
    index.status = 503
    with pytest.raises(WeightsError, match="MUSICJAX_MIRROR"):
        fetch(source_of())
    assert len(index.asked) == (1 if retries else 2)


def test_with_pip_there_a_transfer_that_died_goes_on_the_next_time(index, monkeypatch):
    monkeypatch.setattr(wheels, "_pip", lambda: ["pip"])
    monkeypatch.setattr(wheels, "_by_pip", lambda pip, errand: pytest.fail("it would begin anew"))
    source = source_of()
    fetch(source)
    first, last = map(int, index.asked[-1][1].removeprefix("bytes=").split("-"))
    cache.cached_path(source).unlink()
    contents = index.sent - (last + 1 - first)  # what reading the table of contents took
    index.sent, index.dies_after = 0, contents + 60_000
    with pytest.raises(WeightsError, match="broke off after 60,000 bytes"):
        fetch(source)
    assert left_over(source) == [f"{WHEEL}.piece"]
    index.dies_after = None
    assert fetch(source).read_bytes() == MEMBER
    assert index.asked[-1][1] == f"bytes={first + 60_000}-{last}"
    assert left_over(source) == []


def test_pip_takes_over_where_our_client_is_given_nothing(index, monkeypatch):
    index.status = 401
    monkeypatch.setattr(wheels, "_pip", lambda: ["pip"])

    def with_a_keyring(pip, errand):
        errand.kept.write_bytes(DATA)
        return errand.kept

    monkeypatch.setattr(wheels, "_by_pip", with_a_keyring)
    assert fetch(source_of()).read_bytes() == MEMBER


def test_what_pip_says_becomes_a_sentence(tmp_path):
    target = tmp_path / WHEEL
    said = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    doubtful = str(wheels._pip_failed(said, target))  # pip does not tell which of the two it is
    assert "broke off" in doubtful
    assert "another file" in doubtful
    full = wheels._pip_failed("ERROR: [Errno 28] No space left on device", target)
    assert isinstance(full, WeightsError)
    assert "disk is full" in str(full)
    gone = wheels._pip_failed(
        "WARNING: Retrying (Retry(total=0)) after connection broken by x\n"
        "ERROR: Could not find a version from https://me:secret@host/simple\n"
        "ERROR: No matching distribution found for toy-weights==1.2\n",
        target,
    )
    assert "No matching distribution" in str(gone)
    assert "Retrying" in str(gone)
    assert "secret" not in str(gone)
    refused = wheels._pip_failed(
        "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by "
        "'NewConnectionError('<pip._vendor.HTTPConnection object at 0x7f>: Failed to establish a "
        "new connection: [Errno 111] Connection refused')': /simple/toy-weights/\n",
        target,
    )
    words = "pip said: Failed to establish a new connection: [Errno 111] Connection refused"
    assert str(refused) == words


def test_pip_is_told_of_the_indexes_of_uv(monkeypatch):
    monkeypatch.setenv("UV_INDEX", "mine=https://one.invalid/simple https://two.invalid/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://three.invalid/simple")
    found = [f"https://{name}.invalid/simple" for name in ("one", "two", "three")]
    assert list(package_index.uv_indexes()) == found


def test_settings_are_those_of_both_installers(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pip.conf").write_text(
        "[global]\nindex-url = https://global.invalid/simple\ntimeout = 3\n"
        "[download]\nextra_index_url = https://a.invalid\n  https://b.invalid\n"
    )
    (tmp_path / "uv.toml").write_text(
        '[[index]]\nurl = "https://last.invalid"\ndefault = true\n'
        '[[index]]\nurl = "https://first.invalid"\n[pip]\nfind-links = ["/links"]\n'
    )
    environment = {
        "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
        "UV_CONFIG_FILE": str(tmp_path / "uv.toml"),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "PIP_INDEX_URL": "https://chosen.invalid/simple",
        "PIP_TRUSTED_HOST": "chosen.invalid:8080",
        "PIP_PROXY": "http://proxy.invalid:3128",
    }
    monkeypatch.setattr(package_index.sys, "prefix", str(tmp_path / "none"))
    settings = package_index.index_settings(environment)
    assert settings.indexes[:3] == (
        "https://first.invalid",
        "https://last.invalid",
        "https://chosen.invalid/simple",
    )
    assert {"https://a.invalid", "https://b.invalid"} <= set(settings.indexes)
    assert "/links" in settings.links
    assert settings.proxy == "http://proxy.invalid:3128"
    assert settings.trusted_hosts == ("chosen.invalid:8080",)
    assert package_index.index_settings({**environment, "PIP_NO_INDEX": "1"}).indexes == ()
    assert package_index.pip_option("timeout", environment) == "3"
    del environment["PIP_INDEX_URL"]
    asked = package_index.index_settings(environment, default="https://pips.invalid/simple")
    assert "https://global.invalid/simple" in asked.indexes
    assert "https://pips.invalid/simple" not in asked.indexes
    environment["PIP_CONFIG_FILE"] = os.devnull
    asked = package_index.index_settings(environment, default="https://pips.invalid/simple")
    assert "https://pips.invalid/simple" in asked.indexes


# Two at once ----------------------------------------------------------------------------------


def test_two_processes_fetch_once(index, tmp_path):
    code = """
import sys
from musicjax.hub import fetch, wheels
from musicjax.registry import Source
wheels._pip = lambda: None
address, sha256, size, wheel_sha256, wheel_bytes = sys.argv[1:]
source = Source(address, sha256, int(size), "", wheel_sha256, int(wheel_bytes))
print(fetch(source).stat().st_size)
"""
    source = source_of()
    sizes = (str(source.size_bytes), source.wheel_sha256, str(source.wheel_bytes))
    command = [sys.executable, "-c", code, source.address, source.sha256, *sizes]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["150000"] * 2
    assert len([path for path, _ in index.asked if path.startswith("/simple")]) == 1
