"""A package index, asked as pip and uv ask it: by the user's own settings, for one file.

It reads what the two installers are told in the environment and in their files of settings, and
speaks the simple repository API (PEP 503 HTML, PEP 691 JSON), folders and `file://` indexes
included. It knows no index of its own accord.
"""

import base64
import configparser
import functools
import html.parser
import json
import netrc
import os
import re
import ssl
import sys
import tomllib
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from musicjax.hub.transfer import TIMEOUT_S, Unreachable

_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_JSON}, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"
_PAGE_TIMEOUT_S = 10.0  # pages are small; without a network the sentence should come soon
_SECTIONS = ("global", "download")  # of pip's files, in the order in which they are overruled


@dataclass(frozen=True)
class IndexSettings:
    """What the user has told an installer about where packages come from.

    indexes are roots of simple repositories and links folders or pages with files, both in the
    order in which they are asked. certificates is a file of trusted authorities, trusted_hosts
    are those whose certificate is not looked at.
    """

    indexes: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    proxy: str = ""
    certificates: str = ""
    trusted_hosts: tuple[str, ...] = ()


def index_settings(
    environment: Mapping[str, str] = os.environ, *, default: str = ""
) -> IndexSettings:
    """The settings of pip (PIP_*, pip.conf) and of uv (UV_*, uv.toml), uv's indexes first.

    All indexes of both are kept: a file is known by its checksum, so it does not matter which of
    them gives it. `default` is what pip asks when it is told of no index.
    """
    pip, uv = _pip_options(environment), _uv_options(environment)
    isolated = pip.get("no-index", "").lower() in ("1", "true", "yes", "on")
    roots = [*uv_indexes(environment), *(pip.get("index-url", "") or default).split()]
    roots += pip.get("extra-index-url", "").split()
    return IndexSettings(
        indexes=() if isolated else tuple(dict.fromkeys(roots)),
        links=tuple(dict.fromkeys([*uv["find-links"], *pip.get("find-links", "").split()])),
        proxy=pip.get("proxy", ""),
        certificates=pip.get("cert", "") or environment.get("REQUESTS_CA_BUNDLE", ""),
        trusted_hosts=(*pip.get("trusted-host", "").split(), *uv["allow-insecure-host"]),
    )


def uv_indexes(environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The indexes that uv alone was told about, for a pip that is to ask them as well."""
    uv = _uv_options(environment)
    return tuple(dict.fromkeys([*uv["index"], *uv["extra-index-url"], *uv["index-url"]]))


def pip_option(name: str, environment: Mapping[str, str] = os.environ) -> str:
    """One of pip's settings by the long name of its option; empty where it is not set."""
    return _pip_options(environment).get(name, "")


def _pip_options(environment: Mapping[str, str]) -> dict[str, str]:
    """pip's options by their long names; later files overrule earlier ones, the environment all."""
    options: dict[str, str] = {}
    for path in _pip_files(environment):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, OSError, UnicodeDecodeError):
            continue  # pip would stop here; the environment and the other files may be enough
        for section in _SECTIONS:
            if parser.has_section(section):
                options |= {k.replace("_", "-"): v for k, v in parser.items(section)}
    for name, value in environment.items():
        if name.startswith("PIP_") and value:
            options[name.removeprefix("PIP_").lower().replace("_", "-")] = value
    return options


