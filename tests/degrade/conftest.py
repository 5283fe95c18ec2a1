from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor


def load(path: Path) -> Tensor:
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(scope="session")
def photographs(shared_dir: Path) -> list[Tensor]:
    """All photographs of the development set, each (1, 3, H, W)."""
    paths = sorted((shared_dir / "data" / "dev").glob("*.webp"))
    assert paths, "the development set is empty"
    return [load(path) for path in paths]


@pytest.fixture
def scene() -> Tensor:
    """A smooth colour picture with edges, (1, 3, 64, 96), between 0.2 and 0.8, made without files."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    planes = torch.stack([torch.sin(9 * x + 2 * y), torch.cos(5 * y - 3 * x), torch.sin(7 * x * y)])
    planes[:, 20:40, 30:60] *= -1
    return (0.5 + 0.3 * planes)[None]
