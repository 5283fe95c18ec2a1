"""A projector is trained through S3Diff, and its scores."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from pnp_irib.projectors.loading import load_projector
from pnp_irib.train import load_config, train
from tests.adapters.s3diff.models import BASE, CHECKPOINT, ESTIMATOR


def test_a_projector_is_trained_through_it(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for path in sorted((shared_dir / "data" / "dev").glob("*.webp"))[:2]:
        shutil.copyfile(path, photographs / path.name)
    options = {"base": str(BASE), "checkpoint": str(CHECKPOINT), "degradation_net": str(ESTIMATOR)}
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
        "restorer": "s3diff",
        "through": {"name": "s3diff", "options": options},
        "objective": {"lq": 0, "hq": 1.0, "gate": 0},
        "steps": 2,
        "checkpoint_every": 1,
        "ema": 0,
        "batch": 1,
        "lr": 0.001,
        "warmup": 1,
    }
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.INFO):
        train(load_config(file), tmp_path / "run")
    projector = load_projector(f"local-dir:{tmp_path / 'run' / 'projector'}")
    steps = [load_projector(f"local-dir:{folder}") for folder in sorted((tmp_path / "run" / "checkpoints").iterdir())]
    first, last = (dict(one.named_parameters()) for one in (steps[0], projector))
    assert len(steps) == 2
    assert [name for name, value in last.items() if not torch.equal(value, first[name])]  # by the term behind S3Diff alone
    assert projector.provenance.lq_profile is not None
    assert projector.provenance.lq_profile.name == "light"
    for part in ("UNet2DConditionModel", "Trained", "DegradationEstimator"):
        assert part in caplog.text.partition("bit for bit unchanged")[2]
