"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_file"]


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