def _pip_files(environment: Mapping[str, str]) -> list[Path]:
    """Where pip looks for its settings: system, user, this environment, PIP_CONFIG_FILE."""
    chosen = environment.get("PIP_CONFIG_FILE", "")
    if chosen == os.devnull:
        return []
    home = Path.home()
    if sys.platform == "win32":
        system = [Path(environment.get("PROGRAMDATA", "C:/ProgramData")) / "pip" / "pip.ini"]
        user = [home / "pip" / "pip.ini", Path(environment.get("APPDATA", home)) / "pip/pip.ini"]
        own = Path(sys.prefix) / "pip.ini"
    else:
        folders = environment.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep)
        system = [Path(folder) / "pip" / "pip.conf" for folder in folders]
        system.append(Path("/etc/pip.conf"))
        settings = Path(environment.get("XDG_CONFIG_HOME") or home / ".config")
        user = [home / ".pip" / "pip.conf", settings / "pip" / "pip.conf"]
        if sys.platform == "darwin":
            system.append(Path("/Library/Application Support/pip/pip.conf"))
            user.append(home / "Library/Application Support/pip/pip.conf")
        own = Path(sys.prefix) / "pip.conf"
    return [*system, *user, own, *([Path(chosen)] if chosen else [])]


def _uv_options(environment: Mapping[str, str]) -> dict[str, list[str]]:
    """uv's settings: each of its lists of addresses, from the environment else from uv.toml."""
    found: dict[str, list[str]] = {
        "index": [],
        "extra-index-url": [],
        "index-url": [],
        "find-links": [],
        "allow-insecure-host": [],
    }
    home = Path.home()
    own = Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "uv" / "uv.toml"
    if sys.platform == "win32":
        own = Path(environment.get("APPDATA", home)) / "uv" / "uv.toml"
    chosen = environment.get("UV_CONFIG_FILE", "")
    for path in [Path(chosen)] if chosen else [own, Path("/etc/uv/uv.toml")]:
        try:
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        for table in (document.get("pip"), document):
            for key, value in (table if isinstance(table, dict) else {}).items():
                if key in found and key != "index" and not found[key]:
                    found[key] = [value] if isinstance(value, str) else [str(v) for v in value]
        if not found["index"] and isinstance(document.get("index"), list):
            tables = [e for e in document["index"] if isinstance(e, dict) and "url" in e]
            found["index"] = [e["url"] for e in sorted(tables, key=lambda e: e.get("default", 0))]
    names = {
        "UV_INDEX": "index",
        "UV_EXTRA_INDEX_URL": "extra-index-url",
        "UV_INDEX_URL": "index-url",
        "UV_DEFAULT_INDEX": "index-url",  # the newer name wins
        "UV_FIND_LINKS": "find-links",
        "UV_INSECURE_HOST": "allow-insecure-host",
    }
    for name, key in names.items():
        if environment.get(name):
            entries = re.split(r"[\s,]+" if key == "find-links" else r"\s+", environment[name])
            found[key] = [_unnamed(entry) for entry in entries if entry]
    return found


def _unnamed(entry: str) -> str:
    """uv allows `name=address`."""
    name, _, address = entry.partition("=")
    return address if re.fullmatch(r"[\w.-]+", name) and "://" in address else entry


# Asking ---------------------------------------------------------------------------------------


