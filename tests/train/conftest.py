"""A training run small enough for seconds: real photographs, a real restorer, a tiny projector."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def config_file(tmp_path: Path, shared_dir: Path) -> Path:
    """A configuration beside a folder of three photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sorted((shared_dir / "data" / "train").glob("*.webp"))[:3]:
        shutil.copy(path, folder)
    content: dict[str, Any] = {
        "seed": 3,
        "projector": {
            "widths": [8, 16],
            "encoder_blocks": [1],
            "middle_blocks": 1,
            "decoder_blocks": [1],
            "condition_width": 8,
            "prompt_buckets": 64,
        },
        "data": {"folder": "photographs", "crop": 64},
        "mixture": [
            {"profile": "extreme", "share": 0.5, "gate": 1},
            {"profile": "light", "share": 0.4, "target": "input", "gate": 0},
            {"profile": None, "share": 0.1, "target": "input"},
        ],
        "prompts": {"extractor": "fixed:a photograph", "dropout": 0.5},
        "restorer": "realesrgan-x4plus",
        "through": {"name": "realesr-animevideov3", "options": {"dtype": "float32"}},
        "objective": {"lq": 1.0, "hq": 0.5, "hq_perceptual": 0.05, "lq_perceptual": 0.05, "gate": 0.1},
        "hq_pictures": 2,
        "hq_crop": 12,
        "steps": 12,
        "batch": 4,
        "lr": 1e-3,
        "warmup": 2,
        "checkpoint_every": 4,
        "log_every": 1,
    }
    path = tmp_path / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
