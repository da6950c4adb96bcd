"""From a card's address to a checked file on this computer.

Order: inside the package, the cache, the mirror folder, the address itself. Nothing that fails its
checksum is ever handed on, and a download that broke off goes on where it stopped.
"""

import importlib.resources
from pathlib import Path

from musicjax.errors import WeightsError
from musicjax.hub import cache, gs, transfer, wheels
from musicjax.hub.transfer import Progress
from musicjax.registry import Source


def fetch(source: Source, *, system: str = "", progress: Progress | None = None) -> Path:
    """The path of a source's file or folder, sizes and checksums checked.

    `system` is the system whose folder a `package:` address is relative to. `progress` is called
    with bytes there and bytes in all while a download runs. Raises WeightsError with what to do
    when the file cannot be had.
    """
    if source.address.startswith("package:"):
        return _from_package(source, system)
    if gs.is_folder(source.address):
        return gs.fetch_folder(source, progress=progress)
    cached = cache.cached_path(source)
    damage = _drop_damaged(cached, source)
    if cached.is_file():
        return cached
    mirrored = cache.mirror_path(source)
    if mirrored is not None:
        problem = cache.fault(mirrored, source)
        if problem is None:
            return mirrored
        raise WeightsError(
            f"the file {mirrored} of the mirror folder {problem}; replace it by the file of "
            f"{source.address}."
        )
    try:
        return _download(source, cached, progress)
    except WeightsError as error:
        raise WeightsError(f"{damage}{error}") from error


def _from_package(source: Source, system: str) -> Path:
    folder = importlib.resources.files(f"musicjax.models.{system}") / "weights"
    path = Path(str(folder / cache.file_name(source)))
    problem = cache.fault(path, source) if path.is_file() else "is missing"
    if problem:
        raise WeightsError(
            f"the weights file {path} of the installed package {problem}; install musicjax again."
        )
    return path


def _drop_damaged(cached: Path, source: Source) -> str:
    """Remove a cached file that is not what it should be; a phrase for a later error."""
    if not cached.is_file():
        return ""
    problem = cache.fault(cached, source)
    if problem is None:
        return ""
    cached.unlink(missing_ok=True)
    return f"the cached file {cached} {problem} and was removed; "


def _download(source: Source, cached: Path, progress: Progress | None) -> Path:
    folder = cache.make_folder(cached.parent)
    part = folder / f"{cached.name}.part"
    with cache.locked(folder / f"{cached.name}.lock"):
        if cached.is_file():  # another process of this job fetched it meanwhile
            return cached
        hosted = _from_hugging_face(source)
        if hosted is not None:
            return hosted
        if wheels.is_member(source.address):
            wheels.bring_member(source, part, progress)
        else:
            _bring(source, part, progress)
        problem = cache.fault(part, source)
        if problem:
            part.unlink(missing_ok=True)
            raise WeightsError(
                f"the file downloaded from {source.address} {problem} and was thrown away: it is "
                "not the file that the card names. Try again; if it stays so, the file at that "
                "address has changed and a newer musicjax may know it."
            )
        part.replace(cached)
    wheels.sweep(source, folder)
    return cached


def _bring(source: Source, part: Path, progress: Progress | None) -> None:
    remote = transfer.Remote(https_address(source.address), source.size_bytes)
    try:
        transfer.bring(remote, part, progress)
    except transfer.Unreachable as error:
        refused = any(code in str(error) for code in ("401", "403"))
        login = "; a private repository needs `pip install 'musicjax[hub]'` and a login"
        why = f"{error}{login}" if refused and source.address.startswith("hf:") else str(error)
        raise WeightsError(_not_fetched(source, why)) from error


def _not_fetched(source: Source, why: str) -> str:
    return (
        f"cannot fetch {source.address} ({why}). Without a network, put that file, named "
        f"{cache.file_name(source)} (sha256 {source.sha256}), in a folder and set the environment "
        "variable MUSICJAX_MIRROR to that folder."
    )


def https_address(address: str) -> str:
    """The https form of an address: https:// as it is, gs://bucket/file, hf://owner/name/file.

    `hf://owner/name@revision/file` names a revision; without it the repository's main branch.
    """
    scheme, _, rest = address.partition("://")
    if scheme in ("https", "http") and rest:
        return address
    if scheme == "gs" and rest:
        return f"https://storage.googleapis.com/{rest}"
    if scheme == "hf" and rest.count("/") >= 2:
        repository, revision, file = _hugging_face_parts(rest)
        return f"https://huggingface.co/{repository}/resolve/{revision}/{file}"
    raise WeightsError(
        f"the address {address!r} is not one that can be fetched; known are https://, "
        "gs://bucket/file, hf://owner/name/file, pypi:wheel/member and package:file."
    )


def _hugging_face_parts(rest: str) -> tuple[str, str, str]:
    owner, name, file = rest.split("/", 2)
    name, _, revision = name.partition("@")
    return f"{owner}/{name}", revision or "main", file


def _from_hugging_face(source: Source) -> Path | None:
    """Through the hub's own client when it is installed: it knows the user's token and cache."""
    scheme, _, rest = source.address.partition("://")
    if scheme != "hf" or rest.count("/") < 2:  # the latter is told by https_address
        return None
    repository, revision, file = _hugging_face_parts(rest)
    try:
        import huggingface_hub

        path = Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    except ModuleNotFoundError as error:
        if error.name == "huggingface_hub":
            return None
        raise WeightsError(
            f"the package huggingface_hub is installed and cannot be imported ({error}); repair it "
            "by `pip install 'musicjax[hub]'`, or uninstall it: the file can be fetched without."
        ) from error
    except Exception as error:  # its own many kinds
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(_not_fetched(source, f"huggingface_hub says: {why}")) from error
    problem = cache.fault(path, source)
    if problem:
        raise WeightsError(
            f"the file {path}, which huggingface_hub keeps of {source.address}, {problem}: it is "
            "not the file that the card names. Remove it, so that it is fetched again; if it stays "
            "so, the file at that address has changed and a newer musicjax may know it."
        )
    return path
