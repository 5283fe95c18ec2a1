"""The two networks of the Real-ESRGAN family.

RRDBNet: residual-in-residual dense blocks (Wang et al., ESRGAN, arXiv 1809.00219; trained for blind restoration in
Real-ESRGAN, arXiv 2107.10833). SRVGGNetCompact: a plain stack of 3x3 convolutions from the Real-ESRGAN authors.
Parameter names are those of the published files, so that these load strictly.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["RRDBNet", "SRVGGNetCompact"]

SLOPE = 0.2


def conv3x3(inputs: int, outputs: int) -> nn.Conv2d:
    """Size-preserving 3x3 convolution."""
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU; in place where no gradient is recorded, which saves a third of the memory traffic."""
    return F.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())


class ResidualDenseBlock(nn.Module):
    """Five convolutions, each reading everything before it; the result is scaled by 0.2 and added to the input."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(features, growth)
        self.conv2 = conv3x3(features + growth, growth)
        self.conv3 = conv3x3(features + 2 * growth, growth)
        self.conv4 = conv3x3(features + 3 * growth, growth)
        self.conv5 = conv3x3(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) to the same shape."""
        dense = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            dense = torch.cat((dense, activate(conv(dense))), 1)
        return torch.add(x, self.conv5(dense), alpha=0.2)


class RRDB(nn.Module):
    """Three dense blocks with a scaled residual around them."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1 = ResidualDenseBlock(features, growth)
        self.rdb2 = ResidualDenseBlock(features, growth)
        self.rdb3 = ResidualDenseBlock(features, growth)

    def forward(self, x: Tensor) -> Tensor:
        """(N, features, H, W) to the same shape."""
        return torch.add(x, self.rdb3(self.rdb2(self.rdb1(x))), alpha=0.2)


class RRDBNet(nn.Module):
    """Four-fold enlargement by a deep trunk on the LQ grid, then two nearest-neighbour doublings."""

    scale = 4

    def __init__(self, *, features: int = 64, growth: int = 32, blocks: int = 23) -> None:
        super().__init__()
        self.conv_first = conv3x3(3, features)
        self.body = nn.Sequential(*(RRDB(features, growth) for _ in range(blocks)))
        self.conv_body = conv3x3(features, features)
        self.conv_up1 = conv3x3(features, features)
        self.conv_up2 = conv3x3(features, features)
        self.conv_hr = conv3x3(features, features)
        self.conv_last = conv3x3(features, 3)

    def forward(self, lq: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, 3, 4H, 4W)."""
        first = self.conv_first(lq)
        x = first + self.conv_body(self.body(first))
        for conv in (self.conv_up1, self.conv_up2):
            x = activate(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        restored: Tensor = self.conv_last(activate(self.conv_hr(x)))
        return restored


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
