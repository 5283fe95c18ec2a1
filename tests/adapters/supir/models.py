"""SUPIR with the tiny weights of the golden data."""

from __future__ import annotations

import functools
from typing import Any

import torch

from pnp_irib.diffusion.xl import StableDiffusionXL
from pnp_irib_supir.checkpoint import read_supir
from pnp_irib_supir.networks import Networks
from pnp_irib_supir.restorer import Supir
from tests.golden import golden_folder, missing

MODEL = golden_folder("supir") / "model"
CHECKPOINT = MODEL / "SUPIR-v0Q.ckpt"
SDXL = MODEL / "sdxl"


def ready() -> None:
    """Skip, or in CI fail, where the golden data is not."""
    if not MODEL.is_dir():
        missing("supir")


@functools.cache
def loaded() -> tuple[StableDiffusionXL, Networks, Any]:
    """Reading the files takes longer than most tests."""
    return fresh()


def fresh() -> tuple[StableDiffusionXL, Networks, Any]:
    """Modules that no other test shares."""
    base = StableDiffusionXL.load(SDXL)
    return base, *read_supir(CHECKPOINT, base.unet, base.vae, dtype=torch.float32)


def restorer(parts: tuple[StableDiffusionXL, Networks, Any] | None = None, **options: Any) -> Supir:
    """Small: pictures of at least 64 pixels, not 1024; two steps, not 50. On ``parts``, or those that all tests share."""
    small: dict[str, Any] = {"process_size": 64, "num_inference_steps": 2, "dtype": "float32"}
    return Supir(*(loaded() if parts is None else parts), **small | options)
