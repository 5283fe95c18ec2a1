"""Checks on picture tensors at the public entrances."""

from __future__ import annotations

import torch
from torch import Tensor

from pnp_irib.errors import InputError

__all__ = ["check_picture", "output_size"]


def check_picture(picture: Tensor, *, name: str = "picture") -> Tensor:
    """``picture`` if it is (N, 3, H, W), floating point, finite and in [0, 1].

    Raises:
        InputError: it is not; the message says what was found and how to get there.
    """
    if not isinstance(picture, Tensor):
        raise InputError(f"{name} must be a torch.Tensor, got {type(picture).__name__}.")
    if picture.ndim != 4 or picture.shape[1] != 3:
        raise InputError(
            f"{name} must have the shape (N, 3, H, W), got {tuple(picture.shape)}. "
            f"From (H, W, 3) use picture.permute(2, 0, 1)[None]; from grey (N, 1, H, W) use picture.expand(-1, 3, -1, -1)."
        )
    if 0 in picture.shape:
        raise InputError(f"{name} is empty: its shape is {tuple(picture.shape)}.")
    if not picture.is_floating_point():
        raise InputError(
            f"{name} must be floating point in [0, 1], got {picture.dtype}. From 8 bit use picture.float() / 255."
        )
    low, high = (float(v) for v in torch.aminmax(picture.detach()))
    # Written so that NaN fails too.
    if not (low >= 0 and high <= 1):
        advice = "From [-1, 1] use (picture + 1) / 2." if -1.001 <= low < 0 and high <= 1.001 else "Use picture.clamp(0, 1)."
        if high > 2:
            advice = "From 8 bit use picture / 255."
        raise InputError(f"{name} must lie in [0, 1]; its range is [{low:.4g}, {high:.4g}]. {advice}")
    return picture


def output_size(height: int, width: int, scale: float) -> tuple[int, int]:
    """Height and width of a picture enlarged by ``scale``: ``round(side * scale)``, at least one pixel."""
    return max(1, round(height * scale)), max(1, round(width * scale))
