"""The tiny model of the golden data."""

from __future__ import annotations

import pytest

from tests.adapters.s3diff.models import ready


@pytest.fixture(scope="session", autouse=True)
def recorded() -> None:
    """Without the golden data, nothing here can be tested."""
    ready()
