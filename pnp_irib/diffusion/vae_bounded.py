"""The VAE of Stable Diffusion in tiles, for pictures whose feature maps do not even fit into memory in strips.

A normalisation takes the moments of the whole picture, and attention reads all of it; a tile has neither. Both are taken from
a sample: crops from all over the picture, as many as fit at a time, which are worked on as one picture. Then one tile after
the other goes by the moments, keys and values of the sample. Since these are the same for all tiles, and since a tile reads
what lies around it, no seams arise; the result is that of the whole picture but for the chance of the sample.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.offload import vae_bytes
from pnp_irib.diffusion.vae_attention import attend, queries_keys_values
from pnp_irib.diffusion.vae_strips import FeatureMap, Scope, decoded_in_strips, encoded_in_strips
from pnp_irib.errors import ConfigError
from pnp_irib.images.tiling import plan_tiles
from pnp_irib.runtime import give_memory_back

__all__ = ["BoundedTiles", "decoded_in_bounded_tiles", "encoded_in_bounded_tiles", "mode_within"]

# All in latent pixels.
HALO = 8  # ours: with the statistics of the whole picture, tiles then are the whole picture up to 1e-3 of its contrast
LEAST = 8  # side of a tile without its halo
CROP = 24  # side; ours: larger ones are fewer and tell less of the picture, smaller ones have more borders that it has not
SMALLEST_CROP = 16


@dataclass(frozen=True)
class BoundedTiles:
    """How much is worked on at a time.

    Attributes:
        pixels: of a tile with what it reads around; pictures of no more than that are worked on in strips.
    """

    pixels: int

    def __post_init__(self) -> None:
        if self.pixels < 1:
            raise ConfigError(f"VAE tiles of {self.pixels} pixels: expected at least 1.")


def encoded_in_bounded_tiles(encoder: Any, pictures: Tensor, mode: BoundedTiles, factor: int) -> Tensor:
    """What the encoder makes of pictures (N, 3, H, W); ``factor``: how much smaller that is."""
    return _each(lambda x, scope: encoded_in_strips(encoder, x, scope), pictures, mode, factor, 1)


def decoded_in_bounded_tiles(decoder: Any, latents: Tensor, mode: BoundedTiles, factor: int) -> Tensor:
    """What the decoder makes of latents (N, C, h, w); ``factor``: how much larger that is."""
    return _each(lambda x, scope: decoded_in_strips(decoder, x, scope), latents, mode, 1, factor)


def mode_within(
    vae: nn.Module, pixels: int, itemsize: int, *, decoder: bool, room: int
) -> tuple[Literal["strips"] | BoundedTiles, int]:
    """How the VAE is to work so that its working memory has room, and what it takes, beside the pictures themselves.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
        pixels: of all pictures together.
        itemsize: bytes of a number.
        decoder: whose memory.
        room: bytes.

    Returns:
        Strips, where these fit. Else tiles as large as fit; where none do, the smallest, which take more than ``room``.
    """

    def needed(pixels: int) -> int:
        return vae_bytes(vae, pixels, itemsize, decoder=decoder)

    if needed(pixels) <= room:
        return "strips", needed(pixels)
    factor: int = 1 << (len(vae.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]
    least = (LEAST + 2 * HALO) ** 2 * factor**2
    held = max(min(least, pixels), bisect.bisect_right(range(pixels), room, key=needed) - 1)
    return BoundedTiles(held), needed(held)


_Run: TypeAlias = Callable[[Tensor, Scope], Tensor]


def _each(run: _Run, x: Tensor, mode: BoundedTiles, reduced: int, enlarged: int) -> Tensor:
    """One picture after the other; ``x`` has ``reduced`` times the sides of the latent, the result ``enlarged`` times."""
    if x[0, 0].numel() * enlarged**2 <= mode.pixels:
        return torch.cat([run(picture, Scope()) for picture in x.split(1)])
    area = max(mode.pixels // max(reduced, enlarged) ** 2, (LEAST + 2 * HALO) ** 2)
    height, width = (side // reduced for side in x.shape[-2:])
    result: Tensor | None = None
    for number, picture in enumerate(x.split(1)):
        sample = _Sample()
        for crops in _crops(height, width, area):
            run(torch.cat([_cut(picture, crop, reduced) for crop in crops]), sample)
            give_memory_back()
        scope = sample.scope()
        for core, read in plan_tiles(height, width, tile=math.isqrt(area) - 2 * HALO, halo=HALO):
            part = run(_cut(picture, read, reduced), scope)
            if result is None:
                result = part.new_empty((len(x), part.shape[1], height * enlarged, width * enlarged))
            inside = (core[0] - read[0], core[1] - read[0], core[2] - read[2], core[3] - read[2])
            _cut(result[number : number + 1], core, enlarged).copy_(_cut(part, inside, enlarged))
            del part
            give_memory_back()  # tiles of several sizes would pile up
    assert result is not None
    return result


_Box: TypeAlias = tuple[int, int, int, int]
"""Top, bottom, left, right, latent pixels."""


def _cut(x: Tensor, box: _Box, factor: int) -> Tensor:
    top, bottom, left, right = (factor * edge for edge in box)
    return x[..., top:bottom, left:right]


def _crops(height: int, width: int, area: int) -> Iterator[list[_Box]]:
    """Four batches of crops of one size, no more than ``area`` each, in the middle of the cells of a grid.

    A batch has the cells of every second row and column, so that it is a sample of the whole picture by itself.
    """
    side = min(CROP, math.isqrt(area // 4))
    tall, wide = min(side, height), min(side, width)
    count = area // (tall * wide)
    rows = min(count, max(1, round(math.sqrt(count * height / tall * wide / width))), math.ceil(height / tall / 2))
    columns = min(count // rows, math.ceil(width / wide / 2))
    tall, wide = _no_longer_than_cells(height, tall, 2 * rows), _no_longer_than_cells(width, wide, 2 * columns)
    tops, lefts = _middles(height, tall, 2 * rows), _middles(width, wide, 2 * columns)
    for down in range(2):
        for right in range(2):
            yield [(top, top + tall, left, left + wide) for top in tops[down::2] for left in lefts[right::2]]


def _no_longer_than_cells(length: int, side: int, cells: int) -> int:
    """Side of crops, where the cells are not too short."""
    return min(side, max(SMALLEST_CROP, math.ceil(length / cells)))


def _middles(length: int, side: int, count: int) -> list[int]:
    """Where crops begin."""
    return [min(max(0, ((2 * k + 1) * length // count - side) // 2), length - side) for k in range(count)]


class _Sample(Scope):
    """Takes a batch of crops for one picture, and keeps what it finds in each of four."""

    def __init__(self) -> None:
        self._moments: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}
        self._tokens: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {}

    def moments(self, norm: nn.GroupNorm, x: FeatureMap) -> tuple[Tensor, Tensor]:
        found = _together(*x.moments(norm.num_groups))
        self._moments.setdefault(norm, []).append(found)
        return found

    def attended(self, attention: Any, x: FeatureMap) -> Tensor:
        query, key, value = (_in_one_sequence(part) for part in _asked(attention, x))
        self._tokens.setdefault(attention, []).append((key[:, :, ::4].clone(), value[:, :, ::4].clone()))
        return attend(attention, x.pixels, query, key, value)

    def scope(self) -> Scope:
        """What the batches say together."""
        moments = {norm: _together(*map(torch.cat, zip(*found, strict=True))) for norm, found in self._moments.items()}
        tokens = {
            attention: (torch.cat([key for key, _ in found], 2), torch.cat([value for _, value in found], 2))
            for attention, found in self._tokens.items()
        }
        return _Known(moments, tokens)


class _Known(Scope):
    """Goes by moments of normalisations, and by keys and values of attentions."""

    counts = False

    def __init__(
        self, moments: dict[nn.Module, tuple[Tensor, Tensor]], tokens: dict[nn.Module, tuple[Tensor, Tensor]]
    ) -> None:
        self._moments, self._tokens = moments, tokens

    def moments(self, norm: nn.GroupNorm, x: FeatureMap) -> tuple[Tensor, Tensor]:
        return self._moments[norm]

    def attended(self, attention: Any, x: FeatureMap) -> Tensor:
        query, _, _ = _asked(attention, x)
        return attend(attention, x.pixels, query, *self._tokens[attention])


def _asked(attention: Any, x: FeatureMap) -> tuple[Tensor, Tensor, Tensor]:
    return queries_keys_values(attention, x.normalised_by(attention.group_norm)(0, x.pixels.shape[2]))


def _in_one_sequence(part: Tensor) -> Tensor:
    """(N, heads, tokens, C) to (1, heads, N tokens, C)."""
    return part.transpose(0, 1).flatten(1, 2)[None]


def _together(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of equally many pixels each, (N, groups), as those of one picture."""
    whole = mean.mean(0, keepdim=True)
    return whole, (variance + (mean - whole).square()).mean(0, keepdim=True)
