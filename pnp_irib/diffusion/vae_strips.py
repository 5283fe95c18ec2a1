"""The VAE of Stable Diffusion layer by layer in strips of rows: the result of the whole picture in less memory, without seams.

A normalisation, its activation and the convolution behind it read a strip with one more row on either side and write theirs;
the statistics of the next normalisation are gathered on the way. Only the feature maps between convolutions are ever whole.
Attention, on the smallest maps, is left to the module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.convolution import fewer_products, is_hooked, is_plain
from pnp_irib.runtime import widest_float

__all__ = ["FeatureMap", "Scope", "decoded_in_strips", "encoded_in_strips"]

STRIP_ELEMENTS = {"cpu": 2**20, "cuda": 2**27}  # of a strip of a feature map


class Scope:
    """What normalisation and attention look at: this one at each picture by itself, as the modules do.

    Attributes:
        counts: whether the moments of feature maps are asked for.
    """

    counts = True

    def moments(self, norm: nn.GroupNorm, x: FeatureMap) -> tuple[Tensor, Tensor]:
        """Mean and variance that a map is normalised with, (N or 1, groups) each."""
        return x.moments(norm.num_groups)

    def attended(self, attention: Any, x: FeatureMap) -> Tensor:
        """What an attention makes of a map, (N, C, H, W)."""
        seen: Tensor = attention(x.pixels)
        return seen


class FeatureMap:
    """A feature map that is written strip by strip, and the moments of its channels."""

    def __init__(self, pixels: Tensor, scope: Scope) -> None:
        self.pixels, self.scope = pixels, scope
        self._count = 0
        self._mean = torch.zeros(pixels.shape[:2], dtype=widest_float(pixels.device), device=pixels.device)
        self._square = self._mean.clone()  # sum of squared distances from the mean

    @classmethod
    def like(cls, x: Tensor, scope: Scope, channels: int, height: int, width: int) -> FeatureMap:
        """A map to be written, of the dtype and on the device of ``x``."""
        shape = (x.shape[0], channels, height, width)
        return cls(torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last), scope)

    def write(self, strip: Tensor, top: int) -> None:
        """Put a strip in place; each row once."""
        self.pixels[:, :, top : top + strip.shape[2]] = strip
        self.count(strip)

    def count(self, strip: Tensor) -> None:
        """Add the moments of a strip (Chan, Golub and LeVeque, 1979)."""
        if not self.scope.counts:
            return
        strip = strip.float() if strip.dtype.itemsize < 4 else strip
        average = strip.mean((2, 3), keepdim=True)  # torch.var_mean is many times slower on this layout
        square = (strip - average).square_().sum((2, 3)).to(self._mean.dtype)
        number = strip.shape[2] * strip.shape[3]
        total = self._count + number
        distance = average[..., 0, 0].to(self._mean.dtype) - self._mean
        self._square += square + distance.square() * (self._count * number / total)
        self._mean += distance * (number / total)
        self._count = total

    def moments(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of groups of channels, (N, groups) each."""
        means = self._mean.unflatten(1, (groups, -1))
        mean = means.mean(2, keepdim=True)
        inside = (self._square / self._count).unflatten(1, means.shape[1:])
        variance = (inside + (means - mean).square()).mean(2)
        return mean[..., 0], variance

    def normalised_by(self, norm: nn.GroupNorm) -> Callable[[int, int], Tensor]:
        """Gives rows of the map behind a normalisation."""
        mean, variance = self.scope.moments(norm, self)
        channels = norm.num_channels // norm.num_groups
        scale = torch.rsqrt(variance + norm.eps).repeat_interleave(channels, 1) * norm.weight.to(variance.dtype)
        shift = norm.bias.to(variance.dtype) - mean.repeat_interleave(channels, 1) * scale
        wide = torch.promote_types(self.pixels.dtype, torch.float32)
        scale, shift = (factor.to(wide)[..., None, None] for factor in (scale, shift))

        def rows(top: int, bottom: int) -> Tensor:
            strip = self.pixels[:, :, top:bottom]
            return torch.addcmul(shift, strip.to(wide), scale).to(strip.dtype)

        return rows


EACH_BY_ITSELF = Scope()


