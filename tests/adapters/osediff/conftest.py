"""The tiny model of the golden data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden import golden_folder, missing


@pytest.fixture(scope="session")
def model() -> Path:
    """Folder with ``sd21base``, ``osediff.pkl`` and ``osediff_face.pkl``."""
    folder = golden_folder("osediff") / "model"
    if not folder.is_dir():
        missing("osediff")
    return folder
