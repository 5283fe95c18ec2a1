"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of photographs and golden data that the repository does not carry; ``PNP_IRIB_SHARED`` says where it is."""
    default = Path(__file__).resolve().parent.parent.parent / "shared"
    folder = Path(os.environ.get("PNP_IRIB_SHARED") or default)
    if not folder.is_dir():
        reason = f"no folder {folder}; set PNP_IRIB_SHARED to the folder of shared photographs"
        # In CI a missing folder must not turn into a green run that tested nothing.
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder
