"""SUPIR's UNet: that of Stable Diffusion XL, steered by a copy of its encoder (arXiv 2401.13627, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.control import empty_control
from pnp_irib.runtime import store_channels_last

__all__ = ["Networks", "Place", "empty_control_branch", "places"]

_EIGHT = torch.float8_e4m3fn
_EXACT = ("norm", "conv_in", "conv_out", "embedding")  # small, and what they say goes everywhere
SIZES = (1024.0, 1024.0, 0.0, 0.0, 1024.0, 1024.0)  # original, corner, target: the same whatever the picture


class Place(NamedTuple):
    """Where a connector stands.

    Attributes:
        kind: "modulated" at a skip, or "middle" behind the middle; "attended" before an upsampling.
        control: number of the control map that it reads, the middle one last.
        widths: channels of control map, skip and decoder's map; for "attended", where there is no skip, of control map and
            decoder's map.
    """

    kind: str
    control: int
    widths: tuple[int, ...]


def places(unet: Any) -> tuple[Place, ...]:
    """Where the connectors of a UNet stand, in the order of the decoder; the published order is the reverse."""
    skips = list(_skips(unet))
    middle = unet.mid_block.resnets[-1].out_channels
    found = [Place("middle", len(skips), (middle, middle, 0))]
    for block in unet.up_blocks:
        for resnet in block.resnets:
            skip = skips.pop()
            found.append(Place("modulated", len(skips), (skip, skip, resnet.in_channels - skip)))
        if block.upsamplers:
            found.append(Place("attended", len(skips), (skip, block.resnets[-1].out_channels)))
    return tuple(found)


def _skips(unet: Any) -> Iterator[int]:
    """Channels of the maps that the encoder keeps."""
    yield unet.conv_in.out_channels
    for block in unet.down_blocks:
        yield from (resnet.out_channels for resnet in block.resnets)
        yield from (down.out_channels for down in block.downsamplers or ())


def empty_control_branch(unet: Any, *, source: str) -> Any:
    """The control branch for a UNet, without values: a ``ControlNetModel`` of diffusers without its last layers.

    Args:
        unet: whose configuration, and so sizes, it has.
        source: for messages.

    Raises:
        WeightsError: there is none for such a UNet.
    """
    control = empty_control(unet, in_channels=unet.config.in_channels, source=source)
    with torch.device("meta"):
        control.controlnet_cond_embedding = nn.Conv2d(unet.config.in_channels, unet.config.block_out_channels[0], 3, padding=1)
    del control.controlnet_down_blocks, control.controlnet_mid_block
    return control


class Networks(nn.Module):
    """UNet, control branch and connectors, frozen.

    Args:
        unet: a ``UNet2DConditionModel`` of Stable Diffusion XL.
        control: see `empty_control_branch`.
        connectors: in the order of `places`.
    """

    def __init__(self, unet: Any, control: Any, connectors: nn.ModuleList) -> None:
        super().__init__()
        self.unet, self.control, self.connectors = unet, control, connectors
        self._places = places(unet)
        self.eval().requires_grad_(False)
        store_channels_last(self)

    def keep_in_eight_bits(self) -> None:
        """Hold the weights of large layers as float8 (e4m3) from now on; they compute as before. For inference.

        Between calls they are stated to be bytes: moving all to another dtype changes nothing about them.
        """
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d) and not any(part in name for part in _EXACT):
                _narrow(layer)
                layer.register_forward_pre_hook(_widen)
                layer.register_forward_hook(_narrow, always_call=True)

    def vector(self, pooled: Tensor) -> Tensor:
        """What the networks read beside text: prompts as a whole, and sizes.

        Args:
            pooled: of each prompt, (N, pooled width).

        Returns:
            (N, pooled width + 6 * width of a number).
        """
        numbers = self.unet.add_time_proj(pooled.new_tensor(SIZES)).flatten().to(pooled.dtype)
        return torch.cat([pooled, numbers.expand(len(pooled), -1)], 1)

    def forward(
        self, latent: Tensor, timestep: float, text: Tensor, vector: Tensor, condition: Tensor, scale: float = 1.0
    ) -> Tensor:
        """The noise in a latent.

        Args:
            latent: noisy, of variance about 1, (N, 4, h, w).
            timestep: of its noise level, also between two.
            text: what the UNet reads of the prompts, (N, L, width).
            vector: see `vector`.
            condition: latent of the low-quality picture, scaled as the other, (N, 4, h, w).
            scale: of the connectors, from 0, Stable Diffusion XL by itself, to 1.

        Returns:
            (N, 4, h, w).
        """
        maps = self.maps(latent, timestep, text, vector, condition)
        unet, emb = self.unet, _embedded(self.unet, latent, timestep, vector)
        *skips, x = _encoded(unet, unet.conv_in(latent), emb, text)
        steps = zip(self._places, self.connectors, strict=True)
        place, connector = next(steps)
        x = connector(maps[place.control], x, scale=scale)
        for block in unet.up_blocks:
            for number, resnet in enumerate(block.resnets):
                place, connector = next(steps)
                x = resnet(connector(maps[place.control], skips.pop(), x, scale), emb)
                if _reads(block):
                    x = block.attentions[number](x, encoder_hidden_states=text, return_dict=False)[0]
            for upsample in block.upsamplers or ():
                place, connector = next(steps)
                x = upsample(connector(maps[place.control], x, scale), skips[-1].shape[2:])  # sides may be odd
        found: Tensor = unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))
        return found

    def maps(self, latent: Tensor, timestep: float, text: Tensor, vector: Tensor, condition: Tensor) -> list[Tensor]:
        """What the control branch finds: the maps of its encoder, and that of its middle. For the arguments see `forward`."""
        first = self.control.conv_in(latent) + self.control.controlnet_cond_embedding(condition)
        return _encoded(self.control, first, _embedded(self.control, latent, timestep, vector), text)


def _narrow(layer: Any, *_: Any) -> None:
    """Weights to float8. A hook behind a layer's call."""
    layer.weight.data = layer.weight.data.to(_EIGHT).view(torch.uint8)


def _widen(layer: Any, given: tuple[Tensor, ...]) -> None:
    """Weights to the dtype that the layer is given. A hook before its call."""
    layer.weight.data = layer.weight.data.view(_EIGHT).to(given[0].dtype)


def _embedded(part: Any, latent: Tensor, timestep: float, vector: Tensor) -> Tensor:
    """Timestep and vector as the blocks of a network read them."""
    time = part.time_proj(torch.tensor([timestep], dtype=torch.float32, device=latent.device)).to(latent.dtype)
    found: Tensor = part.time_embedding(time.expand(len(latent), -1)) + part.add_embedding(vector)
    return found


def _encoded(part: Any, x: Tensor, emb: Tensor, text: Tensor) -> list[Tensor]:
    """Maps of a network's encoder, that of its first layer included, and of its middle."""
    kept = [x]
    for block in part.down_blocks:
        x, own = block(x, emb, encoder_hidden_states=text) if _reads(block) else block(x, emb)
        kept.extend(own)
    return [*kept, part.mid_block(x, emb, encoder_hidden_states=text)]


def _reads(block: Any) -> bool:
    """Whether a block of the UNet reads the text."""
    return getattr(block, "attentions", None) is not None
