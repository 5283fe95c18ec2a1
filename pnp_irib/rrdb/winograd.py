"""RRDB blocks in a quarter of the multiplications, for inference in float32 on CPUs.

Winograd's minimal filtering as in `pnp_irib.convolution`. Dense blocks gain most: a feature map that up to five convolutions
read is transformed once.

A picture of H x W pixels is T = ceil(H/4) ceil(W/4) tiles of 4x4 pixels. Feature maps are held by the position in the tile:
(16, C, T). With the window around the tile that is (36, C, T), and in Winograd's domain (36, C, T) again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.convolution import TILE, WINDOW, both_ways, transformed_kernel

if TYPE_CHECKING:
    from pnp_irib.rrdb.network import RRDB, ResidualDenseBlock

__all__ = ["FEWEST_PIXELS", "WinogradRRDB", "WinogradTrunk", "Workspaces"]

FEWEST_PIXELS = 24**2  # of a picture: below it, the products are too small to gain
BAND_TILES = 256  # whose products are taken back to pixels while they are in the cache


class Workspace:
    """Buffers for pictures of one size; the borders of the windows, which lie outside the picture, stay zero."""

    def __init__(self, height: int, width: int, features: int, growth: int) -> None:
        self.height, self.width = height, width
        self.rows, self.columns = -(-height // 4), -(-width // 4)
        self.tiles = self.rows * self.columns
        self.windows = {c: torch.zeros(6, 6, c, self.rows, self.columns, dtype=torch.float32) for c in (features, growth)}
        self.transformed = torch.empty(36, features + 4 * growth, self.tiles, dtype=torch.float32)
        self.band_rows = max(1, BAND_TILES // self.columns)
        widest = max(features, growth)
        band = min(self.tiles, self.band_rows * self.columns) * widest
        self.products, self.band = (torch.empty(n * band, dtype=torch.float32) for n in (36, 16))
        self.half = torch.empty(36 * widest * self.tiles, dtype=torch.float32)
        self.to_window, self.to_tile = (torch.tensor(rows, dtype=torch.float32) for rows in (WINDOW, TILE))

    def transform(self, channels: int, first: int) -> None:
        """Complete the windows of ``channels`` maps from their tiles, and put their transforms at channel ``first``."""
        windows = self.windows[channels]
        if below := self.height % 4:  # what lies below and right of the picture is zero, as the convolutions pad it
            windows[1 + below : 5, 1:5, :, -1] = 0
        if right := self.width % 4:
            windows[1:5, 1 + right : 5, :, :, -1] = 0
        windows[0, 1:5, :, 1:] = windows[4, 1:5, :, :-1]
        windows[5, 1:5, :, :-1] = windows[1, 1:5, :, 1:]
        windows[:, 0, ..., 1:] = windows[:, 4, ..., :-1]
        windows[:, 5, ..., :-1] = windows[:, 1, ..., 1:]
        place = self.transformed[:, first : first + channels].view(6, 6, -1)
        both_ways(self.to_window, windows.view(6, 6, -1), self.half, place)


Workspaces = dict[tuple[int, int], Workspace]
"""The latest, by height and width; shared by the blocks of one pass."""


class _Convolution:
    """Transformed weights (36, out, in) and bias (out, 1)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.weight = transformed_kernel(conv.weight.double()).transpose(1, 2).float().contiguous()
        assert conv.bias is not None
        self.bias = conv.bias.detach().clone()[:, None]

    def __call__(self, space: Workspace, top: int, bottom: int) -> Tensor:
        """Tile rows ``top`` to ``bottom`` of the result, (16, out, tiles), valid until the next call."""
        out, read = self.weight.shape[1:]
        tiles = slice(top * space.columns, bottom * space.columns)
        count = tiles.stop - tiles.start
        products = space.products[: 36 * out * count].view(36, out, count)
        torch.bmm(self.weight, space.transformed[:, :read, tiles], out=products)
        result = space.band[: 16 * out * count].view(16, out, count)
        both_ways(space.to_tile, products.view(6, 6, -1), space.half, result.view(4, 4, -1))
        return result.add_(self.bias)


