"""Perceptual distances between pictures, by name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.runtime import require

__all__ = ["Perceptual", "PerceptualName", "load_perceptual"]

Perceptual: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Two batches (N, 3, H, W) in [0, 1] to a distance a picture, (N,), with gradients to both."""

LPIPS_NETWORKS = {"alex": ("AlexNet", 233), "vgg": ("VGG16", 528), "squeeze": ("SqueezeNet", 5)}  # size of the file, MB

log = logging.getLogger("pnp_irib.train")

PerceptualName = Literal["efficientnet-lite0", "lpips-alex", "lpips-vgg", "lpips-squeeze"]


def load_perceptual(name: PerceptualName, device: torch.device) -> Perceptual:
    """The distance of a frozen network.

    Args:
        name: ``efficientnet-lite0``, whose weights are a package, see `feature_distance`; or LPIPS (Zhang et al.,
            arXiv 1801.03924) of torchmetrics, whose networks torchvision downloads.
        device: where it works.

    Raises:
        MissingExtraError: a package is not installed.
    """
    if name == "efficientnet-lite0":
        network = EfficientNetLite.from_package("lite0").to(device)
        return lambda a, b: feature_distance(network, a, b)
    require("torchmetrics", "torchvision", extra="lpips")
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    # Called itself, the metric gives a sum over the batch.
    kind = name.removeprefix("lpips-")
    title, size = LPIPS_NETWORKS[kind]
    log.warning("%s needs %s of torchvision (BSD-3-Clause, %d MB), which it fetches unless it is there.", name, title, size)
    lpips = LearnedPerceptualImagePatchSimilarity(net_type=kind).net.requires_grad_(False).to(device)
    return lambda a, b: lpips(a, b, normalize=True).flatten()
