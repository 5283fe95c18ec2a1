"""``pnp-irib train``."""

from __future__ import annotations

from pathlib import Path

from pnp_irib.cli.training import run_training
from pnp_irib.train import load_config
from pnp_irib.train import train as train_projector

__all__ = ["train"]


def train(config: Path, run: Path, *, resume: bool, max_hours: float | None, threads: int | None) -> None:
    """Read the configuration and train; prints where the projector is."""

    def start() -> Path:
        return train_projector(load_config(config), run, resume=resume, max_hours=max_hours)

    run_training(start, run, max_hours=max_hours, threads=threads)
