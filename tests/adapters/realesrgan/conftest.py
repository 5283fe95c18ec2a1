"""Fixtures of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor

from pnp_irib.images.io import read_picture
from pnp_irib.registry import load_restorer
from pnp_irib_realesrgan.restorer import RealESRGAN, load_realesr_animevideov3
from tests.adapters.realesrgan.files import NAMES


@pytest.fixture(scope="package", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of converted weights of these tests' own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNP_IRIB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """A real photograph, (1, 3, H, W)."""
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]).rgb


@pytest.fixture(scope="module", params=NAMES)
def restorer(request: pytest.FixtureRequest) -> RealESRGAN:
    loaded = load_restorer(request.param, dtype="float32")
    assert isinstance(loaded, RealESRGAN)
    return loaded


@pytest.fixture(scope="package")
def compact() -> RealESRGAN:
    return load_realesr_animevideov3(dtype="float32")
