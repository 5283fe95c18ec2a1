"""``pnp-irib train``."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import torch

from pnp_irib.errors import ConfigError
from pnp_irib.train import load_config
from pnp_irib.train import train as run_training

__all__ = ["train"]


def train(config: Path, run: Path, *, resume: bool, max_hours: float | None, threads: int | None) -> None:
    """Read the configuration and train; prints where the projector is."""
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
        newest = run_training(load_config(config), run, resume=resume, max_hours=max_hours)
    except OSError as error:
        raise ConfigError(f"the run cannot be written: {error.filename or run}: {error.strerror or error}.") from error
    sys.stdout.write(f"{newest}\n")
