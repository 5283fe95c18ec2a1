"""Padding to the sizes that a network accepts."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pad_to", "reflect_pad"]


def pad_to(picture: Tensor, *, multiple_of: int = 1, min_size: int = 1) -> Tensor:
    """Enlarge (N, C, H, W) to the right and below until both sides are allowed; returns the input itself if they are."""
    height, width = picture.shape[-2:]
    target = [-(-max(side, min_size) // multiple_of) * multiple_of for side in (height, width)]
    return reflect_pad(picture, (0, target[1] - width, 0, target[0] - height))


def reflect_pad(picture: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    """Pad by reflection as far as the picture reaches, by replication where it does not.

    Args:
        picture: (N, C, H, W).
        pad: pixels on the left, right, top and bottom.
    """
    left, right, top, bottom = pad
    if not any(pad):
        return picture
    height, width = picture.shape[-2:]
    inner = (min(left, width - 1), min(right, width - 1), min(top, height - 1), min(bottom, height - 1))
    outer = tuple(p - i for p, i in zip(pad, inner, strict=True))
    if any(inner):
        picture = F.pad(picture, inner, mode="reflect")
    if any(outer):
        picture = F.pad(picture, outer, mode="replicate")
    return picture
