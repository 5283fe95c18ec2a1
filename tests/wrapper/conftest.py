"""Fixtures of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnp_irib import load_restorer
from pnp_irib.images.io import read_picture
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.restorer import Restorer


@pytest.fixture
def projector() -> PixelProjector:
    """A small projector that is not the identity, and that listens to its prompt."""
    generator = torch.Generator().manual_seed(1)
    sizes = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = PixelProjector(sizes)
    with torch.no_grad():
        small.head.weight.normal_(0, 0.1, generator=generator)
        small.prompt.words.weight.normal_(0, 3, generator=generator)
        for parameter in small.middle.film.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return small


@pytest.fixture(scope="module")
def compact() -> Restorer:
    return load_restorer("realesr-animevideov3", dtype="float32")


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]).rgb
