"""What joins SUPIR's control branch to the decoder of its UNet (arXiv 2401.13627, section 3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Attended", "Modulated"]

_HEAD = 64  # channels of an attention head
_GROUPS = 32


class Modulated(nn.Module):
    """Spatial feature transform with weights that begin at zero, "ZeroSFT". Its normalisation is there from the beginning.

    Args:
        control: channels of the control map.
        skip: channels of the map that it acts on.
        decoded: channels of the decoder's map, which is normalised together with the other; 0: there is none.
        hidden: channels in between.
    """

    def __init__(self, control: int, skip: int, decoded: int, *, hidden: int = 128) -> None:
        super().__init__()
        both = skip + decoded
        self.mlp_shared = nn.Sequential(nn.Conv2d(control, hidden, 3, padding=1), nn.SiLU())
        self.zero_mul = nn.Conv2d(hidden, both, 3, padding=1)
        self.zero_add = nn.Conv2d(hidden, both, 3, padding=1)
        self.zero_conv = nn.Conv2d(control, skip, 1)
        self.param_free_norm = nn.GroupNorm(_GROUPS, both)  # with parameters, whatever its published name says

    def forward(self, control: Tensor, skip: Tensor, decoded: Tensor | None = None, scale: float = 1.0) -> Tensor:
        """What the decoder goes on with.

        Args:
            control: of the control branch, (N, control, h, w).
            skip: (N, skip, h, w).
            decoded: (N, decoded, h, w); None: there is none.
            scale: from 0, the maps as they are, to 1.

        Returns:
            (N, decoded + skip, h, w).
        """
        plain = skip if decoded is None else torch.cat([decoded, skip], 1)
        if scale == 0:
            return plain
        steered = skip + self.zero_conv(control)
        both = steered if decoded is None else torch.cat([decoded, steered], 1)
        hidden = self.mlp_shared(control)
        found: Tensor = torch.addcmul(self.zero_add(hidden), self.param_free_norm(both), self.zero_mul(hidden) + 1)
        return found if scale == 1 else torch.lerp(plain, found, scale)


class Attended(nn.Module):
    """Attention of a decoder's map to a control map, "ZeroCrossAttn".

    Args:
        control: channels of the control map.
        decoded: channels of the decoder's map.
    """

    def __init__(self, control: int, decoded: int) -> None:
        super().__init__()
        from diffusers.models.attention_processor import Attention

        self.norm1 = nn.GroupNorm(_GROUPS, decoded)
        self.norm2 = nn.GroupNorm(_GROUPS, control)
        self.attn: Any = Attention(decoded, control, heads=decoded // _HEAD, dim_head=_HEAD)

    def forward(self, control: Tensor, decoded: Tensor, scale: float = 1.0) -> Tensor:
        """The decoder's map (N, decoded, h, w) with ``scale`` times what was found in the control map (N, control, H, W)."""
        if scale == 0:
            return decoded
        asked, known = (x.flatten(2).mT for x in (self.norm1(decoded), self.norm2(control)))
        found: Tensor = self.attn(asked, known)
        return torch.add(decoded, found.mT.unflatten(2, decoded.shape[2:]), alpha=scale)
