"""Files of repositories on the Hub: taken from its cache without asking anyone, else fetched once their size has been said."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pnp_irib.errors import WeightsError
from pnp_irib.files import sha256_of
from pnp_irib.hub.names import Name
from pnp_irib.hub.origin import Origin, SourceFile

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

__all__ = ["Access", "Fetched", "explained", "fetch", "hub_address", "hub_hash", "listed"]

LARGE = 50_000_000  # bytes of a download above which its size and licences are said before it begins


@dataclass(frozen=True)
class Access:
    """How the Hub is asked, as huggingface_hub names it.

    Attributes:
        token: to log in with; None: that of ``hf auth login``, if any.
        cache_dir: None: the Hub's own.
        force_download: fetch again what the cache has, and look up again what a branch stands for.
        local_files_only: never use the network.
    """

    token: str | bool | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False


@dataclass(frozen=True)
class Fetched:
    """Files of one commit of a repository, in the Hub's cache.

    Attributes:
        name: as asked for.
        commit: that it stood for.
        paths: of the files, by their names in the repository.
    """

    name: Name
    commit: str
    paths: dict[str, Path]

    @property
    def folder(self) -> Path:
        """Of the commit."""
        file, path = next(iter(self.paths.items()))
        return path.parents[file.count("/")]

    def origin(self) -> Origin:
        """The record of what was used."""
        hashes = {file: hub_hash(path) or sha256_of(path) for file, path in sorted(self.paths.items())}
        files = tuple(SourceFile(name=file, sha256=sha256) for file, sha256 in hashes.items())
        return Origin(place=str(self.name), commit=self.commit, files=files)


def fetch(
    name: Name,
    files: Sequence[str],
    *,
    optional: Sequence[str] = (),
    expected: Mapping[str, str] | None = None,
    licence: str | None = None,
    access: Access | None = None,
) -> Fetched:
    """Files of a repository.

    What the cache has is used as it is, without a look at the network: a branch stands for the commit that it stood for when
    it was fetched, until ``force_download``. A download that was cut off goes on where it ended.

    Args:
        name: of the kind "hf-hub".
        files: that are needed, by their names in the repository.
        optional: that are fetched where the repository has them.
        expected: sha256 of files, as far as they are known; where the Hub announces another, nothing is fetched.
        licence: what is known of the terms, to be said before a large download beside what the repository states.
        access: see there.

    Raises:
        WeightsError: there is no such repository, revision or file; it may not be read; the Hub cannot be reached; or what
            came is not what the Hub announced.
    """
    access = access or Access()
    if not access.force_download and (cached := _cached(name, files, optional, access)) is not None:
        return cached
    from huggingface_hub import HfApi, hf_hub_download

    options: dict[str, Any] = {"token": access.token, "cache_dir": access.cache_dir, "force_download": access.force_download}
    try:
        if access.force_download and (access.local_files_only or _offline()):
            raise WeightsError(
                f"{name}: force_download needs the network; leave out local_files_only, and unset HF_HUB_OFFLINE."
            )
        _check_online(name, access)
        info = HfApi(token=access.token).model_info(name.target, revision=name.revision, files_metadata=True)
        sizes = {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
        if missing := [file for file in files if file not in sizes]:
            raise WeightsError(
                f"{name} has no file {', '.join(missing)} at the commit {info.sha}; it holds {_some(sizes)}. "
                f"Is it the right repository?"
            )
        wanted = [*files, *(file for file in optional if file in sizes)]
        announced = {entry.rfilename: entry.lfs.sha256 for entry in info.siblings or () if entry.lfs is not None}
        for file, sha256 in (expected or {}).items():
            if announced.get(file, sha256) != sha256:
                raise WeightsError(f"{name}: its {file} has the sha256 {announced[file]}, expected {sha256}")
        there = {} if access.force_download else _present(name, wanted, access, info.sha)
        _announce(name, info, sum(sizes[file] for file in wanted if file not in there), licence)
        paths: dict[str, Path] = {}
        for file in wanted:
            paths[file] = Path(hf_hub_download(name.target, file, revision=info.sha, **options))
            _verify(name, file, paths[file], announced.get(file))
        if name.revision != info.sha:  # the cache learns what the name stands for, once all is there
            hf_hub_download(name.target, files[0], revision=name.revision, **options | {"force_download": False})
    except WeightsError:
        raise
    except Exception as error:  # the client raises errors of its own, of its HTTP library, of the system, and ValueErrors
        raise explained(name, error) from error
    return Fetched(name, str(info.sha), paths)


def listed(name: Name) -> tuple[str, ...]:
    """Names of the files of a repository, asked of the Hub: for who knows only by what there is which files to `fetch`.

    Raises:
        WeightsError: there is no such repository or revision; it may not be read; or the Hub cannot be reached.
    """
    _check_online(name, Access())
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name.target, revision=name.revision)
    except Exception as error:  # as in `fetch`
        raise explained(name, error) from error
    return tuple(entry.rfilename for entry in info.siblings or ())


def explained(name: Name, error: Exception) -> WeightsError:
    """What an error of the Hub's client means for the user."""
    from huggingface_hub import errors

    place = f"https://huggingface.co/{name.target}"
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    if isinstance(error, errors.GatedRepoError):
        said = f"{name} is gated: its owner wants terms accepted. Accept them on {place}, and log in: hf auth login"
    elif isinstance(error, errors.RepositoryNotFoundError):
        said = (
            f"there is no repository {name.target} on the Hub, or it is private. Check the spelling; for a private one log "
            f"in: hf auth login"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        said = f"{name.target} has no revision {name.revision!r}; its branches, tags and commits are on {place}/commits"
    elif isinstance(error, errors.RemoteEntryNotFoundError):
        said = f"{name}: a file that is needed is missing: {reason}"
    elif "Consistency check failed" in str(error) or type(error).__name__ == "RemoteProtocolError":
        said = f"the download of {name} ended early, again and again: {reason.rstrip('.')}. Try again later"
    elif isinstance(error, errors.HfHubHTTPError):
        status = getattr(error.response, "status_code", None)
        remedy = " Log in with a token that may do this: hf auth login" if status in (401, 403) else ""
        said = f"{name}: the Hub refused: {reason.rstrip('.')}.{remedy}"
    elif isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        said = f"{name} cannot be kept: {error.filename}: {error.strerror}. Is the disk full? HF_HOME names another place"
    elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
        said = f"{name} cannot be kept: the disk is full. HF_HOME names another place"
    elif isinstance(error, errors.HFValidationError):
        said = f"{name} is no name of a repository: {reason}"
    else:
        said = f"the Hub cannot be reached for {name}: {type(error).__name__}: {reason.rstrip('.')}. Is there a network?"
    return WeightsError(said)


def _cached(name: Name, files: Sequence[str], optional: Sequence[str], access: Access) -> Fetched | None:
    paths = _present(name, (*files, *optional), access, name.revision)
    if not all(file in paths for file in files):
        return None
    return Fetched(name, _commit_of(paths[files[0]], files[0]), paths)


def _present(name: Name, files: Sequence[str], access: Access, revision: str | None) -> dict[str, Path]:
    from huggingface_hub import try_to_load_from_cache

    place: dict[str, Any] = {"cache_dir": access.cache_dir, "revision": revision}
    found = {file: try_to_load_from_cache(name.target, file, **place) for file in files}
    return {file: Path(path) for file, path in found.items() if isinstance(path, str)}


def _commit_of(path: Path, file: str) -> str:
    """The cache keeps the files of a commit in a folder of its name."""
    return path.parents[file.count("/")].name


def _check_online(name: Name, access: Access) -> None:
    if access.local_files_only or _offline():
        raise WeightsError(
            f"{name} is not complete in the Hub's cache, and offline nothing is fetched. Fetch it once with a network: "
            f"unset HF_HUB_OFFLINE, and leave out local_files_only."
        )


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _announce(name: Name, info: ModelInfo, size: int, licence: str | None) -> None:
    """Say what is about to be fetched, where it is large."""
    if size <= LARGE:
        return
    stated = info.card_data.get("license") if info.card_data else None
    terms = [f"{stated or 'none'} as stated there", *([licence] if licence else [])]
    sys.stderr.write(f"pnp-irib: fetching {size / 1e6:,.0f} MB of {name}; licences: {', '.join(terms)}\n")
    sys.stderr.flush()


def _verify(name: Name, file: str, path: Path, announced: str | None) -> None:
    """Compare a file with the hash that the Hub announced; one of another is taken out of the cache."""
    if announced is None:
        return
    try:
        found = sha256_of(path)
    except BaseException:  # interrupted: what was not compared must not be taken for good
        path.unlink(missing_ok=True)
        raise
    if found == announced:
        return
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    raise WeightsError(
        f"{name}: what came as {file} has the sha256 {found}, the Hub announced {announced}. It was removed from the "
        f"cache; try again."
    )


def hub_hash(path: Path) -> str | None:
    """The sha256 of a large file in the Hub's cache, which keeps it under that name; None for others."""
    blob = path.resolve().name
    return blob if re.fullmatch(r"[0-9a-f]{64}", blob) else None


def hub_address(path: Path) -> tuple[str, str, str] | None:
    """Repository, commit and name of a file in the Hub's cache; None for others."""
    found = re.search(r"models--([^/\\]+)--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\](.+)$", str(path.absolute()))
    return None if found is None else (f"{found[1]}/{found[2]}", found[3], Path(found[4]).as_posix())


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return (", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")) or "nothing"
