"""The compact network of the Real-ESRGAN family; the large one is `pnp_irib.rrdb.network.RRDBNet`.

Parameter names are those of the published files, so that these load strictly.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.rrdb.network import conv3x3

__all__ = ["SRVGGNetCompact"]


class SRVGGNetCompact(nn.Module):
    """A stack of convolutions with PReLU on the LQ grid; its output is added to the enlarged input."""

    def __init__(self, *, features: int = 64, convolutions: int = 16, scale: int = 4) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = [conv3x3(3, features), nn.PReLU(features)]
        for _ in range(convolutions):
            layers += [conv3x3(features, features), nn.PReLU(features)]
        layers.append(conv3x3(features, 3 * scale**2))
        self.body = nn.ModuleList(layers)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, 3, scale*H, scale*W)."""
        x = lq
        for layer in self.body:
            x = layer(x)
        enlarged = F.interpolate(lq, scale_factor=float(self.scale), mode="nearest")
        return F.pixel_shuffle(x, self.scale) + enlarged
