"""Sizes of pictures around the cleaners."""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.published import batch_of, eight_bits

__all__ = ["SHORTEST", "enlarged_as_published", "raised", "short_side_to"]

SHORTEST = 512
"""Side below which the second stage gets no picture: its prior was trained on 512 x 512 pixels."""


def short_side_to(height: int, width: int, side: int) -> tuple[int, int]:
    """The size at which the shorter side is ``side``; the longer one is cut to whole pixels."""
    if height == width:
        return side, side
    factor = side / min(height, width)
    return (side, int(width * factor)) if height < width else (int(height * factor), side)


def raised(height: int, width: int, shortest: int) -> tuple[int, int]:
    """The size itself, or where a side is below ``shortest`` the one at which the shorter side is that."""
    return short_side_to(height, width, shortest) if min(height, width) < shortest else (height, width)


def enlarged_as_published(pictures: Tensor, upscale: float) -> Tensor:
    """Pictures of 8 bits enlarged by Pillow, sides cut to whole pixels, as the published script does before all else.

    Args:
        pictures: (N, 3, H, W) in [0, 1]; what lies between 8-bit values is rounded.
        upscale: enlargement.

    Returns:
        (N, 3, int(H * upscale), int(W * upscale)) in [0, 1], float32.
    """
    height, width = (int(side * upscale) for side in pictures.shape[-2:])
    enlarged = [Image.fromarray(p).resize((width, height), Image.Resampling.BICUBIC) for p in eight_bits(pictures)]
    return batch_of([np.array(image) for image in enlarged]).to(pictures.device)
