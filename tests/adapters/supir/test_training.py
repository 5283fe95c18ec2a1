"""A projector is trained through SUPIR, by gradients of the last step alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.supir.models import CHECKPOINT, SDXL
from tests.adapters.training import check_training


def test_a_projector_is_trained_through_it(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"base": str(SDXL), "checkpoint": str(CHECKPOINT), "process_size": 32, "num_inference_steps": 2}
    parts = ("UNet2DConditionModel", "Networks")
    check_training("supir", options, shared_dir, tmp_path, caplog, unchanged=parts, gradient_steps=1)
