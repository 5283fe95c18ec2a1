"""The VAE of Stable Diffusion in tiles, for pictures whose feature maps do not even fit into memory in strips.

A normalisation takes the moments of the whole picture, and attention reads all of it; a tile has neither. Both are taken from
a sample: batches of crops from all over the picture, as many in a batch as fit, each of which is worked on as one picture.
Then one tile after the other goes by the moments, keys and values of all of them. Since these are the same for all tiles, and
since a tile reads what lies around it, no seams arise; the result is that of the whole but for the chance of the sample.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.offload import vae_bytes
from pnp_irib.diffusion.vae_attention import attend, queries_keys_values
from pnp_irib.diffusion.vae_strips import FeatureMap, Scope, decoded_in_strips, encoded_in_strips
from pnp_irib.errors import ConfigError
from pnp_irib.images.tiling import Tile, plan_tiles
from pnp_irib.runtime import give_memory_back

__all__ = ["BoundedTiles", "decoded_in_bounded_tiles", "encoded_in_bounded_tiles", "mode_within"]

# All ours, in latent pixels.
HALO = 8  # of a tile: with the statistics of the whole picture, tiles are the whole picture up to 1e-3 of its contrast
LEAST = 8  # side of a tile without its halo
CELL = 16  # side of a crop without its margin; the smaller, the more of them a batch has and the more it is like the picture
MARGIN = 2  # of a crop: what the borders of crops change is not counted
BATCHES = 8  # at most; more would take longer than they help


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
        batches = _batches(height, width, area)
        counted = sum(map(_area, itertools.chain(*batches)))
        samples = [_Sample(crops, step=math.ceil(math.sqrt(counted / area))) for crops in batches]
        for crops, sample in zip(batches, samples, strict=True):
            run(torch.cat([_cut(picture, crop.read, reduced) for crop in crops]), sample)
            give_memory_back()
        scope = _Known(samples)
        for core, read in plan_tiles(height, width, tile=math.isqrt(area) - 2 * HALO, halo=HALO):
            part = run(_cut(picture, read, reduced), scope)
            if result is None:
                result = part.new_empty((len(x), part.shape[1], height * enlarged, width * enlarged))
            _cut(result[number : number + 1], core, enlarged).copy_(_cut(part, _inside(core, read), enlarged))
            del part
            give_memory_back()  # tiles of several sizes would pile up
    assert result is not None
    return result


_Box: TypeAlias = tuple[int, int, int, int]
"""Top, bottom, left, right, latent pixels."""


def _cut(x: Tensor, box: _Box, factor: int) -> Tensor:
    top, bottom, left, right = (factor * edge for edge in box)
    return x[..., top:bottom, left:right]


def _inside(core: _Box, read: _Box) -> _Box:
    """A core in what is read for it."""
    return core[0] - read[0], core[1] - read[0], core[2] - read[2], core[3] - read[2]


def _area(crop: Tile) -> int:
    top, bottom, left, right = crop.core
    return (bottom - top) * (right - left)


def _batches(height: int, width: int, area: int) -> list[list[Tile]]:
    """Crops of one size, which read up to ``area`` in a batch. Each batch is spread over the picture, as are all together.

    They are the cells of a grid, in the order of a low-discrepancy sequence in two dimensions (Roberts, The unreasonable
    effectiveness of quasirandom sequences, 2018), so that a batch has its share of each row and column, thus of the borders.
    """
    side = min(CELL, math.isqrt(area // 4) - 2 * MARGIN)
    cells = [tile.core for tile in plan_tiles(height, width, tile=side, halo=0)]
    columns = len({left for _, _, left, _ in cells})
    order = sorted(range(len(cells)), key=lambda n: (n // columns * 0.7548776662 + n % columns * 0.5698402910) % 1)
    tall = min(height, max(bottom - top for top, bottom, _, _ in cells) + 2 * MARGIN)
    wide = min(width, max(right - left for _, _, left, right in cells) + 2 * MARGIN)
    crops = []
    for cell in (cells[n] for n in order):
        top, left = (max(0, min(cell[i] - MARGIN, most)) for i, most in ((0, height - tall), (2, width - wide)))
        crops.append(Tile(cell, (top, top + tall, left, left + wide)))
    count = math.ceil(len(crops) / (area // (tall * wide)))
    edges = [len(crops) * n // count for n in range(min(count, BATCHES) + 1)]
    return [crops[start:end] for start, end in itertools.pairwise(edges)]


class _Sample(Scope):
    """Takes a batch of crops for one picture, and keeps what it finds.

    Args:
        crops: where they are.
        step: from one token to the next that is kept, in both directions.

    Attributes:
        found: of each normalisation, the moments of the crops, (crops, groups) each.
        tokens: of each attention, keys and values (1, heads, tokens, C).
        weights: of the crops, (crops,).
    """

    counts = False

    def __init__(self, crops: Sequence[Tile], step: int) -> None:
        self.found: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.tokens: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        self.weights = torch.tensor([_area(crop) for crop in crops])
        self._step = step
        self._insides = [_inside(*crop) for crop in crops]
        self._height = crops[0].read[1] - crops[0].read[0]

    def _parts(self, maps: Tensor) -> list[Tensor]:
        """What counts of each of the crops, (1, ..., h, w)."""
        factor = maps.shape[-2] // self._height
        return [_cut(one, inside, factor) for one, inside in zip(maps.split(1), self._insides, strict=True)]

    def moments(self, norm: nn.GroupNorm, x: FeatureMap) -> tuple[Tensor, Tensor]:
        each = []
        for part in self._parts(x.pixels):
            counted = FeatureMap(part, Scope())
            counted.count(part)
            each.append(counted.moments(norm.num_groups))
        means, variances = (torch.cat(of) for of in zip(*each, strict=True))
        self.found[norm] = means, variances
        return _together(means, variances, self.weights)

    def attended(self, attention: Any, x: FeatureMap) -> Tensor:
        query, *others = _asked(attention, x)
        keys, values = (self._parts(other.mT.unflatten(3, x.pixels.shape[2:])) for other in others)
        self.tokens[attention] = _in_one_sequence(keys, self._step), _in_one_sequence(values, self._step)
        query = query.transpose(0, 1).flatten(1, 2)[None]
        return attend(attention, x.pixels, query, _in_one_sequence(keys), _in_one_sequence(values))


class _Known(Scope):
    """Goes by what samples found."""

    counts = False

    def __init__(self, samples: Sequence[_Sample]) -> None:
        weights = torch.cat([sample.weights for sample in samples])
        self._moments = {}
        for norm in samples[0].found:
            means, variances = (torch.cat(of) for of in zip(*(sample.found[norm] for sample in samples), strict=True))
            self._moments[norm] = _together(means, variances, weights)
        self._tokens = {}
        for attention in samples[0].tokens:
            key, value = (torch.cat(of, 2) for of in zip(*(sample.tokens[attention] for sample in samples), strict=True))
            self._tokens[attention] = key, value

    def moments(self, norm: nn.GroupNorm, x: FeatureMap) -> tuple[Tensor, Tensor]:
        return self._moments[norm]

    def attended(self, attention: Any, x: FeatureMap) -> Tensor:
        query, _, _ = _asked(attention, x)
        return attend(attention, x.pixels, query, *self._tokens[attention])


def _asked(attention: Any, x: FeatureMap) -> tuple[Tensor, Tensor, Tensor]:
    return queries_keys_values(attention, x.normalised_by(attention.group_norm)(0, x.pixels.shape[2]))


def _in_one_sequence(parts: Sequence[Tensor], step: int = 1) -> Tensor:
    """Maps (1, heads, C, h, w) to (1, heads, tokens, C)."""
    return torch.cat([part[..., ::step, ::step].flatten(3) for part in parts], 3).mT.contiguous()


def _together(means: Tensor, variances: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Moments of parts, (N, groups), as those of one picture, (1, groups)."""
    shares = (weights / weights.sum()).to(means)[:, None]
    mean = (shares * means).sum(0, keepdim=True)
    return mean, (shares * (variances + (means - mean).square())).sum(0, keepdim=True)