class Client:
    """Opens addresses with the settings' proxy, certificates and the user's credentials."""

    def __init__(self, settings: IndexSettings) -> None:
        self.settings = settings

    def open(
        self, address: str, headers: Mapping[str, str], *, timeout_s: float = TIMEOUT_S
    ) -> Any:
        """An open reply. Credentials in the address or in .netrc go to its host only."""
        parts = urllib.parse.urlsplit(address)
        host = parts.netloc.rpartition("@")[2]
        request = urllib.request.Request(parts._replace(netloc=host).geturl(), headers=headers)
        if login := _login(parts):
            request.add_unredirected_header("Authorization", f"Basic {login}")
        return self._opener(parts.hostname or "").open(request, timeout=timeout_s)

    @functools.cache  # noqa: B019 - a client lives as long as one download
    def _opener(self, host: str) -> urllib.request.OpenerDirector:
        settings = self.settings
        handlers: list[urllib.request.BaseHandler] = []
        if settings.proxy:
            proxies = {"http": settings.proxy, "https": settings.proxy}
            handlers.append(urllib.request.ProxyHandler(proxies))
        context = ssl.create_default_context(cafile=settings.certificates or None)
        if host in {name.partition(":")[0] for name in settings.trusted_hosts}:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        handlers.append(urllib.request.HTTPSHandler(context=context))
        return urllib.request.build_opener(*handlers)

    def files(self, distribution: str) -> Iterator[tuple[str, str]]:
        """(name, address) of every file of a distribution, in the order they are to be tried.

        Raises Unreachable, after the others were asked, when an index could not be reached.
        """
        unreachable = []
        project = re.sub(r"[-_.]+", "-", distribution).lower()
        pages = list(self.settings.links)
        pages += [f"{root.rstrip('/')}/{project}/" for root in self.settings.indexes]
        for page in pages:
            try:
                yield from self._page(page)
            except urllib.error.HTTPError as error:
                if error.code not in (404, 410):  # there the index does not have it
                    unreachable.append(f"{hidden(page)} answered {error.code} {error.reason}")
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                unreachable.append(f"{hidden(page)}: {reason}")
        if unreachable:
            raise Unreachable("; ".join(unreachable))

    def _page(self, page: str) -> Iterator[tuple[str, str]]:
        folder = local_path(page)
        if folder is not None:
            if (folder / "index.html").is_file():
                text = (folder / "index.html").read_text(encoding="utf-8")
                yield from _links(text, (folder / "index.html").absolute().as_uri())
            elif folder.is_file():
                yield from _links(folder.read_text(encoding="utf-8"), folder.absolute().as_uri())
            elif folder.is_dir():
                yield from ((path.name, path.absolute().as_uri()) for path in folder.iterdir())
            return
        headers = {"Accept": _ACCEPT, "User-Agent": "musicjax"}
        with self.open(page, headers, timeout_s=_PAGE_TIMEOUT_S) as reply:
            text, base = reply.read().decode("utf-8", "replace"), _with_login(reply.geturl(), page)
            if "json" in reply.headers.get("Content-Type", ""):
                for file in json.loads(text).get("files", []):
                    yield str(file["filename"]), urllib.parse.urljoin(base, str(file["url"]))
            else:
                yield from _links(text, base)


def _links(text: str, base: str) -> Iterator[tuple[str, str]]:
    links: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            nonlocal base
            target = dict(attrs).get("href") or ""
            if tag == "base" and target:
                base = urllib.parse.urljoin(base, target)
            elif tag == "a" and target:
                links.append(target)

    Reader().feed(text)
    for link in links:
        address = urllib.parse.urljoin(base, link.partition("#")[0])
        yield urllib.parse.unquote(urllib.parse.urlsplit(address).path).rpartition("/")[2], address


def local_path(address: str) -> Path | None:
    """The path of a file:// address or of a plain path; None for an address of the network."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file":
        return Path(urllib.request.url2pathname(parts.path))
    return Path(address).expanduser() if "://" not in address else None


def hidden(text: str) -> str:
    """The text with passwords in addresses taken out, fit for a message."""
    return re.sub(r"(?<=://)[^/@\s]+@", "", text)


def _login(parts: urllib.parse.SplitResult) -> str:
    """User and password of an address, its own or from .netrc, as HTTP wants them; or empty."""
    user, password = parts.username, parts.password
    if user is None:
        try:
            entry = netrc.netrc(os.environ.get("NETRC")).authenticators(parts.hostname or "")
        except (OSError, netrc.NetrcParseError):
            entry = None
        if entry is None:
            return ""
        user, password = entry[0], entry[2]
    else:
        user, password = urllib.parse.unquote(user), urllib.parse.unquote(password or "")
    return base64.b64encode(f"{user}:{password or ''}".encode()).decode("ascii")


def _with_login(address: str, given: str) -> str:
    """An address of the same host keeps the credentials of the one that led to it."""
    found, own = urllib.parse.urlsplit(address), urllib.parse.urlsplit(given)
    if "@" in own.netloc and found.netloc == own.netloc.rpartition("@")[2]:
        return found._replace(netloc=own.netloc).geturl()
    return address
