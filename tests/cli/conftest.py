"""Fixtures of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.run import Crop


@pytest.fixture
def crop(shared_dir: Path) -> Crop:
    """Write a small crop of a real photograph."""
    with Image.open(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]) as image:
        photograph = image.convert("RGB")

    def write(path: Path, side: int = 12) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph.crop((40, 50, 40 + side, 50 + side)).save(path)
        return path

    return write
