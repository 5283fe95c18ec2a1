"""A small real bench: two photographs, a real restorer, projectors that do nothing or one known thing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pnp_irib.images.io import read_picture, write_picture
from pnp_irib.projectors.pixel import PixelArchitecture, PixelProjector


def tiny_projector() -> PixelProjector:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PixelProjector(
            PixelArchitecture(
                widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8, prompt_buckets=64
            )
        )


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Path:
    """Two cut-outs of photographs; one has sides that are no multiples of four."""
    folder = tmp_path_factory.mktemp("photographs")
    sources = sorted((shared_dir / "data" / "dev").glob("kodak_*.webp"))[:2]
    for source, (height, width) in zip(sources, ((192, 256), (203, 182)), strict=True):
        write_picture(read_picture(source).rgb[..., 100 : 100 + height, 50 : 50 + width], folder / f"{source.stem}.png")
    return folder


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector as it is before training: pictures come out as they went in."""
    return tiny_projector().save_pretrained(tmp_path_factory.mktemp("identity"))


@pytest.fixture(scope="session")
def brightening(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A projector that adds half of 0.2: its gate is half open at the start."""
    projector = tiny_projector()
    with torch.no_grad():
        assert projector.head.bias is not None
        projector.head.bias.fill_(0.2)
    return projector.save_pretrained(tmp_path_factory.mktemp("brightening"))
