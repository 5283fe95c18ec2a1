"""What the commands that train have in common."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from pnp_irib.errors import ConfigError

__all__ = ["run_training"]


def run_training(start: Callable[[], Path], run: Path, *, max_hours: float | None, threads: int | None) -> None:
    """Check the options, train, and print where the newest checkpoint is.

    Args:
        start: trains; returns that place.
        run: run directory.
        max_hours: of the command line.
        threads: likewise.

    Raises:
        ConfigError: an option is impossible, or the run directory cannot be written.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if max_hours is not None and not max_hours > 0:
        raise ConfigError(f"--max-hours {max_hours}: expected a number above 0.")
    cores = os.cpu_count() or 1
    if threads is not None and threads > cores:
        raise ConfigError(f"--threads {threads}: this machine has {cores} CPU cores.")
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        newest = start()
    except OSError as error:
        raise ConfigError(f"the run cannot be written: {error.filename or run}: {error.strerror or error}.") from error
    sys.stdout.write(f"{newest}\n")
