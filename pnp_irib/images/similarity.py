"""How alike two pictures are, pixel by pixel."""

from __future__ import annotations

import math

from torch import Tensor

from pnp_irib.errors import InputError
from pnp_irib.images.ssim import scale_similarities

__all__ = ["check_pair", "ms_ssim", "psnr"]


def psnr(restored: Tensor, hq: Tensor) -> float:
    """Peak signal-to-noise ratio over all RGB values of one picture, dB, for the range [0, 1]; equal pictures give infinity.

    Args:
        restored: (1, 3, H, W) in [0, 1].
        hq: the same shape.

    Raises:
        InputError: the shapes differ, or not one picture each.
    """
    check_pair(restored, hq)
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
    check_pair(restored, hq)
    # One channel at a time: in double precision a large picture would else need several times its own memory.
    values = [_ms_ssim_of_plane(restored[:, c : c + 1].double(), hq[:, c : c + 1].double()) for c in range(hq.shape[1])]
    return sum(values) / len(values)


def _ms_ssim_of_plane(a: Tensor, b: Tensor) -> float:
    similarities, weights = scale_similarities(a, b)
    # Rounding takes equal pictures a hair above 1.
    return min(float((similarities[0].clamp(min=0) ** weights).prod()), 1.0)


def check_pair(restored: Tensor, hq: Tensor) -> None:
    """Raise an `InputError` unless these are one picture each, of one size."""
    if restored.shape != hq.shape or hq.ndim != 4 or hq.shape[0] != 1:
        raise InputError(f"expected two pictures (1, C, H, W) of one size; got {tuple(restored.shape)} and {tuple(hq.shape)}.")
