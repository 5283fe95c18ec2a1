"""The steps around the network as the published script takes them, on 8-bit pictures. For `compat="upstream"`."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pnp_irib.images.color import ColorMatch, match_color

__all__ = ["enlarge", "finish", "truncate"]


def enlarge(picture: NDArray[np.uint8], *, upscale: int, process_size: int) -> NDArray[np.uint8]:
    """The picture that the network sees: at least ``process_size`` on its shorter side, sides made multiples of 8 by resizing.

    Args:
        picture: (H, W, 3) RGB.
        upscale: enlargement.
        process_size: smallest side after it.
    """
    image = Image.fromarray(picture)
    width, height = image.size
    smallest = process_size // upscale
    if width < smallest or height < smallest:
        factor = smallest / min(width, height)
        image = image.resize((int(factor * width), int(factor * height)), Image.Resampling.BICUBIC)
    image = image.resize((image.width * upscale, image.height * upscale), Image.Resampling.BICUBIC)
    image = image.resize((image.width - image.width % 8, image.height - image.height % 8), Image.Resampling.LANCZOS)
    return np.array(image)


def truncate(picture: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [0, 1] to 8 bits, towards zero, (H, W, 3)."""
    eight: NDArray[np.uint8] = picture.float().mul(255).byte().permute(1, 2, 0).cpu().numpy()
    return eight


def finish(network: Tensor, seen: NDArray[np.uint8], color: ColorMatch) -> NDArray[np.uint8]:
    """The script's output, (H, W, 3): the network's picture in 8 bits, with the colours of what it saw.

    Args:
        network: (3, H, W) in [-1, 1].
        seen: see `enlarge`.
        color: how colours are matched.
    """
    eight = truncate(network * 0.5 + 0.5)
    if color == "none":
        return eight
    picture, reference = (torch.from_numpy(x).permute(2, 0, 1)[None].float() / 255 for x in (eight, seen))
    return truncate(match_color(picture, reference, color)[0].clamp(0, 1))
