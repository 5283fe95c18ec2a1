"""The terms of the objective, one class an equation. Called, all of them give one value a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.images.blur import gaussian_blur
from pnp_irib.images.ssim import scale_similarities
from pnp_irib.irib.perceptual import Perceptual

__all__ = ["GateSupervision", "HQFidelity", "HQPerceptual", "HQStructure", "LQReconstruction", "Norm"]

Norm = Literal["l1", "l2"]


def _distance(a: Tensor, b: Tensor, norm: Norm) -> Tensor:
    difference = a - b
    return (difference.abs() if norm == "l1" else difference.square()).mean((1, 2, 3))


@dataclass(frozen=True)
class LQReconstruction:
    r"""L_LQ-recon, blur-aware (Kim, Kim, Ye, arXiv 2510.00728).

    $$ \|\hat x_L - \tilde x_L\| + \lambda_{blur} \|G_\tau * \hat x_L - G_\tau * \tilde x_L\| $$

    Means over pixels. The reference is a random draw, whose noise cannot be predicted and averages out behind the blur.

    Attributes:
        lambda_blur: weight of the blurred comparison.
        tau: standard deviation of the blur, pixels of the pictures given.
        norm: squared (the bound's Gaussian channel) or absolute differences.
    """

    lambda_blur: float = 1.0
    tau: float = 2.0
    norm: Norm = "l2"

    def __call__(self, estimate: Tensor, reference: Tensor) -> Tensor:
        """Projected pictures and their references, (N, 3, H, W) twice, to (N,)."""
        loss = _distance(estimate, reference, self.norm)
        if self.lambda_blur:
            blurred = gaussian_blur(estimate, self.tau), gaussian_blur(reference, self.tau)
            loss = loss + self.lambda_blur * _distance(*blurred, self.norm)
        return loss


@dataclass(frozen=True)
class HQFidelity:
    r"""Pixel part of L_HQ-fid: $\|\hat z_H - z_H\|$, mean over pixels.

    Attributes:
        norm: squared or absolute differences.
    """

    norm: Norm = "l2"

    def __call__(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N, 3, H, W) twice to (N,)."""
        return _distance(restored, hq, self.norm)


@dataclass(frozen=True)
class HQPerceptual:
    r"""Perceptual part of L_HQ-fid: $d(\hat z_H, z_H)$ of a frozen network.

    Attributes:
        distance: d, see `load_perceptual`.
    """

    distance: Perceptual

    def __call__(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N, 3, H, W) twice, clamped to [0, 1], to (N,)."""
        return self.distance(restored.clamp(0, 1), hq.clamp(0, 1))


@dataclass(frozen=True)
class HQStructure:
    r"""Structural dissimilarity: $1 - \sum_s w_s \, cs_s(\hat z_H, z_H) / \sum_s w_s$ over the scales s of MS-SSIM; in [0, 2].

    Blurred means lose contrast, which this term counts and a distance between pixels hardly does. The published index (Wang,
    Simoncelli, Bovik 2003) is the weighted product of the scales; their weighted mean has the same optimum, and its gradient
    stays bounded where the finest scales have nothing in common.
    """

    def __call__(self, restored: Tensor, hq: Tensor) -> Tensor:
        """(N, 3, H, W) twice to (N,)."""
        with torch.autocast(restored.device.type, enabled=False):  # variances are small differences of large numbers
            similarities, weights = scale_similarities(restored.flatten(0, 1)[:, None], hq.flatten(0, 1)[:, None])
            return 1 - (similarities @ weights / weights.sum()).view(restored.shape[:2]).mean(1)


@dataclass(frozen=True)
class GateSupervision:
    r"""Cross-entropy of the gate: $-y \log \sigma(s) - (1 - y) \log(1 - \sigma(s))$ with the severity's logit s.

    The label y is 1 where a picture needs projection, 0 where it does not; unlabelled pictures (NaN) count nothing.
    """

    def __call__(self, severity: Tensor, label: Tensor) -> Tensor:
        """Logits (N,) and labels (N,) in {0, 1, NaN} to (N,)."""
        known = ~label.isnan()
        return F.binary_cross_entropy_with_logits(severity, label.nan_to_num(), reduction="none") * known
