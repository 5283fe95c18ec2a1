"""Structural similarity at several scales (Wang, Simoncelli, Bovik 2003), differentiable."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["scale_similarities"]

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the five scales
_TAPS = 11
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03


def scale_similarities(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """How alike two batches of planes are at each scale, finest first.

    Planes too small for five scales (a side below 176 pixels) are compared at as many as hold the 11-tap window, with the
    weights of those scaled up to the sum of all; below 11 pixels the window shrinks to the largest odd size that fits.

    Args:
        a: (N, 1, H, W) in [0, 1].
        b: the same shape.

    Returns:
        Means of contrast-structure, at the coarsest scale times luminance, (N, S) in [-1, 1]; the published weights (S,).
    """
    scales = min(len(_WEIGHTS), max(1, (min(a.shape[-2:]) // _TAPS).bit_length()))
    # The published weights sum to 1.0001 and are taken as they are at five scales, as other implementations do.
    grown = sum(_WEIGHTS) / sum(_WEIGHTS[:scales])
    terms = []
    for scale in range(scales):
        if scale:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
        luminance, structure = _ssim_terms(a, b)
        term = luminance * structure if scale == scales - 1 else structure
        terms.append(term.mean((1, 2, 3)))
    return torch.stack(terms, 1), grown * a.new_tensor(_WEIGHTS[:scales])


def _ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of luminance and of contrast-structure of planes, where the window fits entirely."""
    taps = min(_TAPS, *a.shape[-2:])
    taps -= 1 - taps % 2
    offsets = torch.arange(taps, dtype=a.dtype, device=a.device) - taps // 2
    line = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    line = line / line.sum()

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))

    c1, c2 = _K1**2, _K2**2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)