class _WinogradDenseBlock:
    """See `ResidualDenseBlock`."""

    def __init__(self, block: ResidualDenseBlock) -> None:
        self.dense = [_Convolution(conv) for conv in (block.conv1, block.conv2, block.conv3, block.conv4)]
        self.last = _Convolution(block.conv5)

    def __call__(self, x: Tensor, space: Workspace, slope: float) -> Tensor:
        """(16, features, tiles) to the same shape."""
        features, growth = x.shape[1], self.dense[0].weight.shape[1]
        bands = [(top, min(space.rows, top + space.band_rows)) for top in range(0, space.rows, space.band_rows)]
        space.windows[features][1:5, 1:5] = x.view(4, 4, features, space.rows, space.columns)
        space.transform(features, 0)
        for i, conv in enumerate(self.dense):
            for top, bottom in bands:
                part = F.leaky_relu(conv(space, top, bottom), slope, inplace=True)
                space.windows[growth][1:5, 1:5, :, top:bottom] = part.view(4, 4, growth, bottom - top, space.columns)
            space.transform(growth, features + i * growth)
        y = torch.empty_like(x)
        for top, bottom in bands:
            tiles = slice(top * space.columns, bottom * space.columns)
            torch.add(x[..., tiles], self.last(space, top, bottom), alpha=0.2, out=y[..., tiles])
        return y


class WinogradRRDB:
    """An `RRDB` of fixed weights, equal to it up to rounding; gradients do not pass."""

    def __init__(self, block: RRDB, slope: float) -> None:
        self._blocks = [_WinogradDenseBlock(b) for b in (block.rdb1, block.rdb2, block.rdb3)]
        self._slope = slope

    @torch.no_grad()
    def __call__(self, x: Tensor, spaces: Workspaces) -> Tensor:
        """(N, features, H, W) to the same shape, in channels_last."""
        height, width = x.shape[-2:]
        if (height, width) not in spaces:
            spaces.clear()  # strips of a large picture have several sizes
            growth = self._blocks[0].dense[0].weight.shape[1]
            spaces[height, width] = Workspace(height, width, x.shape[1], growth)
        space = spaces[height, width]
        return torch.cat([self._one(picture, space) for picture in x.split(1)])

    def _one(self, x: Tensor, space: Workspace) -> Tensor:
        grid = (space.rows, 4, space.columns, 4, x.shape[1])
        lying = F.pad(x[0].permute(1, 2, 0), (0, 0, 0, 4 * space.columns - space.width, 0, 4 * space.rows - space.height))
        tiles = lying.view(grid).permute(1, 3, 4, 0, 2).reshape(16, x.shape[1], space.tiles)
        y = tiles
        for block in self._blocks:
            y = block(y, space, self._slope)
        y = torch.add(tiles, y, alpha=0.2)
        lying = y.view(4, 4, x.shape[1], space.rows, space.columns).permute(3, 0, 4, 1, 2).reshape(lying.shape)
        return lying[: space.height, : space.width].permute(2, 0, 1)[None]


class WinogradTrunk:
    """The blocks of a trunk with their present weights; `is_of` says whether these are the trunk's still."""

    def __init__(self, body: nn.Sequential, slope: float) -> None:
        self._made_of = [(p, p.detach(), p._version) for p in body.parameters()]
        self._blocks = [WinogradRRDB(cast("RRDB", block), slope) for block in body]

    def is_of(self, body: nn.Sequential) -> bool:
        """Whether no parameter was exchanged or changed in place since; changes through ``.data`` leave no trace."""
        now = list(body.parameters())
        return len(now) == len(self._made_of) and all(
            p is then and p._version == version and p.data_ptr() == held.data_ptr()
            for p, (then, held, version) in zip(now, self._made_of, strict=True)
        )

    def blocks(self) -> list[Callable[[Tensor], Tensor]]:
        """The blocks for one pass, which share their buffers."""
        spaces: Workspaces = {}
        return [partial(block, spaces=spaces) for block in self._blocks]
