"""Resizing of picture tensors."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["resize"]


def resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic resizing with antialias, as Pillow does; (N, C, H, W) to (N, C, *size). The same size gives the input itself."""
    if tuple(picture.shape[-2:]) == tuple(size):
        return picture
    return F.interpolate(picture.float(), size=size, mode="bicubic", antialias=True).to(picture.dtype)
