"""Colours of a restored picture taken from a reference: diffusion models drift."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.errors import InputError

__all__ = ["ColorMatch", "adain", "match_color", "wavelet"]

ColorMatch: TypeAlias = Literal["adain", "wavelet", "none"]

_EPSILON = 1e-5  # added to variances
_LEVELS = 5  # of the wavelet-like decomposition: blurs of dilation 1, 2, 4, 8, 16
_REACH = 2**_LEVELS - 1  # pixels that a blurred one is made of, to each side
_STRIP_PIXELS = 2**21  # worked on at a time


def match_color(picture: Tensor, reference: Tensor, method: ColorMatch) -> Tensor:
    """``picture`` with the colours of ``reference``.

    Args:
        picture: (N, 3, H, W).
        reference: of the same shape.
        method: see `adain` and `wavelet`; "none" changes nothing.

    Raises:
        InputError: another method, or other shapes.
    """
    if method not in {"adain", "wavelet", "none"}:
        raise InputError(f"color={method!r}; expected adain, wavelet or none.")
    if picture.shape != reference.shape:
        raise InputError(f"colours of {tuple(reference.shape)} for {tuple(picture.shape)}: the shapes must agree.")
    if method == "none":
        return picture
    return (adain if method == "adain" else wavelet)(picture, reference)


def adain(picture: Tensor, reference: Tensor) -> Tensor:
    """Mean and spread of each channel of ``reference`` (Huang and Belongie, arXiv 1703.06868, on pixels).

    Args:
        picture: (N, C, H, W).
        reference: (N, C, h, w).
    """
    mean, spread = _moments(picture)
    wanted_mean, wanted_spread = _moments(reference)
    matched = (picture.float() - mean) / spread * wanted_spread + wanted_mean
    return matched.to(picture.dtype)


def wavelet(picture: Tensor, reference: Tensor) -> Tensor:
    """High frequencies of ``picture`` on the low ones of ``reference`` (StableSR, Wang et al., arXiv 2305.07015).

    Args:
        picture: (N, C, H, W).
        reference: of the same shape.
    """
    height, width = picture.shape[-2:]
    rows = max(4 * _REACH, _STRIP_PIXELS // width)
    strips = []
    for top in range(0, height, rows):
        first, last = max(0, top - _REACH), min(height, top + rows + _REACH)
        content = picture[:, :, first:last].float()
        # Blurring is linear, so that once is enough.
        matched = content + _low(reference[:, :, first:last].float() - content)
        strips.append(matched[:, :, top - first : top - first + rows].to(picture.dtype))
    return strips[0] if len(strips) == 1 else torch.cat(strips, 2)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.float().flatten(2)
    count = values.shape[2]
    variance, mean = torch.var_mean(values, 2, correction=min(1, count - 1), keepdim=True)
    return mean[..., None], (variance + _EPSILON).sqrt()[..., None]


def _low(x: Tensor) -> Tensor:
    """What is left after blurring with [1 2 1] / 4 in both directions at dilations 1, 2, 4, ..."""
    channels = x.shape[1]
    line = x.new_tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(channels, 1, 3, 3)
    for level in range(_LEVELS):
        radius = 2**level
        x = F.conv2d(F.pad(x, (radius,) * 4, mode="replicate"), kernel, groups=channels, dilation=radius)
    return x
