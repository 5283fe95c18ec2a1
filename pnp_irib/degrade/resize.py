"""Resizing as the published degradations do it: without anti-aliasing."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

__all__ = ["Mode", "resize"]

Mode = Literal["area", "bilinear", "bicubic"]


def resize(picture: Tensor, size: tuple[int, int], mode: Mode) -> Tensor:
    """Resize to ``size`` = (height, width); linear and differentiable in ``picture``.

    ``bilinear`` and ``bicubic`` alias when they shrink: part of the published degradation, not an oversight.

    Args:
        picture: (N, C, H, W), any range.
        size: height and width of the result, pixels.
        mode: ``area`` is the mean over the pixels that an output pixel touches; enlarging, it repeats pixels. ``bilinear``
            and ``bicubic`` sample without a filter before it; ``bicubic`` overshoots the range.

    Returns:
        (N, C, *size).
    """
    if tuple(picture.shape[-2:]) == size:
        return picture
    if mode == "area":
        return F.interpolate(picture, size=size, mode="area")
    return F.interpolate(picture, size=size, mode=mode, align_corners=False, antialias=False)
