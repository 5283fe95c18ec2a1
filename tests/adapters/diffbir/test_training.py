"""A projector is trained through DiffBIR: gradients of the last step alone, behind the cleaner; the base lies in a folder."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import DDPMScheduler

from pnp_irib.projectors.loading import load_projector
from pnp_irib.train import load_config, train
from tests.adapters.diffbir.models import CONTROLNET, TOKENIZER, file, loaded

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
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted((shared_dir / "data" / "dev").glob("*.webp"))[:2]:
        shutil.copyfile(path, photographs / path.name)
    files = {"base": base_in_folder(tmp_path / "base"), "control": file(CONTROLNET), "cleaner": file(SWINIR)}
    options: dict[str, Any] = {name: str(path) for name, path in files.items()}
    options |= {"process_size": 64, "num_inference_steps": 2, "color": "none"}  # no way around the networks
    config = {
        "projector": {
            "widths": [8, 8],
            "encoder_blocks": [1],
            "middle_blocks": 1,
            "decoder_blocks": [1],
            "condition_width": 8,
        },
        "data": {"folder": str(photographs), "crop": 64},
        "mixture": [{"profile": "extreme", "share": 1, "gate": 1}],
        "restorer": "diffbir",
        "through": {"name": "diffbir", "options": options},
        "objective": {"lq": 0, "hq": 1.0, "gate": 0},
        "gradient_steps": 1,
        "steps": 2,
        "checkpoint_every": 1,
        "ema": 0,
        "batch": 1,
        "lr": 0.001,
        "warmup": 1,
    }
    settings = tmp_path / "train.yaml"
    settings.write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.INFO):
        train(load_config(settings), tmp_path / "run")
    projector = load_projector(f"local-dir:{tmp_path / 'run' / 'projector'}")
    steps = [load_projector(f"local-dir:{folder}") for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    first, last = (dict(one.named_parameters()) for one in (steps[0], projector))
    assert len(steps) == 2
    assert [name for name, value in last.items() if not torch.equal(value, first[name])]  # by the term behind DiffBIR alone
    assert projector.provenance.lq_profile is not None
    assert projector.provenance.lq_profile.name == "standard"
    unchanged = caplog.text.partition("bit for bit unchanged")[2]
    for part in ("AutoencoderKL", "Networks", "Cleaner"):
        assert part in unchanged
