"""Rounding that lets gradients through."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_through", "to_8_bit"]


def round_through(values: Tensor) -> Tensor:
    """Round to whole numbers; backwards the identity (straight-through), since the true derivative is zero."""
    rounded = torch.round(values.detach())
    # values - values is exactly zero, so forward values do not depend on whether gradients are asked for.
    return rounded + (values - values.detach()) if values.requires_grad else rounded


def to_8_bit(picture: Tensor) -> Tensor:
    """Clamp to [0, 1] and round to multiples of 1/255."""
    return round_through(picture.clamp(0, 1) * 255) / 255
