"""The two networks of DiffBIR's second stage: a stock UNet of Stable Diffusion 2.1, and IRControlNet beside it.

IRControlNet is the UNet's encoder and middle over again (arXiv 2308.15070, section 3.3). It reads the noisy latent and the
latent of the cleaned picture side by side, so it needs nothing that reads pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.control import empty_control
from pnp_irib.diffusion.ldm import load_published, unet_names
from pnp_irib.errors import WeightsError
from pnp_irib.runtime import store_channels_last

__all__ = ["Networks", "controlnet_from", "controlnet_names", "empty_controlnet"]


def empty_controlnet(unet: Any, *, source: str) -> Any:
    """IRControlNet for a UNet, without values, on the meta device: a ``ControlNetModel`` of diffusers.

    Args:
        unet: whose configuration, and so sizes, it has.
        source: for messages.

    Raises:
        WeightsError: there is none for such a UNet.
    """
    return empty_control(unet, in_channels=2 * unet.config.in_channels, source=source)


def controlnet_names(controlnet: Any) -> dict[str, str]:
    """Published names of its parameters, by their own in diffusers."""
    return unet_names(controlnet.state_dict(), controlnet.config.layers_per_block)


def controlnet_from(tensors: Mapping[str, Tensor], unet: Any, *, source: str) -> Any:
    """IRControlNet, frozen, in float32.

    Args:
        tensors: by their published names.
        unet: that it belongs to.
        source: of the tensors, for messages.

    Raises:
        WeightsError: they are of another network; or names what is missing, unexpected or of another shape.
    """
    if not any(name.startswith("zero_convs.") for name in tensors):
        raise WeightsError(
            f"{source} holds no IRControlNet: it holds {', '.join(list(tensors)[:3])}, ...; expected one as DiffBIR publishes "
            f"it (zero_convs....), such as DiffBIR_v2.1.pt."
        )
    first = tensors.get("input_blocks.0.0.weight")
    channels = 2 * unet.config.in_channels
    if first is not None and first.ndim == 4 and first.shape[1] != channels:
        raise WeightsError(
            f"{source} reads {first.shape[1]} channels; expected {channels}, the noisy latent and that of the cleaned "
            f"picture, as DiffBIR's IRControlNet does."
        )
    controlnet = empty_controlnet(unet, source=source)
    load_published(controlnet, controlnet_names(controlnet), dict(tensors), source=source)
    return controlnet


class Networks(nn.Module):
    """UNet and IRControlNet, frozen.

    Args:
        unet: a ``UNet2DConditionModel``.
        controlnet: see `controlnet_from`.
    """

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet = unet
        self.controlnet = controlnet
        self.eval().requires_grad_(False)
        store_channels_last(self)

    def forward(self, latent: Tensor, timestep: float | Tensor, text: Tensor, condition: Tensor, scale: float = 1.0) -> Tensor:
        """What the UNet was trained to predict: the noise, or v.

        Args:
            latent: noisy, of variance about 1, (N, 4, h, w).
            timestep: of its noise level, also between two; or one a latent, (N,).
            text: embedding of the prompts, (N, L, width).
            condition: latent of the cleaned picture, scaled as the other, (N, 4, h, w).
            scale: of each map that IRControlNet adds.

        Returns:
            (N, 4, h, w).
        """
        down, middle = self.control(latent, timestep, text, condition, scale)
        found: Tensor = self.unet(
            latent,
            timestep,
            encoder_hidden_states=text,
            down_block_additional_residuals=tuple(down),
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return found

    def control(
        self, latent: Tensor, timestep: float | Tensor, text: Tensor, condition: Tensor, scale: float = 1.0
    ) -> tuple[list[Tensor], Tensor]:
        """What is added to the UNet's maps on the way down, and to the middle one. For the arguments see `forward`."""
        down, middle = self.controlnet(
            torch.cat([latent, condition], 1),
            timestep,
            encoder_hidden_states=text,
            controlnet_cond=latent.new_zeros(()),  # nothing: the condition is among the channels
            conditioning_scale=scale,
            return_dict=False,
        )
        return list(down), middle
