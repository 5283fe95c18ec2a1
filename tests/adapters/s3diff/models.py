"""S3Diff with the tiny weights of the golden data."""

from __future__ import annotations

import functools
from typing import Any

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.weights import load_checkpoint
from pnp_irib_s3diff.checkpoint import Trained, read_trained
from pnp_irib_s3diff.estimator import DegradationEstimator
from pnp_irib_s3diff.restorer import S3Diff
from tests.golden import golden_folder, missing

MODEL = golden_folder("s3diff") / "model"
BASE, CHECKPOINT, ESTIMATOR = MODEL / "sd-turbo", MODEL / "s3diff.pkl", MODEL / "de_net.pth"


def ready() -> None:
    """Skip, or in CI fail, where the golden data is not."""
    if not MODEL.is_dir():
        missing("s3diff")


@functools.cache
def loaded() -> tuple[StableDiffusion, Trained, DegradationEstimator]:
    """Reading the files takes longer than most tests."""
    estimator = DegradationEstimator.load(load_checkpoint(ESTIMATOR), source=str(ESTIMATOR))
    return StableDiffusion.load(BASE), read_trained(CHECKPOINT), estimator


def restorer(parts: tuple[StableDiffusion, Trained, DegradationEstimator] | None = None, **options: Any) -> S3Diff:
    """On ``parts``, or those that all tests share."""
    return S3Diff(*(loaded() if parts is None else parts), **{"dtype": "float32"} | options)
