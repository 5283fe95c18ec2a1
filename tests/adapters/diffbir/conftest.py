"""The tiny models of the golden data."""

from __future__ import annotations

import pytest

from tests.adapters.diffbir.models import ready


@pytest.fixture(scope="session", autouse=True)
def recorded() -> None:
    """Without the golden data, nothing here can be tested."""
    ready()
