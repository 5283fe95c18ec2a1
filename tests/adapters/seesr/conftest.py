"""The tiny models of the golden data."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.adapters.seesr.models import ready, turbo_base


@pytest.fixture(scope="session", autouse=True)
def recorded() -> None:
    """Without the golden data, nothing here can be tested."""
    ready()


@pytest.fixture(scope="session")
def turbo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole SD-Turbo; the golden data has only the parts that differ."""
    return turbo_base(tmp_path_factory.mktemp("sd-turbo"))
