"""The VAE of Stable Diffusion in tiles, as the code tiles it that OSEDiff, SeeSR and others were released with.

All tiles stop at each normalisation and take the average of their means and variances, which leaves out how the means differ;
attention sees its own tile only. It shows seams that `pnp_irib.diffusion.vae_strips` has not, and is here for `compat`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.vae_attention import attend, queries_keys_values
from pnp_irib.errors import ConfigError
from pnp_irib.images.tiling import Tile

__all__ = ["PublishedTiles", "decoded_in_tiles", "encoded_in_tiles", "plan_tiles"]

HALO = {"encoder": 32, "decoder": 11}  # pixels, latent pixels


@dataclass(frozen=True)
class PublishedTiles:
    """Sizes of the tiles.

    Attributes:
        encoder: side in pixels; None: in one piece.
        decoder: side in latent pixels; None: in one piece.
        narrow_whole: leave in one piece what has a side shorter than a tile, as DiffBIR does.

    Raises:
        ConfigError: a size is no whole number, or too small for a tile.
    """

    encoder: int | None = 1024
    decoder: int | None = 224
    narrow_whole: bool = False

    def __post_init__(self) -> None:
        for side, least, what in ((self.encoder, 8, "pixels"), (self.decoder, 1, "latent pixels")):
            if side is not None and not (isinstance(side, Integral) and not isinstance(side, bool) and side >= least):
                raise ConfigError(
                    f"VAE tiles of {side!r:.60} {what}: expected a whole number, at least {least}, or None for no tiles."
                )
        if not isinstance(self.narrow_whole, bool):
            raise ConfigError(f"narrow_whole={self.narrow_whole!r:.60} of VAE tiles: expected True or False.")

    def plan(self, height: int, width: int, *, decoder: bool) -> list[Tile] | None:
        """Tiles of pictures, or for the decoder of latents, of this size; None: they stay in one piece."""
        side = self.decoder if decoder else self.encoder
        if side is None or (self.narrow_whole and min(height, width) < side):
            return None
        return plan_tiles(height, width, side, decoder=decoder)


def encoded_in_tiles(encoder: Any, pictures: Tensor, sizes: PublishedTiles, factor: int) -> Tensor:
    """What the encoder makes of pictures, float32 where they are tiled; ``factor``: how much smaller that is."""
    tiles = sizes.plan(pictures.shape[-2], pictures.shape[-1], decoder=False)
    if tiles is None:
        return cast(Tensor, encoder(pictures))
    return _run(lambda x: _encoder(encoder, x), pictures, tiles, 1, factor)


def decoded_in_tiles(decoder: Any, latents: Tensor, sizes: PublishedTiles, factor: int) -> Tensor:
    """What the decoder makes of latents, float32 where they are tiled; ``factor``: how much larger that is."""
    tiles = sizes.plan(latents.shape[-2], latents.shape[-1], decoder=True)
    if tiles is None:
        return cast(Tensor, decoder(latents))
    return _run(lambda x: _decoder(decoder, x), latents, tiles, factor, 1)


def plan_tiles(height: int, width: int, tile: int, *, decoder: bool) -> list[Tile] | None:
    """Tiles as the published code cuts them; None: not at all.

    Args:
        height: of the picture, or for the decoder of the latent.
        width: likewise.
        tile: side.
        decoder: whose tiles.
    """
    pad = HALO["decoder" if decoder else "encoder"]
    if max(height, width) <= tile + 2 * pad:
        return None
    rows, columns = _published_spans(height, tile, pad), _published_spans(width, tile, pad)
    return [Tile((*row[0], *column[0]), (*row[1], *column[1])) for row in rows for column in columns]


def _published_spans(length: int, tile: int, pad: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """What each tile of a side is responsible for, and what it reads."""
    count = max(1, math.ceil((length - 2 * pad) / tile))
    side = math.ceil((length - 2 * pad) / count)
    for divisor in (32, 16, 8, 4, 2):
        rest = side % divisor
        if rest == 0:
            break
        if side - rest + divisor <= tile:
            side += divisor - rest
            break
    spans = []
    for k in range(count):
        start, end = pad + k * side, min(pad + (k + 1) * side, length)
        core = (0 if start <= pad else start, length if end >= length - pad else end)
        spans.append((core, (max(0, start - pad), min(length, end + pad))))
    return spans


@dataclass
class _Norm:
    """A tile at a GroupNorm: waits for the factors of its channels."""

    x: Tensor
    module: nn.GroupNorm


_Layers: TypeAlias = Generator[_Norm, tuple[Tensor, Tensor], Tensor]


def _run(layers: Callable[[Tensor], _Layers], x: Tensor, tiles: Sequence[Tile], enlarged: int, reduced: int) -> Tensor:
    """All tiles through ``layers`` in step; the result is ``enlarged / reduced`` times as large as ``x``."""
    running = [layers(x[..., t.read[0] : t.read[1], t.read[2] : t.read[3]]) for t in tiles]
    waiting = [next(tile) for tile in running]
    done: list[Tensor] = []
    while not done:
        factors = _factors(waiting)
        for i, tile in enumerate(running):
            try:
                waiting[i] = tile.send(factors)
            except StopIteration as end:
                done.append(end.value)
    height, width = (side * enlarged // reduced for side in x.shape[-2:])
    result = torch.zeros((*done[0].shape[:2], height, width), dtype=torch.float32, device=x.device)
    for place, part in zip(tiles, done, strict=True):
        core, read = ([side * enlarged // reduced for side in box] for box in (place.core, place.read))
        result[..., core[0] : core[1], core[2] : core[3]] = part[
            ..., core[0] - read[0] : core[1] - read[0], core[2] - read[2] : core[3] - read[2]
        ]
    return result


def _factors(asked: Sequence[_Norm]) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, (N, C, 1, 1) float32 each."""
    norm = asked[0].module
    grouped = [a.x.float().unflatten(1, (norm.num_groups, -1)).flatten(2) for a in asked]
    total = sum(g.shape[2] for g in grouped)
    pairs = [torch.var_mean(g, 2, correction=0) for g in grouped]
    shares = [g.shape[2] / total for g in grouped]
    variance = torch.stack([v * share for (v, _), share in zip(pairs, shares, strict=True)]).sum(0)
    mean = torch.stack([m * share for (_, m), share in zip(pairs, shares, strict=True)]).sum(0)
    repeats = norm.num_channels // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(repeats, 1) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(repeats, 1) * scale
    return scale[..., None, None], shift[..., None, None]


