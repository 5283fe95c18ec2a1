"""A projector is trained through DiffBIR: gradients of the last step alone, behind the cleaner; the base lies in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import DDPMScheduler

from tests.adapters.diffbir.models import CONTROLNET, TOKENIZER, file, loaded
from tests.adapters.training import check_training

SWINIR = "realesrgan_s4_swinir_100k.pth"
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def base_in_folder(folder: Path) -> Path:
    """The tiny base of version 2.1 in the layout of diffusers, as converters write it."""
    base, _ = loaded()
    for name, part in (("text_encoder", base.text.encoder), ("vae", base.vae), ("unet", base.unet)):
        part.save_pretrained(folder / name)
    scheduler: Any = DDPMScheduler(**BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True)
    scheduler.save_pretrained(folder / "scheduler")
    (folder / "tokenizer").symlink_to(TOKENIZER)
    return folder


def test_a_projector_is_trained_through_it(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = {"base": base_in_folder(tmp_path / "base"), "control": file(CONTROLNET), "cleaner": file(SWINIR)}
    options: dict[str, Any] = {name: str(path) for name, path in files.items()}
    options |= {"process_size": 64, "num_inference_steps": 2, "color": "none"}  # no way around the networks
    parts = ("AutoencoderKL", "Networks", "Cleaner")
    check_training("diffbir", options, shared_dir, tmp_path, caplog, unchanged=parts, gradient_steps=1)
