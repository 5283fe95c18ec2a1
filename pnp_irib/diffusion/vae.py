"""The VAE of Stable Diffusion on large pictures: in tiles that go through the layers together.

Ordinary tiles show seams, since each GroupNorm takes its mean and variance from its own tile, and the attention in the
middle sees its own tile only. Here all tiles stop at each such layer and share what it needs. ``exact`` statistics are those
of the whole picture, each pixel counted once, and attention reads all of it: with a halo as wide as the convolutions reach,
the result is that of the whole picture up to rounding. ``published`` are those of the code that OSEDiff, SeeSR and others were
released with.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.errors import ConfigError
from pnp_irib.images.tiling import Tile, plan_tiles

__all__ = ["VaeTiling", "decode", "encode", "plan_published_tiles", "sample_posterior"]

PUBLISHED_HALO = {"encoder": 32, "decoder": 11}  # pixels, latent pixels
LOGVAR_RANGE = (-30.0, 20.0)


@dataclass(frozen=True)
class VaeTiling:
    """How large pictures are cut.

    Attributes:
        encoder_tile: side in pixels; a multiple of the VAE's downscaling.
        decoder_tile: side in latent pixels.
        statistics: see the module.
    """

    encoder_tile: int = 1024
    decoder_tile: int = 128
    statistics: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        if self.encoder_tile < 8 or self.decoder_tile < 1:
            raise ConfigError(
                f"VAE tiles of {self.encoder_tile} pixels and {self.decoder_tile} latent pixels: "
                f"expected at least 8 and at least 1."
            )


def encode(vae: Any, pictures: Tensor, tiling: VaeTiling | None = None) -> tuple[Tensor, Tensor]:
    """Mean and log variance of the posterior, (N, C, H/f, W/f) each, not scaled.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
        pictures: (N, 3, H, W) in [-1, 1], sides multiples of the VAE's downscaling f.
        tiling: how to cut; None, or with gradients: in one piece.
    """
    factor = 2 ** (len(vae.encoder.down_blocks) - 1)
    tiles = None
    if tiling is not None and not torch.is_grad_enabled():
        tiles = _plan(pictures, tiling, decoder=False, halo=_reach(vae.encoder, factor) * factor, multiple_of=factor)
    if tiles is None:
        hidden = vae.encoder(pictures)
    else:
        assert tiling is not None
        hidden = _run(lambda x: _encoder(vae.encoder, x), pictures, tiles, tiling.statistics, 1, factor)
    if getattr(vae, "quant_conv", None) is not None:
        hidden = vae.quant_conv(hidden.to(pictures.dtype))
    mean, logvar = hidden.chunk(2, 1)
    return mean, logvar.clamp(*LOGVAR_RANGE)


def sample_posterior(mean: Tensor, logvar: Tensor, noise: Tensor) -> Tensor:
    """A sample of the posterior, not scaled."""
    return mean + torch.exp(0.5 * logvar) * noise


def decode(vae: Any, latents: Tensor, tiling: VaeTiling | None = None) -> Tensor:
    """Pictures (N, 3, f H, f W) in about [-1, 1], not clamped.

    Args:
        vae: an ``AutoencoderKL`` of diffusers.
        latents: (N, C, H, W), not scaled.
        tiling: how to cut; None, or with gradients: in one piece.
    """
    factor = 2 ** (len(vae.decoder.up_blocks) - 1)
    if getattr(vae, "post_quant_conv", None) is not None:
        latents = vae.post_quant_conv(latents)
    tiles = None
    if tiling is not None and not torch.is_grad_enabled():
        tiles = _plan(latents, tiling, decoder=True, halo=_reach(vae.decoder, factor), multiple_of=1)
    if tiles is None:
        return cast(Tensor, vae.decoder(latents))
    assert tiling is not None
    return _run(lambda x: _decoder(vae.decoder, x), latents, tiles, tiling.statistics, factor, 1)


def _plan(x: Tensor, tiling: VaeTiling, *, decoder: bool, halo: int, multiple_of: int) -> list[Tile] | None:
    height, width = x.shape[-2:]
    side = tiling.decoder_tile if decoder else tiling.encoder_tile
    if tiling.statistics == "published":
        return plan_published_tiles(height, width, side, decoder=decoder)
    if max(height, width) <= side:
        return None
    side = max(multiple_of, side // multiple_of * multiple_of)
    return list(plan_tiles(height, width, tile=side, halo=halo, multiple_of=multiple_of))


def _reach(network: Any, factor: int) -> int:
    """How far the convolutions of an encoder or decoder see, latent pixels, rounded up."""
    blocks = network.down_blocks if hasattr(network, "down_blocks") else network.up_blocks
    decoder = hasattr(network, "up_blocks")
    pixels = 0.0
    scale = float(factor) if decoder else 1.0  # of one feature, in pixels
    pixels += scale  # conv_in
    middle = 2 * len(network.mid_block.resnets) * factor
    for block in blocks:
        pixels += 2 * len(block.resnets) * scale
        for _ in getattr(block, "upsamplers", None) or ():
            scale /= 2
            pixels += scale
        for _ in getattr(block, "downsamplers", None) or ():
            pixels += scale
            scale *= 2
    pixels += middle + scale  # and conv_out
    return math.ceil(pixels / factor)


def plan_published_tiles(height: int, width: int, tile: int, *, decoder: bool) -> list[Tile] | None:
    """Tiles as the published code cuts them; None: not at all.

    Args:
        height: of the picture, or for the decoder of the latent.
        width: likewise.
        tile: side.
        decoder: whose tiles.
    """
    pad = PUBLISHED_HALO["decoder" if decoder else "encoder"]
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


@dataclass
class _Attend:
    """A tile at an attention: waits for keys and values, (N, heads, tokens, width) each."""

    key: Tensor
    value: Tensor
    heads: int


_Layers: TypeAlias = Generator[_Norm | _Attend, Any, Tensor]


def _run(
    layers: Callable[[Tensor], _Layers], x: Tensor, tiles: Sequence[Tile], statistics: str, enlarged: int, reduced: int
) -> Tensor:
    """All tiles through ``layers`` in step; the result is ``enlarged / reduced`` times as large as ``x``."""
    cut = [x[..., t.read[0] : t.read[1], t.read[2] : t.read[3]] for t in tiles]
    running = [layers(part) for part in cut]
    waiting: list[_Norm | _Attend] = [next(tile) for tile in running]
    while True:
        answers = _answers(waiting, tiles, exact=statistics == "exact")
        done: list[Tensor] = []
        for i, tile in enumerate(running):
            try:
                waiting[i] = tile.send(answers[i])
            except StopIteration as end:
                done.append(end.value)
        if done:
            break
    height, width = (side * enlarged // reduced for side in x.shape[-2:])
    result = torch.zeros((*done[0].shape[:2], height, width), dtype=torch.float32, device=x.device)
    for place, part in zip(tiles, done, strict=True):
        core, read = ([side * enlarged // reduced for side in box] for box in (place.core, place.read))
        result[..., core[0] : core[1], core[2] : core[3]] = part[
            ..., core[0] - read[0] : core[1] - read[0], core[2] - read[2] : core[3] - read[2]
        ]
    return result.to(x.dtype) if statistics == "exact" else result


def _answers(waiting: Sequence[_Norm | _Attend], tiles: Sequence[Tile], *, exact: bool) -> list[Any]:
    first = waiting[0]
    if isinstance(first, _Norm):
        asked = cast("Sequence[_Norm]", waiting)
        return [_factors(asked, tiles, exact=exact)] * len(waiting)
    keys = cast("Sequence[_Attend]", waiting)
    if not exact:
        return [(_split(a.key.flatten(2), a.heads), _split(a.value.flatten(2), a.heads)) for a in keys]
    key, value = (
        torch.cat([_core(getattr(a, name), tile).flatten(2) for a, tile in zip(keys, tiles, strict=True)], 2)
        for name in ("key", "value")
    )
    return [(_split(key, keys[0].heads), _split(value, keys[0].heads))] * len(waiting)


def _core(x: Tensor, tile: Tile) -> Tensor:
    """The part of a feature map of a tile that no other tile is responsible for."""
    (top, bottom, left, right), read = tile
    tall, wide = read[1] - read[0], read[3] - read[2]
    rows, columns = (
        [(edge - read[at]) * side // span for edge in edges]
        for edges, at, side, span in (
            ((top, bottom), 0, x.shape[-2], tall),
            ((left, right), 2, x.shape[-1], wide),
        )
    )
    return x[..., rows[0] : rows[1], columns[0] : columns[1]]


def _factors(asked: Sequence[_Norm], tiles: Sequence[Tile], *, exact: bool) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel, (N, C, 1, 1) float32 each."""
    norm = asked[0].module
    grouped = [
        (_core(a.x, tile) if exact else a.x).float().unflatten(1, (norm.num_groups, -1)).flatten(2)
        for a, tile in zip(asked, tiles, strict=True)
    ]
    total = sum(g.shape[2] for g in grouped)
    if exact:
        mean = torch.stack([g.mean(2) * (g.shape[2] / total) for g in grouped]).sum(0)
        variance = torch.stack([(g - mean[..., None]).square().mean(2) * (g.shape[2] / total) for g in grouped]).sum(0)
    else:  # leaves out how the means of the tiles spread
        pairs = [torch.var_mean(g, 2, correction=0) for g in grouped]
        shares = [g.shape[2] / total for g in grouped]
        variance = torch.stack([v * share for (v, _), share in zip(pairs, shares, strict=True)]).sum(0)
        mean = torch.stack([m * share for (_, m), share in zip(pairs, shares, strict=True)]).sum(0)
    inverse = torch.rsqrt(variance + norm.eps)
    scale = inverse.repeat_interleave(norm.num_channels // norm.num_groups, 1) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(norm.num_channels // norm.num_groups, 1) * scale
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
    height, width = x.shape[-2:]
    tokens = normal.flatten(2).transpose(1, 2)
    query, key, value = (project(tokens).transpose(1, 2) for project in (layer.to_q, layer.to_k, layer.to_v))
    keys, values = yield _Attend(key.unflatten(2, (height, width)), value.unflatten(2, (height, width)), layer.heads)
    found = F.scaled_dot_product_attention(_split(query, layer.heads), keys, values)
    found = layer.to_out[0](found.transpose(1, 2).flatten(2))
    found = layer.to_out[1](found).transpose(1, 2).unflatten(2, (height, width))
    return cast(Tensor, (found + x) / layer.rescale_output_factor)


def _split(x: Tensor, heads: int) -> Tensor:
    """(N, C, tokens) to (N, heads, tokens, C / heads)."""
    split: Tensor = x.unflatten(1, (heads, -1)).transpose(2, 3)
    return split


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
