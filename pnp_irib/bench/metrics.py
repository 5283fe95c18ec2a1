"""What is measured on a restored picture, with unit and direction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.errors import InputError
from pnp_irib.images.ssim import scale_similarities

__all__ = ["METRICS", "Judge", "Metric", "colour_error", "ms_ssim", "psnr"]

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


def psnr(restored: Tensor, hq: Tensor) -> float:
    """Peak signal-to-noise ratio over all RGB values of one picture, dB, for the range [0, 1]; equal pictures give infinity.

    Args:
        restored: (1, 3, H, W) in [0, 1].
        hq: the same shape.

    Raises:
        InputError: the shapes differ, or not one picture each.
    """
    _check(restored, hq)
    error = float((restored.double() - hq.double()).square().mean())
    return -10 * math.log10(error) if error else math.inf


def ms_ssim(restored: Tensor, hq: Tensor) -> float:
    """Multi-scale structural similarity (Wang, Simoncelli, Bovik 2003), mean of the RGB channels.

    Small pictures are compared at fewer scales, see `scale_similarities`. Negative contrast-structure terms count as zero, or
    the weighted product would not be real.

    Args:
        restored: (1, 3, H, W) in [0, 1].
        hq: the same shape.

    Returns:
        A value in [0, 1]; 1 for equal pictures.

    Raises:
        InputError: the shapes differ, or not one picture each.
    """
    _check(restored, hq)
    # One channel at a time: in double precision a large picture would else need several times its own memory.
    values = [_ms_ssim_of_plane(restored[:, c : c + 1].double(), hq[:, c : c + 1].double()) for c in range(hq.shape[1])]
    return sum(values) / len(values)


def _ms_ssim_of_plane(a: Tensor, b: Tensor) -> float:
    similarities, weights = scale_similarities(a, b)
    # Rounding takes equal pictures a hair above 1.
    return min(float((similarities[0].clamp(min=0) ** weights).prod()), 1.0)


def colour_error(restored: Tensor, hq: Tensor) -> float:
    """How far the average colours of two pictures lie apart: mean over R, G, B of the absolute difference, grey levels of 255.

    A colour cast shows here, noise and blur do not.

    Args:
        restored: (1, 3, H, W) in [0, 1].
        hq: the same shape.

    Raises:
        InputError: the shapes differ, or not one picture each.
    """
    _check(restored, hq)
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


def _check(restored: Tensor, hq: Tensor) -> None:
    if restored.shape != hq.shape or hq.ndim != 4 or hq.shape[0] != 1:
        raise InputError(f"expected two pictures (1, C, H, W) of one size; got {tuple(restored.shape)} and {tuple(hq.shape)}.")
