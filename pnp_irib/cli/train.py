"""``pnp-irib train``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import torch

from pnp_irib.train import load_config
from pnp_irib.train import train as run_training

__all__ = ["train"]


def train(config: Path, run: Path, *, resume: bool, max_hours: float | None, threads: int | None) -> None:
    """Read the configuration and train; prints where the projector is."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    if threads is not None:
        torch.set_num_threads(threads)
    newest = run_training(load_config(config), run, resume=resume, max_hours=max_hours)
    sys.stdout.write(f"{newest}\n")
