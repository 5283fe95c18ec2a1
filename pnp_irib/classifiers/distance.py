"""How differently two pictures look to a classifier."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pnp_irib.errors import InputError

__all__ = ["FeatureNet", "feature_distance"]

_EPS = 1e-6  # ours: far below the squared length of any feature vector that says something; keeps the gradient at zero finite


class FeatureNet(Protocol):
    """What `feature_distance` needs of a network."""

    def features(self, rgb: Tensor) -> list[Tensor]:
        """(N, 3, H, W) in [0, 1] -> maps (N, C_s, H_s, W_s), one per stage."""
        ...


def feature_distance(net: FeatureNet, a: Tensor, b: Tensor) -> Tensor:
    r"""Deep feature distance: LPIPS (Zhang et al., arXiv 1801.03924) without the learned weights.

    With the feature vector $\phi_s(x)_p$ of stage $s$ at position $p$ and $\hat v = v / \sqrt{\|v\|^2 + \epsilon}$:

    $$ d(a, b) = \frac{1}{S} \sum_{s=1}^{S} \frac{1}{H_s W_s} \sum_p \|\hat\phi_s(a)_p - \hat\phi_s(b)_p\|^2 $$

    Two unit vectors are 2 apart when unrelated and 4 when opposite, so unrelated pictures come near 2. Differentiable in both
    pictures, symmetric, zero for equal pictures.

    Args:
        net: gives the feature maps; an `EfficientNetLite` has five.
        a: (N, 3, H, W) in [0, 1].
        b: the same shape.

    Returns:
        (N,), in [0, 4]; lower is more alike.

    Raises:
        InputError: the shapes differ.
    """
    if a.shape != b.shape:
        raise InputError(f"a and b must have one shape; got {tuple(a.shape)} and {tuple(b.shape)}.")
    # Two passes, not one of a and b stacked: when one of them needs no gradient, its activations are not kept.
    stages = zip(net.features(a), net.features(b), strict=True)
    return torch.stack([(_unit(of_a) - _unit(of_b)).square().sum(dim=1).mean(dim=(1, 2)) for of_a, of_b in stages]).mean(dim=0)


def _unit(features: Tensor) -> Tensor:
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + _EPS)
