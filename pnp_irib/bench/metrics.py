"""What is measured on a restored picture, with unit and direction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance

__all__ = ["METRICS", "Judge", "Metric", "ms_ssim", "psnr"]


@dataclass(frozen=True)
class Metric:
    """Name, unit and which direction is better."""

    key: str
    title: str
    unit: str
    higher_is_better: bool


METRICS = (
    Metric("psnr", "PSNR", "dB", True),
    Metric("ms_ssim", "MS-SSIM", "", True),
    Metric("feature_distance", "deep-feature distance", "", False),
    Metric("top1", "ImageNet top-1 agreement", "", True),
    Metric("colour_error", "mean colour error", "/255", False),
)

_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang, Simoncelli, Bovik 2003, of the five scales
_TAPS = 11
_SIGMA = 1.5


def psnr(restored: Tensor, hq: Tensor) -> float:
    """Peak signal-to-noise ratio over all channels, dB; (1, 3, H, W) twice in [0, 1]. Equal pictures give infinity."""
    error = (restored.double() - hq.double()).square().mean()
    return float(-10 * torch.log10(error))


def ms_ssim(restored: Tensor, hq: Tensor) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003), mean of the RGB channels; (1, 3, H, W) in [0, 1].

    Pictures too small for five scales (sides below 176 pixels) are compared at as many as fit, with the weights of those
    scaled to sum to one. Negative terms count as zero.
    """
    a, b = restored.double(), hq.double()
    scales = min(len(_WEIGHTS), 1 + max(0, (min(a.shape[-2:]) // _TAPS).bit_length() - 1))
    weights = [w / sum(_WEIGHTS[:scales]) for w in _WEIGHTS[:scales]]
    result = torch.ones(a.shape[1], dtype=a.dtype)
    for scale, weight in enumerate(weights):
        luminance, structure = _ssim_terms(a, b)
        term = structure if scale < scales - 1 else luminance * structure
        result = result * term.mean((0, 2, 3)).clamp(min=0) ** weight
        if scale < scales - 1:
            a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return float(result.mean())


def _ssim_terms(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    taps = min(_TAPS, *a.shape[-2:])
    taps -= 1 - taps % 2
    offsets = torch.arange(taps, dtype=a.dtype) - taps // 2
    line = torch.exp(-0.5 * (offsets / _SIGMA) ** 2)
    line = line / line.sum()
    channels = a.shape[1]

    def mean(x: Tensor) -> Tensor:
        x = F.conv2d(x, line.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
        return F.conv2d(x, line.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)

    c1, c2 = 0.01**2, 0.03**2
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance, (2 * covariance + c2) / (var_a + var_b + c2)


class Judge:
    """All metrics of a restored picture. Its network, EfficientNet-Lite2, gives neither prompts nor training losses."""

    def __init__(self) -> None:
        self._network = EfficientNetLite.from_package("lite2")

    @torch.inference_mode()
    def __call__(self, restored: Tensor, hq: Tensor) -> dict[str, float]:
        """Values by the keys of `METRICS`; (1, 3, H, W) twice in [0, 1]."""
        return {
            "psnr": psnr(restored, hq),
            "ms_ssim": ms_ssim(restored, hq),
            "feature_distance": float(feature_distance(self._network, restored, hq)),
            "top1": float(self._class(restored) == self._class(hq)),
            "colour_error": 255 * float((restored.mean((2, 3)) - hq.mean((2, 3))).abs().mean()),
        }

    def _class(self, picture: Tensor) -> int:
        return int(self._network.classify(picture).argmax(1))
