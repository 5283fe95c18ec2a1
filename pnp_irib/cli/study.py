"""``pnp-irib study``."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from pathlib import Path

import torch

from pnp_irib.errors import ConfigError
from pnp_irib.studies import OutOfTimeError, run_study

__all__ = ["run"]


def run(config: Path, output: Path, *, threads: int | None, max_hours: float | None, limit: int | None) -> int:
    """Carry out the study; prints where its page is.

    Returns:
        The exit code: 0, or 1 when the time was up first.

    Raises:
        ConfigError: an option is impossible, or the page cannot be written; said before anything is measured.
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
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        raise ConfigError(f"the page cannot be written to {output}: {error.strerror}.") from error
    try:
        written = run_study(config, output, max_hours=max_hours, limit=limit)
    except OutOfTimeError:
        sys.stderr.write("pnp-irib: the time is up before the study is done; the same command goes on from here.\n")
        return 1
    sys.stdout.writelines(f"{path}\n" for path in written)
    return 0
