"""Gaussian blur of picture tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.images.padding import reflect_pad

__all__ = ["gaussian_blur"]


def gaussian_blur(picture: Tensor, sigma: float) -> Tensor:
    """Separable Gaussian blur G_tau with reflected borders; (N, C, H, W), ``sigma`` in pixels."""
    radius = max(1, math.ceil(3 * sigma))
    taps = torch.arange(-radius, radius + 1, dtype=picture.dtype, device=picture.device)
    kernel = torch.exp(-0.5 * (taps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    channels = picture.shape[1]
    padded = reflect_pad(picture, (radius, radius, radius, radius))
    rows = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