def _norm(module: nn.GroupNorm, x: Tensor) -> _Layers:
    scale, shift = yield _Norm(x, module)
    normal: Tensor = x.float() * scale + shift
    return normal.to(x.dtype)


def _resnet(block: Any, x: Tensor) -> _Layers:
    hidden = block.nonlinearity((yield from _norm(block.norm1, x)))
    hidden = block.conv1(hidden)
    hidden = block.nonlinearity((yield from _norm(block.norm2, hidden)))
    hidden = block.conv2(block.dropout(hidden))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    return cast(Tensor, (x + hidden) / block.output_scale_factor)


def _attention(layer: Any, x: Tensor) -> _Layers:
    normal = yield from _norm(layer.group_norm, x)
    return attend(layer, x, *queries_keys_values(layer, normal))


def _middle(block: Any, x: Tensor) -> _Layers:
    x = yield from _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = yield from _attention(attention, x)
        x = yield from _resnet(resnet, x)
    return x


def _encoder(network: Any, x: Tensor) -> _Layers:
    x = network.conv_in(x)
    for block in network.down_blocks:
        for resnet in block.resnets:
            x = yield from _resnet(resnet, x)
        for downsample in block.downsamplers or ():
            x = downsample(x)
    x = yield from _middle(network.mid_block, x)
    return (yield from _last(network, x))


def _decoder(network: Any, x: Tensor) -> _Layers:
    x = yield from _middle(network.mid_block, network.conv_in(x))
    for block in network.up_blocks:
        for resnet in block.resnets:
            x = yield from _resnet(resnet, x)
        for upsample in block.upsamplers or ():
            x = upsample(x)
    return (yield from _last(network, x))


def _last(network: Any, x: Tensor) -> _Layers:
    x = network.conv_act((yield from _norm(network.conv_norm_out, x)))
    return cast(Tensor, network.conv_out(x))
