"""A folder of a bucket: listed, fetched over https, every file held to the bucket's checksum."""

import base64
import hashlib
import http.server
import json
import struct
import threading
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from musicjax.errors import WeightsError
from musicjax.hub import cache, fetch, gs, transfer
from musicjax.hub.crc32c import crc32c
from musicjax.hub.fingerprint import fingerprint
from musicjax.registry import Source

ADDRESS = "gs://mt3/checkpoints/mt3/"
FILES = {
    "checkpoint": b"index" * 1000,
    "target.encoder.encoder_norm.scale/.zarray": b"{}",
    "target.encoder.encoder_norm.scale/0": bytes(range(256)) * 40,
    "target.decoder.logits_dense.kernel/0.0": b"x y+z",
    "empty": b"",
}


class Bucket(http.server.ThreadingHTTPServer):
    """Answers as the storage service does: a listing in pages of two, and the objects."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(FILES)
        self.sent = dict(FILES)  # what comes instead, where it differs
        self.asked: list[str] = []
        self.prefix = "checkpoints/mt3/"
        self.composed: set[str] = set()  # objects without an MD5

    def handle_error(self, request, client_address):
        """Cut connections are meant."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Bucket

    def do_GET(self):
        self.server.asked.append(self.path)
        url = urlsplit(self.path)
        if url.path == "/storage/v1/b/mt3/o":
            self.reply(json.dumps(self.listing(parse_qs(url.query))).encode())
            return
        name = unquote(url.path).removeprefix(f"/mt3/{self.server.prefix}")
        if name in self.server.sent:
            self.reply(self.server.sent[name])
        else:
            self.send_error(404)

    def listing(self, query):
        assert query["prefix"] == [self.server.prefix]
        assert "md5Hash" in query["fields"][0]
        names = sorted(self.server.files)
        start = int(query.get("pageToken", ["0"])[0])
        answer = {"items": [self.item(name) for name in names[start : start + 2]]}
        if start == 0:  # what a console leaves behind
            answer["items"].append({"name": f"{self.server.prefix}sub/", "size": "0"})
        if start + 2 < len(names):
            answer["nextPageToken"] = str(start + 2)
        return answer

    def item(self, name):
        data = self.server.files[name]
        item = {"name": self.server.prefix + name, "size": str(len(data))}
        item["crc32c"] = base64.b64encode(struct.pack(">I", crc32c(data))).decode()
        if name not in self.server.composed:
            item["md5Hash"] = base64.b64encode(hashlib.md5(data).digest()).decode()
        return item

    def reply(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Tests are quiet."""


@pytest.fixture
def bucket(monkeypatch):
    served = Bucket()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(gs, "HOST", f"http://127.0.0.1:{served.server_port}")
    yield served
    served.shutdown()
    served.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MUSICJAX_MIRROR", raising=False)
    monkeypatch.setattr(transfer, "WAIT_S", 0.0)


def contents(folder):
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_folder_is_fetched_once(bucket):
    told = []
    source = Source(ADDRESS, "", sum(map(len, FILES.values())))
    folder = fetch(source, progress=lambda there, total: told.append((there, total)))
    assert contents(folder) == FILES
    assert folder.name == "mt3"
    assert told[-1] == (source.size_bytes, source.size_bytes)
    asked = len(bucket.asked)
    assert asked == 3 + len(FILES) - 1  # pages, and files that are not empty
    assert fetch(source) == folder
    assert len(bucket.asked) == asked


def test_a_damaged_file_of_the_cache_is_fetched_again(bucket):
    source = Source(ADDRESS, "", 0)
    folder = fetch(source)
    (folder / "checkpoint").write_bytes(b"INDEX" * 1000)
    bucket.asked.clear()
    assert contents(fetch(source)) == FILES
    assert [path for path in bucket.asked if "/o?" not in path] == [
        "/mt3/checkpoints/mt3/checkpoint"
    ]


@pytest.mark.parametrize("composed", [False, True])
def test_files_that_come_damaged_are_all_named(bucket, composed):
    """By MD5, and by CRC-32C where the bucket has no MD5."""
    bucket.sent["checkpoint"] = b"INDEX" * 1000
    bucket.sent["target.encoder.encoder_norm.scale/0"] = bytes(256 * 40)
    bucket.composed = set(FILES) if composed else set()
    source = Source(ADDRESS, "", 0)
    with pytest.raises(WeightsError) as error:
        fetch(source)
    message = str(error.value)
    assert "2 of the 5 files" in message
    assert "checkpoint has another checksum" in message
    assert "scale/0 has another checksum" in message
    assert not (cache.cached_path(source) / "checkpoint").exists()
    bucket.sent = dict(FILES)
    bucket.asked.clear()
    assert contents(fetch(source)) == FILES
    assert len([path for path in bucket.asked if "/o?" not in path]) == 2  # what was good stays


def test_a_card_can_pin_the_folder(bucket, tmp_path):
    folder = fetch(Source(ADDRESS, "", 0))
    lines = [f"{hashlib.sha256(FILES[n]).hexdigest()}  {n}\n" for n in sorted(FILES)]
    pin = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert fingerprint(folder) == pin
    assert contents(fetch(Source(ADDRESS, pin, 0))) == FILES
    with pytest.raises(WeightsError, match="not the one that the card names"):
        fetch(Source(ADDRESS, "0" * 64, 0))
    with pytest.raises(WeightsError, match="15,247 bytes in all and the card names 7"):
        fetch(Source(ADDRESS, "1" * 64, 7))


def test_without_a_network_the_mirror_folder_serves(tmp_path, monkeypatch):
    monkeypatch.setattr(gs, "HOST", "http://127.0.0.1:9")
    source = Source(ADDRESS, "", 0)
    with pytest.raises(WeightsError, match="MUSICJAX_MIRROR"):
        fetch(source)
    mirrored = tmp_path / "mirror" / "mt3"
    mirrored.mkdir(parents=True)
    (mirrored / "checkpoint").write_bytes(b"index")
    monkeypatch.setenv("MUSICJAX_MIRROR", str(tmp_path / "mirror"))
    assert fetch(source) == mirrored


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "a\\b", "c:evil"])
def test_no_name_leads_out_of_the_folder(bucket, name):
    bucket.files[name] = b"evil"
    with pytest.raises(WeightsError, match="lead out of its folder"):
        fetch(Source(ADDRESS, "", 0))


def test_an_empty_folder_and_an_answer_that_is_no_listing(bucket, monkeypatch):
    bucket.files = {}
    with pytest.raises(WeightsError, match="no files at gs://mt3"):
        fetch(Source(ADDRESS, "", 0))
    monkeypatch.setattr(Handler, "listing", lambda *_: ["not", "it"])
    with pytest.raises(WeightsError, match="is no listing"):
        fetch(Source(ADDRESS, "", 0))
