"""A denoiser on latents that are larger than it was trained for: overlapping tiles, blended with Gaussian weights.

The tiles of one step are blended before anything else happens to the latent (Jimenez, Mixture of Diffusers,
arXiv 2302.02412), so that no seams arise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pnp_irib.errors import ConfigError
from pnp_irib.runtime import widest_float

__all__ = ["Cuts", "LatentTiles", "gaussian_window", "plan_latent_tiles", "predict_in_tiles", "published_tiles"]

_HALVED = 8  # tiles are a multiple of this long: the UNet halves them three times
_VARIANCE = 0.01  # of the window, in units of its side


@dataclass(frozen=True)
class LatentTiles:
    """Where the tiles of a latent lie.

    Attributes:
        height: of each tile.
        width: of each tile.
        corners: (top, left) of each.
        symmetric: whether the weights are centred; the published code is half a sample off in one direction.
    """

    height: int
    width: int
    corners: tuple[tuple[int, int], ...]
    symmetric: bool = True


@dataclass(frozen=True)
class Cuts:
    """Where a batch of tiles was cut.

    Attributes:
        pictures: of the latents that they come from, (n,).
        corners: (top, left) of each.
        height: of each.
        width: of each.
    """

    pictures: Tensor
    corners: tuple[tuple[int, int], ...]
    height: int
    width: int

    def of(self, maps: Tensor, factor: int = 1) -> Tensor:
        """The same cuts from other maps, (N, C, factor H, factor W)."""
        height, width = factor * self.height, factor * self.width
        places = ((n, factor * y, factor * x) for n, (y, x) in zip(self.pictures.tolist(), self.corners, strict=True))
        return torch.stack([maps[n, :, y : y + height, x : x + width] for n, y, x in places])


def plan_latent_tiles(height: int, width: int, *, tile: int, overlap: int, compat: bool = False) -> LatentTiles | None:
    """Tiles for a latent; None: it goes in one piece.

    Args:
        height: of the latent.
        width: of the latent.
        tile: largest side of a tile; fewer computations are spent on overlaps where smaller ones are as many.
        overlap: of neighbours, at least; at most half a tile is used.
        compat: as the published code of OSEDiff and SeeSR has it: the area decides whether tiles are needed, tiles are
            square and shrink to the shorter side of the latent, and are walked column by column.

    Raises:
        ConfigError: sizes that leave no step from tile to tile.
    """
    if tile < 1 or overlap < 0:
        raise ConfigError(f"latent tiles of {tile} with an overlap of {overlap}: expected at least 1, and at least 0.")
    if compat:
        if height * width <= tile**2:
            return None
        side = min(tile, height, width)
        if side <= overlap:
            raise ConfigError(
                f"an overlap of {overlap} leaves no step between tiles of {side}, the shorter side of the latent. "
                f"Choose a smaller overlap."
            )
        ys, xs = (_offsets(length, side, side - overlap) for length in (height, width))
        return LatentTiles(side, side, tuple((y, x) for x in xs for y in ys), symmetric=False)
    if height <= tile and width <= tile:
        return None
    (tall, ys), (wide, xs) = (_fitted(length, tile, overlap) for length in (height, width))
    return LatentTiles(tall, wide, tuple((y, x) for y in ys for x in xs))


def published_tiles(height: int, width: int, *, tile: int, stride: int) -> LatentTiles:
    """Where published code of DiffBIR and SUPIR cuts: every ``stride``, and once more at the end where that leaves a rest.

    Args:
        height: of the latent or picture, at least ``tile``.
        width: of the latent or picture, at least ``tile``.
        tile: side of the squares.
        stride: from one to the next.

    Raises:
        ConfigError: the tiles would leave gaps, or are larger than the picture.
    """
    if not 0 < stride <= tile:
        raise ConfigError(f"tiles of {tile} every {stride}: expected a stride from 1 to the side of the tiles.")
    if min(height, width) < tile:
        raise ConfigError(f"tiles of {tile} do not fit into {height} x {width}. Choose smaller ones, or none.")

    def starts(length: int) -> list[int]:
        regular = list(range(0, length - tile + 1, stride))
        return regular if (length - tile) % stride == 0 else [*regular, length - tile]

    corners = tuple((y, x) for y in starts(height) for x in starts(width))
    return LatentTiles(tile, tile, corners, symmetric=False)


def _fitted(length: int, tile: int, overlap: int) -> tuple[int, list[int]]:
    """As few tiles as possible along a side, and these as small as their number allows: their length and offsets."""
    side = min(tile, length)
    shared = min(overlap, side // 2)
    count = len(_offsets(length, side, side - shared))
    smallest = math.ceil((length + (count - 1) * shared) / count)
    side = min(side, math.ceil(smallest / _HALVED) * _HALVED)
    return side, [k * (length - side) // max(1, count - 1) for k in range(count)]


def _offsets(length: int, tile: int, step: int) -> list[int]:
    count = 1 + max(0, math.ceil((length - tile) / step))
    return [min(k * step, length - tile) for k in range(count)]


def gaussian_window(height: int, width: int, *, symmetric: bool = True) -> Tensor:
    """Weights of a tile, (height, width), float64, positive. Not ``symmetric``: the vertical centre is half a sample low."""
    vertical = _gaussian(height, (height - 1) / 2 if symmetric else height / 2)
    return vertical[:, None] * _gaussian(width, (width - 1) / 2)


def _gaussian(length: int, centre: float) -> Tensor:
    distance = torch.arange(length, dtype=torch.float64) - centre
    return torch.exp(-(distance**2) / (length**2 * 2 * _VARIANCE)) / math.sqrt(2 * math.pi * _VARIANCE)


def predict_in_tiles(
    predict: Callable[[Tensor, Cuts], Tensor], latent: Tensor, tiles: LatentTiles | None, *, batch: int = 1
) -> Tensor:
    """What ``predict`` says of a latent, tile by tile and blended. Differentiable.

    Args:
        predict: maps (n, C, h, w), and where these were cut, to the same shape.
        latent: (N, C, H, W).
        tiles: where to cut; None: in one piece.
        batch: tiles in one call.

    Returns:
        (N, C, H, W), of the dtype of ``latent``.
    """
    pictures = torch.arange(latent.shape[0], device=latent.device)
    if tiles is None:
        return predict(latent, Cuts(pictures, ((0, 0),) * len(latent), latent.shape[-2], latent.shape[-1]))
    window = gaussian_window(tiles.height, tiles.width, symmetric=tiles.symmetric).to(widest_float(latent.device))
    window = window.to(latent.device)
    total = torch.zeros_like(latent, dtype=torch.float32)
    weights = torch.zeros(latent.shape[-2:], dtype=torch.float32, device=latent.device)
    jobs = [(int(n), y, x) for y, x in tiles.corners for n in range(latent.shape[0])]
    for start in range(0, len(jobs), batch):
        part = jobs[start : start + batch]
        corners = tuple((y, x) for _, y, x in part)
        cuts = Cuts(pictures[[n for n, _, _ in part]], corners, tiles.height, tiles.width)
        found = predict(cuts.of(latent), cuts)
        for (n, y, x), tile in zip(part, found, strict=True):
            total[n, :, y : y + tiles.height, x : x + tiles.width] += tile * window
    for y, x in tiles.corners:
        weights[y : y + tiles.height, x : x + tiles.width] += window
    return (total / weights).to(latent.dtype)
