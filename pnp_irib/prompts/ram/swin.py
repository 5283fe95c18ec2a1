"""Swin, the picture encoder of RAM: attention within windows that every other block shifts by half a window.

Liu et al., "Swin Transformer", arXiv 2103.14030, written anew under the names that RAM's file gives the weights. The tables of
places and masks that such files also hold follow from the sizes and are computed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.prompts.ram.architecture import RamArchitecture

__all__ = ["SwinEncoder"]

_EPS = 1e-5
_APART = -100.0  # added to the score of two places that only the shift brought together; the published value


class SwinEncoder(nn.Module):
    """Pictures to tokens, of one size only (``architecture.image_size``). No part of it depends on the training mode."""

    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.patch_embed = _PatchEmbedding(architecture)
        self.layers = nn.ModuleList(_Stage(architecture, stage) for stage in range(len(architecture.depths)))
        self.norm = nn.LayerNorm(architecture.features, eps=_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """Tokens of the last stage, row by row, behind their mean.

        Args:
            pixels: (N, 3, S, S), normalised, S = ``architecture.image_size``.

        Returns:
            (N, 1 + L, C): token 0 is the mean of the L others.
        """
        tokens = self.patch_embed(pixels)
        for stage in self.layers:
            tokens = stage(tokens)
        tokens = self.norm(tokens)
        return torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)


class _PatchEmbedding(nn.Module):
    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, architecture.embed_dim, architecture.patch, stride=architecture.patch)
        self.norm = nn.LayerNorm(architecture.embed_dim, eps=_EPS)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) -> (N, L, C), row by row."""
        tokens: Tensor = self.norm(self.proj(pixels).flatten(2).transpose(1, 2))
        return tokens


class _Stage(nn.Module):
    """Blocks on one grid, then the step down to the next (none behind the last stage)."""

    index: Tensor
    mask: Tensor | None

    def __init__(self, architecture: RamArchitecture, stage: int) -> None:
        super().__init__()
        width, self.grid = architecture.width(stage), architecture.grid(stage)
        self.window = architecture.window_of(stage)
        self.shift = self.window // 2 if self.window < self.grid else 0  # one window has no neighbours
        heads, hidden = architecture.heads[stage], architecture.mlp_ratio * width
        self.blocks = nn.ModuleList(_Block(width, heads, self.window, hidden) for _ in range(architecture.depths[stage]))
        last = stage == len(architecture.depths) - 1
        self.downsample = None if last else _Downsample(width)
        # Of real memory even where the weights are only planned: no file brings them.
        self.register_buffer("index", relative_places(self.window), persistent=False)
        mask = shifted_mask(self.grid, self.window, self.shift) if self.shift else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, G * G, C) -> (N, G / 2 * G / 2, 2 C), or of the last stage as it came."""
        hidden = tokens.reshape(len(tokens), self.grid, self.grid, -1)
        for number, block in enumerate(self.blocks):
            shift = self.shift if number % 2 else 0
            hidden = block(hidden, self.index, self.mask if shift else None, shift)
        if self.downsample is not None:
            hidden = self.downsample(hidden)
        return hidden.flatten(1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, window: int, hidden: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=_EPS)
        self.attn = _WindowAttention(width, heads, window)
        self.norm2 = nn.LayerNorm(width, eps=_EPS)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})

    def forward(self, hidden: Tensor, index: Tensor, mask: Tensor | None, shift: int) -> Tensor:
        """(N, G, G, C) -> the same shape."""
        count, side, _, width = hidden.shape
        cells, window = side // self.window, self.window
        shifted = self.norm1(hidden)
        if shift:
            shifted = shifted.roll((-shift, -shift), dims=(1, 2))
        windows = shifted.view(count, cells, window, cells, window, width).transpose(2, 3).reshape(-1, window * window, width)
        attended: Tensor = self.attn(windows, index, mask)
        whole = attended.view(count, cells, cells, window, window, width).transpose(2, 3).reshape(count, side, side, width)
        if shift:
            whole = whole.roll((shift, shift), dims=(1, 2))
        hidden = hidden + whole
        update: Tensor = self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(hidden))))
        return hidden + update


class _WindowAttention(nn.Module):
    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))

    def forward(self, windows: Tensor, index: Tensor, mask: Tensor | None) -> Tensor:
        """Attention within each window.

        Args:
            windows: (N * W, n, C), the W windows of a picture one behind the other.
            index: (n, n), rows of the table of biases.
            mask: (W, n, n), added to the scores.
        """
        count, length, width = windows.shape
        query, key, value = self.qkv(windows).view(count, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(count // len(mask), 1, 1, 1)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)  # its softmax is float32 inside
        joined: Tensor = self.proj(found.transpose(1, 2).reshape(count, length, width))
        return joined


class _Downsample(nn.Module):
    """Four neighbours become one place of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=_EPS)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, G, G, C) -> (N, G / 2, G / 2, 2 C)."""
        neighbours = [hidden[:, row::2, column::2] for row, column in ((0, 0), (1, 0), (0, 1), (1, 1))]
        merged: Tensor = self.reduction(self.norm(torch.cat(neighbours, dim=-1)))
        return merged


def relative_places(window: int) -> Tensor:
    """(n, n): for each pair of places of a window, n = window², the row of the table for how they lie to each other."""
    side = torch.arange(window, device="cpu")
    rows, columns = (places.flatten() for places in torch.meshgrid(side, side, indexing="ij"))
    down, right = (places[:, None] - places[None, :] + window - 1 for places in (rows, columns))
    return down * (2 * window - 1) + right


def shifted_mask(grid: int, window: int, shift: int) -> Tensor:
    """(W, n, n): what is added to scores after a shift, which brings places of opposite edges into one window."""
    came_around = torch.arange(grid, device="cpu") >= grid - shift
    region = 2 * came_around[:, None].long() + came_around[None, :].long()
    cells = grid // window
    regions = region.view(cells, window, cells, window).transpose(1, 2).reshape(cells * cells, window * window)
    apart = regions[:, :, None] != regions[:, None, :]
    return torch.zeros(apart.shape, device="cpu").masked_fill(apart, _APART)
