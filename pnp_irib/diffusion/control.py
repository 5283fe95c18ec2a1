"""Copies of a UNet's encoder and middle that steer it."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from pnp_irib.diffusion.ldm import empty_network

__all__ = ["empty_control"]


def empty_control(unet: Any, *, in_channels: int, source: str) -> Any:
    """A ``ControlNetModel`` of diffusers for a UNet, on the meta device, that adds its condition as it is given.

    Args:
        unet: whose configuration, and so sizes, it has.
        in_channels: of what it reads in place of the latent.
        source: for messages.

    Raises:
        WeightsError: there is none for such a UNet.
    """
    from diffusers import ControlNetModel

    shared = {name: unet.config[name] for name in inspect.signature(ControlNetModel).parameters if name in unet.config}
    # What diffusers reads pictures with is made small, and taken out.
    own = {"in_channels": in_channels, "conditioning_embedding_out_channels": (1,)}
    control = empty_network("ControlNetModel", shared | own, torch.float32, source=source)
    control.controlnet_cond_embedding = nn.Identity()
    return control
