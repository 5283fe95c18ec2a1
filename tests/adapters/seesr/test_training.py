"""A projector is trained through SeeSR: gradients of the last step alone, the tagger reading the estimates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.adapters.seesr.models import BASE, DAPE, MODEL
from tests.adapters.training import check_training


def test_a_projector_is_trained_through_it(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"base": str(BASE), "checkpoint": str(MODEL / "seesr"), "dape": str(DAPE)}
    options |= {"process_size": 32, "num_inference_steps": 2}
    parts = ("UNet2DConditionModel", "RamNetwork")
    check_training("seesr", options, shared_dir, tmp_path, caplog, unchanged=parts, gradient_steps=1)
