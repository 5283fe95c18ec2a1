"""Filtering with one kernel, by Fourier transform: one cost for all kernels, separable or not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["filter2d"]


def filter2d(picture: Tensor, taps: Tensor) -> Tensor:
    """Correlate every channel of ``picture`` with ``taps``; linear and differentiable in ``picture``.

    The border is continued by reflection without the edge pixel; by repeating the edge pixel where the picture is too small
    for that.

    Args:
        picture: (N, C, H, W), float32 or float64, any range.
        taps: (K, K), K odd.

    Returns:
        (N, C, H, W).
    """
    height, width = picture.shape[-2:]
    border = taps.shape[-1] // 2
    mode = "reflect" if border < min(height, width) else "replicate"
    padded = F.pad(picture, (border, border, border, border), mode=mode)
    # Circular wrap-around only reaches the last 2*border rows and columns, which are cut off.
    grid = (_fast_length(height + 2 * border), _fast_length(width + 2 * border))
    response = torch.fft.rfft2(taps.to(picture), s=grid).conj()
    filtered: Tensor = torch.fft.irfft2(torch.fft.rfft2(padded, s=grid) * response, s=grid)
    return filtered[..., :height, :width].contiguous()


def _fast_length(length: int) -> int:
    """The next even length without prime factors above five: transforms of such lengths are several times faster."""
    candidate = length + length % 2
    while True:
        rest = candidate
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return candidate
        candidate += 2
