"""Running a function on tiles of a large picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pnp_irib.errors import InputError
from pnp_irib.runtime import give_memory_back

__all__ = ["Tile", "plan_tiles", "tile_for_budget", "tiled"]

MIN_TILE = 64


class Tile(NamedTuple):
    """One tile: (top, bottom, left, right) of the part it is responsible for, and of the larger part that it reads."""

    core: tuple[int, int, int, int]
    read: tuple[int, int, int, int]


def plan_tiles(height: int, width: int, *, tile: int, halo: int, multiple_of: int = 1) -> Iterator[Tile]:
    """Cut a picture into nearly equal cores, each read with up to ``halo`` more pixels around.

    Args:
        height: of the picture, pixels.
        width: of the picture, pixels.
        tile: largest side of the cores; with ``multiple_of`` up to that much more.
        halo: surroundings that are read where there are any.
        multiple_of: cores begin at multiples of this.
    """

    def spans(length: int) -> list[tuple[int, int]]:
        count = math.ceil(length / tile)
        edges = {i * length // count // multiple_of * multiple_of for i in range(count)}
        return list(pairwise([*sorted(edges), length]))

    for top, bottom in spans(height):
        for left, right in spans(width):
            yield Tile(
                (top, bottom, left, right),
                (max(0, top - halo), min(height, bottom + halo), max(0, left - halo), min(width, right + halo)),
            )


def tiled(
    run: Callable[[Tensor], Tensor],
    picture: Tensor,
    *,
    tile: int,
    halo: int,
    scale: int = 1,
    multiple_of: int = 1,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Run ``run`` tile by tile and put the cores together.

    Each core is cut out of a result that saw ``halo`` more pixels on every inner side, so that the seams differ from the
    untiled result only by what lies farther away than ``halo``.

    Args:
        run: maps (N, 3, h, w) to (N, C, scale*h, scale*w).
        picture: (N, 3, H, W).
        tile: side of the cores, input pixels.
        halo: surroundings that a tile reads, input pixels.
        scale: enlargement of ``run``.
        multiple_of: tiles are read from multiples of this on, if ``halo`` is one too.
        dtype: of the result; None: that of ``run``.

    Raises:
        InputError: ``tile`` is not positive or ``halo`` negative.
    """
    if tile < 1 or halo < 0:
        raise InputError(f"tile={tile}, halo={halo}: tile must be at least 1 pixel, halo at least 0.")
    height, width = picture.shape[-2:]
    result: Tensor | None = None
    for t in plan_tiles(height, width, tile=tile, halo=halo, multiple_of=multiple_of):
        top, bottom, left, right = t.read
        part = run(picture[..., top:bottom, left:right])
        if result is None:
            result = part.new_empty((*part.shape[:2], height * scale, width * scale), dtype=dtype or part.dtype)
        core_top, core_bottom, core_left, core_right = t.core
        result[..., core_top * scale : core_bottom * scale, core_left * scale : core_right * scale] = part[
            ...,
            (core_top - top) * scale : (core_bottom - top) * scale,
            (core_left - left) * scale : (core_right - left) * scale,
        ]
        del part
        give_memory_back()  # tiles of several sizes would pile up
    assert result is not None
    return result


def tile_for_budget(height: int, width: int, *, bytes_per_pixel: int, budget: int, halo: int) -> int | None:
    """Side of the largest square tile core whose working memory stays within ``budget`` bytes; None: no tiling needed."""
    if height * width * bytes_per_pixel <= budget:
        return None
    side = math.isqrt(max(1, budget // bytes_per_pixel)) - 2 * halo
    return max(MIN_TILE, side)
