"""Cleaners on overlapping tiles of a picture, blended with Gaussian weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pnp_irib.diffusion.latents import LatentTiles, gaussian_window, plan_latent_tiles

__all__ = ["blended", "tiles_on_grid"]

OVERLAP = 128  # of neighbouring tiles, pixels


def tiles_on_grid(height: int, width: int, *, multiple: int, pixels: int) -> LatentTiles | None:
    """Tiles of at most ``pixels`` pixels that begin and end where the windows of the network do; None: it goes in one piece.

    Two windows by two are the smallest, also where ``pixels`` are fewer. Neighbours share `OVERLAP` pixels at least.

    Args:
        height: of the picture, a multiple of ``multiple``.
        width: of the picture, a multiple of ``multiple``.
        multiple: pixels that a window of the network's coarsest features sees.
        pixels: of a tile.
    """
    side = max(2, int(pixels**0.5) // multiple)
    shared = max(1, OVERLAP // multiple)
    tiles = plan_latent_tiles(height // multiple, width // multiple, tile=side, overlap=shared)
    if tiles is None:
        return None
    corners = tuple((multiple * y, multiple * x) for y, x in tiles.corners)
    return LatentTiles(multiple * tiles.height, multiple * tiles.width, corners)


def blended(run: Callable[[Tensor], Tensor], pictures: Tensor, tiles: LatentTiles, *, scale: int = 1) -> Tensor:
    """``run`` on each tile; where tiles overlap, their mean, weighted towards the middle of each. Differentiable.

    Args:
        run: maps (N, 3, h, w) to (N, 3, scale*h, scale*w).
        pictures: (N, 3, H, W).
        tiles: where to cut.
        scale: enlargement of ``run``.

    Returns:
        (N, 3, scale*H, scale*W), of the dtype of ``pictures``.
    """
    count, channels, height, width = pictures.shape
    dtype = torch.promote_types(pictures.dtype, torch.float32)
    total = torch.zeros((count, channels, scale * height, scale * width), dtype=dtype, device=pictures.device)
    weights = torch.zeros_like(total[0, 0])
    window = gaussian_window(scale * tiles.height, scale * tiles.width, symmetric=tiles.symmetric).to(weights)
    for y, x in tiles.corners:
        place = (..., slice(scale * y, scale * (y + tiles.height)), slice(scale * x, scale * (x + tiles.width)))
        total[place] += window * run(pictures[..., y : y + tiles.height, x : x + tiles.width])
        weights[place] += window
    return total.div_(weights).to(pictures.dtype)
