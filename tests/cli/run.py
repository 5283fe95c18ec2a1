"""The command line as users run it: real processes, real files, the smallest real restorer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

Crop = Callable[..., Path]
COMMAND = str(Path(sys.executable).with_name("pnp-irib"))
FAST = ("--restorer", "realesr-animevideov3", "--projector", "none", "--device", "cpu")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}


def pnp(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, env=ENVIRONMENT, stdin=subprocess.DEVNULL
    )
    assert "Traceback" not in done.stdout + done.stderr
    return done


def restore(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return pnp("restore", *arguments, *FAST)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        return image.size
