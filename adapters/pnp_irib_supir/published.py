"""The sizes of SUPIR's published script, and its steps before and behind the networks."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.published import Eight, batch_of, truncated
from pnp_irib.errors import ConfigError

__all__ = ["finished", "prepared", "working_size"]

_MULTIPLE = 64  # of the sides that the networks see, pixels


def working_size(
    height: int, width: int, *, upscale: float, smallest: int, fixed: int | None = None
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes (height, width) of what the networks see, and of the result.

    Args:
        height: of the picture.
        width: of the picture.
        upscale: enlargement.
        smallest: the networks see a shorter side of at least this, before sides become multiples of 64.
        fixed: the shorter side that they see, whatever the picture's; for captions.

    Raises:
        ConfigError: no pixel is left.
    """
    sides = np.array([height, width]) * float(upscale)
    result = [round(float(side)) for side in sides]
    if sides.min() < smallest:
        sides = sides * (smallest / sides.min())
    if fixed is not None:
        sides = sides * (fixed / sides.min())
        result = [round(float(side)) for side in sides]
    seen = [int(side) for side in np.round(sides / _MULTIPLE) * _MULTIPLE]  # halves go to the even multiple
    if not (min(result) and min(seen)):
        raise ConfigError(
            f"{height} x {width} pixels, {upscale:g} times enlarged, of at least {smallest}: the published script leaves "
            f"none. Choose a larger scale or process_size."
        )
    return (seen[0], seen[1]), (result[0], result[1])


def prepared(picture: Eight, size: tuple[int, int]) -> Eight:
    """A picture as the networks see it; its sides may be stretched differently."""
    return np.array(Image.fromarray(picture).resize(size[::-1], Image.Resampling.BICUBIC))


def finished(pictures: Tensor, size: tuple[int, int]) -> Tensor:
    """Pictures (N, 3, H, W) in about [-1, 1] as what a file of each holds, (N, 3, *size) in [0, 1]: truncated."""
    resized = F.interpolate(pictures.float(), size=size, mode="bicubic", align_corners=False)
    return batch_of([truncated(one) for one in (resized * 127.5 + 127.5).clamp(0, 255) / 255])