@torch.no_grad()
def encoded_in_strips(encoder: Any, pictures: Tensor, scope: Scope = EACH_BY_ITSELF) -> Tensor:
    """What the encoder makes of pictures (N, 3, H, W), before the layer that splits it into moments."""
    x = _convolved(encoder.conv_in, pictures, scope)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for downsample in block.downsamplers or ():
            x = _downsampled(downsample, x)
    return _last(encoder, _middle(encoder.mid_block, x))


@torch.no_grad()
def decoded_in_strips(decoder: Any, latents: Tensor, scope: Scope = EACH_BY_ITSELF) -> Tensor:
    """What the decoder makes of latents (N, C, h, w)."""
    x = _middle(decoder.mid_block, _convolved(decoder.conv_in, latents, scope))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for upsample in block.upsamplers or ():
            x = _upsampled(upsample, x)
    return _last(decoder, x)


def _strips(x: Tensor, channels: int) -> list[tuple[int, int]]:
    """First and last row of each strip."""
    height, width = x.shape[-2:]
    elements = STRIP_ELEMENTS.get(x.device.type, STRIP_ELEMENTS["cpu"])
    rows = min(height, max(4, elements // (x.shape[0] * channels * width) // 4 * 4))  # Winograd's tiles have four
    return [(top, min(height, top + rows)) for top in range(0, height, rows)]


Layer = Callable[[Tensor, int, int], Tensor]
"""A 3x3 convolution of rows, of which so many, the first and the last ones, are neighbours only."""


def _layer(conv: Any, height: int, width: int) -> Layer:
    """A convolution in the form that is fastest for maps of this size."""

    def padded(rows: Tensor, above: int, below: int) -> Tensor:
        if not above or not below:
            rows = F.pad(rows, (0, 0, 1 - above, 1 - below))
        return F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))

    def whole(rows: Tensor, above: int, below: int) -> Tensor:
        convolved: Tensor = conv(rows)
        return convolved[:, :, above : rows.shape[2] - below]

    return fewer_products(conv, height, width) or (padded if is_plain(conv) else whole)


def _convolve(layer: Layer, part: Callable[[int, int], Tensor], top: int, bottom: int, height: int) -> Tensor:
    """Rows ``top`` to ``bottom`` of a convolution; ``part`` gives rows of what it reads."""
    start, end = max(0, top - 1), min(height, bottom + 1)
    return layer(part(start, end), top - start, end - bottom)


def _convolved(conv: Any, x: Tensor, scope: Scope) -> FeatureMap:
    out = FeatureMap.like(x, scope, conv.weight.shape[0], *x.shape[-2:])
    layer = _layer(conv, *x.shape[-2:])
    for top, bottom in _strips(x, max(conv.weight.shape[:2])):
        out.write(_convolve(layer, lambda a, b: x[:, :, a:b], top, bottom, x.shape[2]), top)
    return out


def _activated(x: FeatureMap, norm: nn.GroupNorm, activation: nn.Module) -> Callable[[int, int], Tensor]:
    """Gives rows of the normalised and activated map."""
    normal = x.normalised_by(norm)

    def rows(top: int, bottom: int) -> Tensor:
        strip = normal(top, bottom)
        return F.silu(strip, inplace=True) if isinstance(activation, nn.SiLU) else activation(strip)

    return rows


def _resnet(block: Any, x: FeatureMap) -> FeatureMap:
    height, width = x.pixels.shape[-2:]
    hidden = FeatureMap.like(x.pixels, x.scope, block.conv1.weight.shape[0], height, width)
    given = _activated(x, block.norm1, block.nonlinearity)
    layer = _layer(block.conv1, height, width)
    for top, bottom in _strips(x.pixels, max(block.conv1.weight.shape[:2])):
        hidden.write(_convolve(layer, given, top, bottom, height), top)
    # The residual has no neighbours to read, so that the result can take the place of the input.
    if block.conv_shortcut is None:
        out = FeatureMap(x.pixels, x.scope)
    else:
        out = FeatureMap.like(x.pixels, x.scope, hidden.pixels.shape[1], height, width)
    given = _activated(hidden, block.norm2, block.nonlinearity)
    layer = _layer(block.conv2, height, width)
    for top, bottom in _strips(hidden.pixels, max(block.conv2.weight.shape[:2])):
        kept = x.pixels[:, :, top:bottom]
        if block.conv_shortcut is not None:
            kept = _pointwise(block.conv_shortcut, kept)
        place = out.pixels[:, :, top:bottom]
        torch.add(kept, _convolve(layer, given, top, bottom, height), out=place)
        if block.output_scale_factor != 1:
            place.div_(block.output_scale_factor)
        out.count(place)
    return out


