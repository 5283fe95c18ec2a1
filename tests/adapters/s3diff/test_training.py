"""A projector is trained through S3Diff, and its scores."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.s3diff.models import BASE, CHECKPOINT, ESTIMATOR
from tests.adapters.training import check_training


def test_a_projector_is_trained_through_it(shared_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"base": str(BASE), "checkpoint": str(CHECKPOINT), "degradation_net": str(ESTIMATOR)}
    parts = ("UNet2DConditionModel", "Trained", "DegradationEstimator")
    check_training("s3diff", options, shared_dir, tmp_path, caplog, unchanged=parts, profile="light")
