"""Resizing of picture tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["reduced", "resize"]


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resizing with antialias, as Pillow does; (N, C, H, W) to (N, C, *size). The same size gives the input itself."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture.float(), size=size, mode="bicubic", antialias=True).to(picture.dtype)


def reduced(picture: Tensor, longest: int) -> Tensor:
    """``picture`` (N, C, H, W) itself, or smaller, so that no side is longer than ``longest``."""
    height, width = picture.shape[-2:]
    factor = longest / max(height, width)
    if factor >= 1:
        return picture
    return resize(picture, (max(1, round(height * factor)), max(1, round(width * factor))))
