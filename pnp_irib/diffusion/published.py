"""The steps around a network as published scripts take them, on 8-bit pictures. For `compat`.

OSEDiff, SeeSR and DiffBIR share the conversions; enlarging and giving the colours back are those of the first two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pnp_irib.errors import ConfigError
from pnp_irib.images.color import ColorMatch, match_color

__all__ = ["Eight", "batch_of", "eight_bits", "enlarge", "recolor", "rounded", "truncated", "whole_scale"]

Eight = NDArray[np.uint8]
"""(H, W, 3), RGB."""


def whole_scale(scale: float) -> int:
    """An enlargement as the scripts of OSEDiff and SeeSR take it.

    Raises:
        ConfigError: it is no whole number.
    """
    if scale != int(scale) or scale < 1:
        raise ConfigError(f"scale={scale}: the published script enlarges by whole numbers. Leave compat out for others.")
    return int(scale)


def eight_bits(pictures: Tensor) -> list[Eight]:
    """(N, 3, H, W) in [0, 1] to what a file would hold."""
    eight = pictures.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(eight)


def batch_of(pictures: Sequence[Eight]) -> Tensor:
    """Pictures of one size to (N, 3, H, W) in [0, 1], float32."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def enlarge(picture: Eight, *, upscale: int, process_size: int, last: Image.Resampling) -> Eight:
    """The picture that the network sees, as OSEDiff and SeeSR enlarge it: its sides are made multiples of 8 by resizing.

    Args:
        picture: as it is given.
        upscale: enlargement.
        process_size: least shorter side after it, but for what whole numbers and multiples of 8 cut off.
        last: filter of the last resizing; the others are bicubic.
    """
    image = Image.fromarray(picture)
    width, height = image.size
    smallest = process_size // upscale
    if width < smallest or height < smallest:
        factor = smallest / min(width, height)
        image = image.resize((int(factor * width), int(factor * height)), Image.Resampling.BICUBIC)
    image = image.resize((image.width * upscale, image.height * upscale), Image.Resampling.BICUBIC)
    image = image.resize((image.width - image.width % 8, image.height - image.height % 8), last)
    return np.array(image)


def truncated(picture: Tensor) -> Eight:
    """(3, H, W) in [0, 1] to 8 bits, towards zero."""
    eight: Eight = picture.float().mul(255).byte().permute(1, 2, 0).cpu().numpy()
    return eight


def rounded(picture: Tensor) -> Eight:
    """(3, H, W) in [0, 1] to 8 bits, to the nearest."""
    eight: Eight = picture.float().mul(255).round().byte().permute(1, 2, 0).cpu().numpy()
    return eight


def recolor(picture: Eight, reference: Eight, color: ColorMatch) -> Eight:
    """A picture with the colours of another of its size, truncated; as it is with "none"."""
    if color == "none":
        return picture
    return truncated(match_color(batch_of([picture]), batch_of([reference]), color)[0].clamp(0, 1))
