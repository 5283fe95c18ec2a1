"""Names of things that are loaded: registered, in a local folder, or on the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pnp_irib.errors import ConfigError

__all__ = ["Name", "parse_name", "repository", "valid_repository"]

HUB = r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?"


@dataclass(frozen=True)
class Name:
    """A parsed name. ``kind``: "name" (registered or bundled), "local-dir" or "hf-hub"."""

    kind: str
    target: str
    revision: str | None = None

    def __str__(self) -> str:
        prefix = "" if self.kind == "name" else f"{self.kind}:"
        return f"{prefix}{self.target}" + (f"@{self.revision}" if self.revision else "")


def parse_name(text: str) -> Name:
    """Read ``name``, ``hf-hub:owner/repo[@revision]``, ``local-dir:path`` or a bare ``owner/repo[@revision]``.

    Raises:
        ConfigError: it is none of these; a path needs the prefix ``local-dir:``.
    """
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "local-dir" and rest:
        return Name("local-dir", rest)
    if colon and prefix == "hf-hub" and (match := re.fullmatch(HUB, rest)) and valid_repository(match["repo"]):
        return Name("hf-hub", match["repo"], match["revision"])
    if re.fullmatch(r"[a-z0-9][a-z0-9._+-]*", text):
        return Name("name", text)
    bare = not text.startswith((".", "/", "~")) and not Path(text).exists()
    if bare and (match := re.fullmatch(HUB, text)) and valid_repository(match["repo"]):
        return Name("hf-hub", match["repo"], match["revision"])
    raise ConfigError(
        f"{text!r} is not a name. Expected a name, hf-hub:owner/repo[@revision] or local-dir:path"
        + (f"; for this folder write 'local-dir:{text}'." if Path(text).exists() else ".")
    )


def repository(repo_id: str) -> Name:
    """The repository ``owner/name`` of the Hub, to push to.

    Raises:
        ConfigError: it is no such name.
    """
    match = re.fullmatch(HUB, repo_id.removeprefix("hf-hub:"))
    if match is None or match["revision"] or not valid_repository(match["repo"]):
        raise ConfigError(f"{repo_id!r} is no repository to push to; expected owner/name, without a revision.")
    return Name("hf-hub", match["repo"])


def valid_repository(repo: str) -> bool:
    """Whether the Hub allows such a name, ``owner/name``."""
    parts = repo.split("/")
    return (
        len(parts) == 2
        and len(repo) <= 96
        and not re.search(r"--|\.\.", repo)
        and not repo.endswith(".git")
        and all(re.fullmatch(r"\w([\w.-]*\w)?", part, re.ASCII) for part in parts)
    )
