"""What is measured on a restored picture, with unit and direction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.images.similarity import check_pair, ms_ssim, psnr

__all__ = ["METRICS", "Judge", "Metric", "colour_error"]

PSNR_CAP = 100.0  # dB; ours: equal pictures have no finite PSNR, and means and differences must stay finite


@dataclass(frozen=True)
class Metric:
    """Name, unit, which direction is better, and the values that are possible."""

    key: str
    title: str
    unit: str
    higher_is_better: bool
    range: tuple[float, float]


JUDGE = "lite2"

METRICS = (
    Metric("psnr", "PSNR", "dB", True, (0.0, PSNR_CAP)),
    Metric("ms_ssim", "MS-SSIM", "", True, (0.0, 1.0)),
    Metric("feature_distance", "deep-feature distance", "", False, (0.0, 4.0)),
    Metric("top1", "ImageNet top-1 agreement", "", True, (0.0, 1.0)),
    Metric("colour_error", "mean colour error", "/255", False, (0.0, 255.0)),
)


def colour_error(restored: Tensor, hq: Tensor) -> float:
    """How far the average colours of two pictures lie apart: mean over R, G, B of the absolute difference, grey levels of 255.

    A colour cast shows here, noise and blur do not.

    Args:
        restored: (1, 3, H, W) in [0, 1].
        hq: the same shape.

    Raises:
        InputError: the shapes differ, or not one picture each.
    """
    check_pair(restored, hq)
    return 255 * float((restored.double().mean((2, 3)) - hq.double().mean((2, 3))).abs().mean())


class Judge:
    """All metrics of restored pictures. Its network, EfficientNet-Lite2, gives neither prompts nor training losses."""

    def __init__(self) -> None:
        self.network = EfficientNetLite.from_package(JUDGE)

    @torch.inference_mode()
    def __call__(self, hq: Tensor, restored: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        """Judge several restorations of one picture.

        Args:
            hq: (1, 3, H, W) in [0, 1].
            restored: pictures of the same shape by name; half precision is taken as float32.

        Returns:
            For every name, values by the keys of `METRICS`; PSNR is capped at 100 dB.

        Raises:
            InputError: a shape differs.
        """
        truth = self._class(hq)  # once for all
        return {name: self._one(picture.float(), hq, truth) for name, picture in restored.items()}

    def _one(self, restored: Tensor, hq: Tensor, truth: int) -> dict[str, float]:
        return {
            "psnr": min(psnr(restored, hq), PSNR_CAP),
            "ms_ssim": ms_ssim(restored, hq),
            "feature_distance": float(feature_distance(self.network, restored, hq)),
            "top1": float(self._class(restored) == truth),
            "colour_error": colour_error(restored, hq),
        }

    def _class(self, picture: Tensor) -> int:
        return int(self.network.classify(picture).argmax(1))
