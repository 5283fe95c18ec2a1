"""``pnp-irib train-prior``."""

from __future__ import annotations

from pathlib import Path

from pnp_irib.cli.training import run_training
from pnp_irib.train.prior import load_prior_config
from pnp_irib.train.prior import train_prior as train_denoiser

__all__ = ["train_prior"]


def train_prior(config: Path, run: Path, *, resume: bool, max_hours: float | None, threads: int | None) -> None:
    """Read the configuration and train; prints where the denoiser is."""

    def start() -> Path:
        return train_denoiser(load_prior_config(config), run, resume=resume, max_hours=max_hours)

    run_training(start, run, max_hours=max_hours, threads=threads)
