"""The two networks of SeeSR, of stock blocks of diffusers: a UNet, and a ControlNet that reads the low-quality picture.

Each attends to the prompt as Stable Diffusion 2 does, and right after it, in a transformer of its own, to an embedding of the
picture's content.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.runtime import store_channels_last
from pnp_irib.weights import load_checkpoint, load_strictly
from pnp_irib_seesr.spec import WEIGHTS

__all__ = [
    "IMAGE_WIDTH",
    "Networks",
    "add_image_attention",
    "empty_network",
    "give_image_attention",
    "image_tensors",
    "own_names",
    "published_name",
    "read_network",
]

IMAGE_WIDTH = 512  # of the embedding's tokens, fixed in the published code
IMAGE_KEY = "image_embedding"
FLAG = "use_image_cross_attention"


class TextAndImage(nn.Module):
    """A transformer over the prompt, then one over the embedding of the picture.

    Args:
        text: a ``Transformer2DModel`` of diffusers; the other is made like it.
    """

    def __init__(self, text: Any) -> None:
        super().__init__()
        from diffusers import Transformer2DModel

        self.text = text
        sizes = {key: value for key, value in text.config.items() if not key.startswith("_")}
        self.image: Any = Transformer2DModel(**sizes | {"cross_attention_dim": IMAGE_WIDTH})

    def forward(self, hidden_states: Tensor, *, cross_attention_kwargs: dict[str, Any], **given: Any) -> tuple[Tensor]:
        """As the blocks of diffusers call it; the embedding comes in ``cross_attention_kwargs``."""
        others = dict(cross_attention_kwargs)
        image = others.pop(IMAGE_KEY)
        hidden = self.text(hidden_states, cross_attention_kwargs=others, **given)[0]
        given["encoder_hidden_states"] = image
        return (self.image(hidden, cross_attention_kwargs=others, **given)[0],)


def add_image_attention(network: nn.Module) -> None:
    """Put a transformer over the picture's embedding behind each one over the prompt, in place; of initial values."""
    for module in list(network.modules()):
        layers = module._modules.get("attentions")
        if isinstance(layers, nn.ModuleList):
            for number, layer in enumerate(layers):
                layers[number] = TextAndImage(layer)


def published_name(name: str) -> str:
    """A parameter's name in the published files."""
    name = re.sub(r"(^|\.)attentions\.(\d+)\.image\.", r"\1image_attentions.\2.", name)
    return re.sub(r"(^|\.)attentions\.(\d+)\.text\.", r"\1attentions.\2.", name)


def own_names(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published file by the network's own names; what is unknown keeps its name."""
    names = {published_name(name): name for name in network.state_dict()}
    return {names.get(name, name): value for name, value in tensors.items()}


def read_network(folder: Path, kind: str) -> Any:
    """One of the published networks.

    Args:
        folder: with ``config.json`` and the weights.
        kind: class of diffusers that it is built on, "UNet2DConditionModel" or "ControlNetModel".

    Returns:
        It, in float32.

    Raises:
        WeightsError: missing, damaged, or another network.
    """
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text())
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"{config_file} cannot be read: {error}. Expected the folders unet/ and controlnet/ that SeeSR publishes."
        ) from error
    network = empty_network(config, kind, source=str(config_file))
    tensors = own_names(network, load_checkpoint(folder / WEIGHTS))
    load_strictly(network, tensors, source=str(folder / WEIGHTS), assign=True)
    return network.eval().requires_grad_(False)


def empty_network(config: Any, kind: str, *, source: str) -> Any:
    """A network as a published configuration describes it, without values, on the meta device.

    Args:
        config: content of ``config.json``.
        kind: see `read_network`.
        source: of it, for messages.

    Raises:
        WeightsError: it describes another network, or none.
    """
    import diffusers

    if not isinstance(config, dict) or config.get("_class_name", kind) != kind or not config.get(FLAG):
        raise WeightsError(f"{source} describes no {kind} with {FLAG}, so it is none of SeeSR's.")
    try:
        with torch.device("meta"):
            network: Any = getattr(diffusers, kind).from_config({key: v for key, v in config.items() if key != FLAG})
            add_image_attention(network)
    except (ValueError, TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
        raise WeightsError(f"{source} describes no network that can be built: {error}") from error
    return network


def image_tensors(folder: Path) -> dict[str, Tensor]:
    """Of the published UNet, what attends to the embedding, by published names.

    Raises:
        WeightsError: missing, damaged, or without any.
    """
    path = folder / WEIGHTS
    tensors = {name: value for name, value in load_checkpoint(path).items() if "image_attentions." in name}
    if not tensors:
        raise WeightsError(f"{path} holds nothing named image_attentions, so it is not SeeSR's UNet.")
    return tensors


def give_image_attention(unet: Any, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Put the published image attention on a stock UNet, in place.

    Raises:
        WeightsError: the UNet has other sizes.
    """
    stock, dtype = unet.state_dict(), unet.dtype
    with torch.device("meta"):
        add_image_attention(unet)
    for module in unet.modules():
        if isinstance(module, TextAndImage):
            nn.Module.to(module.image, dtype)
    load_strictly(unet, own_names(unet, stock | tensors), source=source, assign=True)
    unet.eval().requires_grad_(False)


class Networks(nn.Module):
    """UNet and ControlNet, frozen.

    Args:
        unet: with image attention.
        controlnet: likewise; it gives up what reads the picture.

    Raises:
        ConfigError: it gave that up already.
    """

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet = unet
        if isinstance(controlnet.controlnet_cond_embedding, nn.Identity):
            raise ConfigError("this ControlNet is in use by other networks of SeeSR; read it again.")
        # What reads the picture is taken out: its maps are the same in every step.
        self.reader: Any = controlnet.controlnet_cond_embedding
        controlnet.controlnet_cond_embedding = nn.Identity()
        self.controlnet = controlnet
        store_channels_last(self)

    def read(self, pictures: Tensor) -> Tensor:
        """Maps of the low-quality picture for `forward`, (N, C, H/8, W/8), of pictures (N, 3, H, W) in [0, 1]."""
        maps: Tensor = self.reader(pictures)
        return maps

    def forward(self, latent: Tensor, timestep: int, text: Tensor, image: Tensor, maps: Tensor, scale: float = 1.0) -> Tensor:
        """The noise in a latent.

        Args:
            latent: (N, 4, h, w).
            timestep: of its noise level.
            text: embedding of the prompts, (N, L, width).
            image: embedding of the pictures, (N, T, 512).
            maps: see `read`, (N, C, h, w).
            scale: of what the ControlNet adds.
        """
        given = {"encoder_hidden_states": text, "cross_attention_kwargs": {IMAGE_KEY: image}, "return_dict": False}
        down, middle = self.controlnet(latent, timestep, controlnet_cond=maps, conditioning_scale=scale, **given)
        found: Tensor = self.unet(
            latent,
            timestep,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=middle,
            **given,
        )[0]
        return found
