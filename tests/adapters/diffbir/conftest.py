"""The tiny models of the golden data, and how they are run."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.adapters.diffbir.models import ready


@pytest.fixture(scope="session", autouse=True)
def recorded() -> None:
    """Without the golden data, nothing here can be tested."""
    ready()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the recorded runs, and faster for networks this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
