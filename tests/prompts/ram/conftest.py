"""The tiny model of the golden data, and folders made of random ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import golden_folder, missing
from tests.prompts.ram.tiny import SIZES, Tiny


@pytest.fixture(scope="session")
def golden_model() -> Path:
    """Folder with the published files of the recorded model."""
    folder = golden_folder("dape") / "model"
    if not folder.is_dir():
        missing("dape")
    return folder


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(SIZES["plain"])


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """A random model as it would be published."""
    return tiny.write(tmp_path / "model")
