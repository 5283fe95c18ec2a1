"""The terms of the objective, one function an equation. All return one value a picture."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.images.blur import gaussian_blur
from pnp_irib.images.ssim import scale_similarities

__all__ = ["gate_supervision", "hq_fidelity", "hq_structure", "lq_reconstruction"]

Norm = Literal["l1", "l2"]


def _distance(a: Tensor, b: Tensor, norm: Norm) -> Tensor:
    difference = a - b
    return (difference.abs() if norm == "l1" else difference.square()).mean((1, 2, 3))


def lq_reconstruction(estimate: Tensor, reference: Tensor, *, lambda_blur: float, tau: float, norm: Norm = "l2") -> Tensor:
    """Blur-aware LQ reconstruction: ||x - y|| + lambda_blur ||G_tau * x - G_tau * y||, means over pixels.

    Args:
        estimate: projected pictures, (N, 3, H, W).
        reference: draws of the LQ picture, the same shape.
        lambda_blur: weight of the blurred comparison, in which the unpredictable noise of the reference averages out.
        tau: standard deviation of the blur, LQ pixels.
        norm: squared (the bound's Gaussian channel) or absolute differences.

    Returns:
        (N,).
    """
    loss = _distance(estimate, reference, norm)
    if lambda_blur:
        loss = loss + lambda_blur * _distance(gaussian_blur(estimate, tau), gaussian_blur(reference, tau), norm)
    return loss


def hq_fidelity(restored: Tensor, hq: Tensor, *, norm: Norm = "l2") -> Tensor:
    """Pixel part of L_HQ-fid: ||z_hat - z||, mean over pixels; (N, 3, H, W) twice to (N,)."""
    return _distance(restored, hq, norm)


def hq_structure(restored: Tensor, hq: Tensor) -> Tensor:
    """Structural dissimilarity: 1 - the mean of the similarities of MS-SSIM over its scales; (N, 3, H, W) twice to (N,).

    Blurred means lose contrast, which this term counts and a distance between pixels hardly does. The published index is the
    weighted product of the scales; their weighted mean has the same optimum, and its gradient stays bounded where the finest
    scales have nothing in common. In [0, 2].
    """
    with torch.autocast(restored.device.type, enabled=False):  # variances are small differences of large numbers
        similarities, weights = scale_similarities(restored.flatten(0, 1)[:, None], hq.flatten(0, 1)[:, None])
        return 1 - (similarities @ weights / weights.sum()).view(restored.shape[:2]).mean(1)


def gate_supervision(severity: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy of the gate's logit against 1 (needs projection) or 0 (does not); NaN labels count nothing.

    Args:
        severity: (N,) logits.
        label: (N,) in {0, 1, NaN}.
    """
    known = ~label.isnan()
    return F.binary_cross_entropy_with_logits(severity, label.nan_to_num(), reduction="none") * known
