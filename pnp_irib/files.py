"""Hashes of files, and files that are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["atomic_file", "sha256_of", "write_atomically"]


def sha256_of(path: Path) -> str:
    """Hex digest of a file; that of one that did not change since is remembered."""
    facts = path.stat()
    return _digest(str(path.resolve()), facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=256)
def _digest(path: str, modified: int, size: int) -> str:
    with open(path, "rb") as file:  # noqa: PTH123 - a text is what can be remembered
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(target: Path) -> Iterator[BinaryIO]:
    """A binary file that takes the place of ``target`` when the block ends well, and leaves no trace otherwise.

    It is written beside ``target`` under a hidden name, flushed to the disk, then renamed.

    Raises:
        OSError: the folder cannot be written to, or ``target`` is a folder, device or pipe.
    """
    # Renaming would put a file in the place of a device such as /dev/null.
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "a folder, device or pipe is in its place", str(target))
    temporary = target.parent / f".{target.name[:60]}.{secrets.token_hex(4)}.part"
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(target: Path, write: Callable[[str], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``target``, whose folder is made, and put it in place in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    try:
        write(temporary)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
