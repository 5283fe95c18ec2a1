"""Whatever a user calls a picture."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pnp_irib.errors import InputError
from pnp_irib.images.io import MAX_PIXELS, Picture, picture_from_array, read_picture
from pnp_irib.images.tensors import check_picture

__all__ = ["read_source", "single_source"]


def single_source(images: Any) -> bool:
    """Whether ``images`` is one picture rather than several. A tensor (N, 3, H, W) with N > 1 is several."""
    if isinstance(images, torch.Tensor):
        return images.ndim != 4 or images.shape[0] == 1
    if isinstance(images, np.ndarray):
        return images.ndim != 4 or images.shape[0] == 1
    return not isinstance(images, list | tuple)


def read_source(
    source: Any, *, max_pixels: int | None = None, check_size: Callable[[int, int], object] | None = None
) -> Picture:
    """A path, PIL image, numpy array or tensor as a `Picture`.

    Args:
        source: the picture.
        max_pixels: larger ones are refused.
        check_size: called with height and width, of files before they are decoded; may raise.

    Raises:
        InputError: it is none of these, or its size, type or range is not acceptable.
        ImageFileError: a file cannot be read.
    """
    cap = MAX_PIXELS if max_pixels is None else max_pixels
    if isinstance(source, Picture):
        return source
    if isinstance(source, torch.Tensor):
        pixels = source[None] if source.ndim == 3 else source
        check_picture(pixels, name="image")
        if pixels.shape[0] != 1:
            raise InputError(f"one picture was expected, got a tensor of {pixels.shape[0]}.")
        # A copy: what becomes of the user's tensor later does not change the result.
        return _capped(Picture(rgb=pixels.detach().to("cpu", torch.float32, copy=True)), cap)
    if isinstance(source, np.ndarray):
        array = np.asarray(source)  # a plain one: subclasses index otherwise
        return _capped(picture_from_array(array[0] if array.ndim == 4 and array.shape[0] == 1 else array), cap)
    if hasattr(source, "getbands"):
        return read_picture(source, max_pixels=cap, check_size=check_size)
    if isinstance(source, str | os.PathLike):
        return read_picture(Path(source), max_pixels=cap, check_size=check_size)
    raise InputError(
        f"{type(source).__name__} is not a picture. Give a path, a PIL image, a numpy array (H, W, 3), a tensor (3, H, W), "
        "or a list of these."
    )


def _capped(picture: Picture, cap: int) -> Picture:
    height, width = picture.rgb.shape[-2:]
    if height * width > cap:
        raise InputError(f"the picture has {width}x{height} pixels, above the cap of {cap}. Raise max_pixels if it is meant.")
    return picture