def _pointwise(conv: Any, x: Tensor) -> Tensor:
    """A 1x1 convolution as the matrix product that it is: torch brings these into another layout and back on one thread."""
    if type(conv) is not nn.Conv2d or conv.kernel_size != (1, 1) or is_hooked(conv):  # with an adapter around it, say
        found: Tensor = conv(x)
        return found
    return F.linear(x.permute(0, 2, 3, 1), conv.weight.flatten(1), conv.bias).permute(0, 3, 1, 2)


def _middle(block: Any, x: FeatureMap) -> FeatureMap:
    x = _resnet(block.resnets[0], x)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            x = FeatureMap(x.scope.attended(attention, x), x.scope)
            x.count(x.pixels)
        x = _resnet(resnet, x)
    return x


def _upsampled(layer: Any, x: FeatureMap) -> FeatureMap:
    pixels = x.pixels
    height, width = pixels.shape[-2:]
    made = layer.conv.weight.shape[0]
    out = FeatureMap.like(pixels, x.scope, made, 2 * height, 2 * width)
    corners = _corners(layer)
    for top, bottom in _strips(pixels, 4 * max(layer.conv.weight.shape[:2])):
        start, end = max(0, top - 1), min(height, bottom + 1)
        given = pixels[:, :, start:end]
        if corners is None:
            out.write(layer(given)[:, :, 2 * (top - start) : 2 * (bottom - start)], 2 * top)
            continue
        given = F.pad(given, (1, 1, int(start == top), int(end == bottom)))
        four = F.conv2d(given, corners, layer.conv.bias.repeat(4)).unflatten(1, (4, made))
        rows, columns = bottom - top, width
        for i, (down, right) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
            place = out.pixels[:, :, 2 * top + down : 2 * bottom : 2, right::2]
            place.copy_(four[:, i, :, down : down + rows, right : right + columns])
        out.count(out.pixels[:, :, 2 * top : 2 * bottom])
    return out


def _corners(layer: Any) -> Tensor | None:
    """Of an upsampling by two and the 3x3 convolution behind it, the four 2x2 convolutions that give its even and odd pixels.

    In doubled pictures, two of three pixels that a kernel reads in a row are the same: their weights add up.

    Returns:
        (4 out, in, 2, 2); None if the layer is another.
    """
    conv = layer.conv
    if is_hooked(layer) or not is_plain(conv) or conv.bias is None or layer.norm is not None or not layer.interpolate:
        return None
    pairs = conv.weight.new_tensor((((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1))))  # (even or odd, taps, of three)
    wide = torch.einsum("aiy,bjx,ocyx->abocij", pairs, pairs, conv.weight)
    return wide.flatten(0, 2).contiguous(memory_format=torch.channels_last)


def _downsampled(layer: Any, x: FeatureMap) -> FeatureMap:
    """The layer pads right and below only: the row behind a strip is what it reads beyond it."""
    pixels = x.pixels
    height, width = pixels.shape[-2] // 2, pixels.shape[-1] // 2
    out = FeatureMap.like(pixels, x.scope, layer.conv.weight.shape[0], height, width)
    for top, bottom in _strips(pixels[:, :, ::2], 2 * max(layer.conv.weight.shape[:2])):
        out.write(layer(pixels[:, :, 2 * top : 2 * bottom + 1])[:, :, : bottom - top], top)
    return out


def _last(network: Any, x: FeatureMap) -> Tensor:
    given = _activated(x, network.conv_norm_out, network.conv_act)
    layer = _layer(network.conv_out, *x.pixels.shape[-2:])
    strips = [
        _convolve(layer, given, top, bottom, x.pixels.shape[2])
        for top, bottom in _strips(x.pixels, max(network.conv_out.weight.shape[:2]))
    ]
    return torch.cat(strips, 2)
