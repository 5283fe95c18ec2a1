"""Small real studies: cut-outs of two photographs, a real restorer, training runs of two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pnp_irib.images.io import read_picture, write_picture
from tests.bench.conftest import tiny_projector

RESTORER = "realesr-animevideov3"
TRAINING: dict[str, Any] = {
    "projector": {
        "widths": [8, 16],
        "encoder_blocks": [1],
        "middle_blocks": 1,
        "decoder_blocks": [1],
        "condition_width": 8,
        "prompt_buckets": 64,
    },
    "data": {"folder": "photographs", "crop": 64},
    "mixture": [{"profile": "extreme", "share": 1.0, "gate": 1}],
    "restorer": RESTORER,
    "objective": {"lq": 1.0, "hq": 0.5, "gate": 0.1},
    "hq_crop": 8,
    "steps": 2,
    "batch": 2,
    "lr": 1e-3,
    "warmup": 1,
    "checkpoint_every": 1,
}


@pytest.fixture(scope="session")
def cut_outs(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Path:
    """Cut-outs of 128 x 96 and 96 x 128 pixels."""
    folder = tmp_path_factory.mktemp("studies") / "photographs"
    folder.mkdir()
    sources = sorted((shared_dir / "data" / "dev").glob("kodak_*.webp"))[:2]
    for source, (height, width) in zip(sources, ((128, 96), (96, 128)), strict=True):
        write_picture(read_picture(source).rgb[..., 100 : 100 + height, 50 : 50 + width], folder / f"{source.stem}.png")
    return folder


@pytest.fixture
def study_folder(tmp_path: Path, cut_outs: Path) -> Path:
    """A folder with photographs and a training configuration beside them."""
    (tmp_path / "photographs").symlink_to(cut_outs)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(TRAINING))
    return tmp_path


@pytest.fixture(scope="session")
def listening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector that changes pictures, and that hears its prompt."""
    generator = torch.Generator().manual_seed(1)
    projector = tiny_projector()
    with torch.no_grad():
        projector.head.weight.normal_(0, 0.1, generator=generator)
        projector.prompt.words.weight.normal_(0, 3, generator=generator)
        for parameter in projector.middle.film.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return projector.save_pretrained(tmp_path_factory.mktemp("listening"))


def written(folder: Path, name: str, content: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def comparison(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "kind": "comparison",
        "title": "A small study",
        "data": "photographs",
        "conditions": {"extreme": "extreme"},
        "reference": "alone",
        "arms": {
            "alone": {"restorer": RESTORER, "projector": "none"},
            "trained": {"train": "train.yaml", "seeds": [0, 1]},
            "finetuned": {"finetune": "train.yaml"},
        },
    }
    return content | changes
