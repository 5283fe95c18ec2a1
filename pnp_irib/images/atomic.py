"""Files that are whole or absent."""

from __future__ import annotations

import os
import tempfile
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
        OSError: the folder cannot be written to.
    """
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:60]}.", suffix=".part")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a picture gets the permissions that the user's umask asks for
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        Path(temporary).replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
