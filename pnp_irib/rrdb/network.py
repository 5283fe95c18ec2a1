"""RRDBNet: residual-in-residual dense blocks (Wang et al., ESRGAN, arXiv 1809.00219).

Blind restorers of the Real-ESRGAN (arXiv 2107.10833) and BSRGAN (arXiv 2103.14006) families share it. Parameter names are
those of Real-ESRGAN's published files, so that these load strictly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.rrdb.winograd import FEWEST_PIXELS, WinogradTrunk
from pnp_irib.runtime import give_memory_back

__all__ = ["RRDB", "SLOPE", "RRDBNet", "ResidualDenseBlock", "conv3x3"]

SLOPE = 0.2
TAIL_PIXELS = 2**13  # LQ pixels that are enlarged at a time where no gradient is recorded
RRDB_REACH = 15  # rows that the 15 convolutions of a block reach
TAIL_HALO = 2  # LQ pixels that the layers behind the trunk reach: 1 at twofold, 3 at fourfold size


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
        self._winograd: WinogradTrunk | None = None

    def forward(self, lq: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, 3, 4H, 4W)."""
        first = x = self.conv_first(lq)
        for block in self._blocks(lq):
            x = block(x)
        x = first + self.conv_body(x)
        if torch.is_grad_enabled():
            return self._enlarge(x)
        return self._enlarge_in_strips(x, x.dtype)

    def _blocks(self, lq: Tensor) -> Sequence[Callable[[Tensor], Tensor]]:
        """The blocks in the form that is fastest for this picture."""
        differs = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        fits = lq.device.type == "cpu" and lq.dtype == torch.float32 and lq.shape[-2] * lq.shape[-1] >= FEWEST_PIXELS
        if differs or not fits or not _is_as_built(self.body):
            return list(self.body)
        trunk = self._winograd
        if trunk is None or not trunk.is_of(self.body):
            trunk = self._winograd = WinogradTrunk(self.body, SLOPE)
        return trunk.blocks()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._winograd is not None and not self._winograd.is_of(self.body):
            self._winograd = None  # five times the weights, which moved or have another dtype now
        return self

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_winograd": None}  # made again from the weights

    def forward_in_strips(self, lq: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        """The same in little memory: every block passes over strips of ``rows`` rows, with the context that it reaches.

        The trunk as a whole reaches over 300 pixels, and where it makes up texture it carries small changes that far, so that
        ordinary tiles show seams. Cut block by block, the result does not depend on ``rows``. One feature map, (N, features,
        H, W), is kept, and changed in place. For inference only; the result is of ``dtype``.
        """
        x = self.conv_first(lq)
        for block in self._blocks(lq):
            _in_strips(block, x, rows, halo=RRDB_REACH)
        _in_strips(self.conv_body, x, rows, halo=1)
        for top in range(0, x.shape[2], rows):  # made again rather than kept
            bottom = min(x.shape[2], top + rows)
            start = max(0, top - 1)
            x[:, :, top:bottom] += self.conv_first(lq[:, :, start : bottom + 1])[:, :, top - start : bottom - start]
        return self._enlarge_in_strips(x, dtype)

    def _enlarge_in_strips(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`_enlarge` in strips: enlarged features need many times the memory of all that comes before."""
        height, width = x.shape[-2:]
        rows = max(2 * TAIL_HALO, TAIL_PIXELS // width)
        if height <= rows:
            return self._enlarge(x).to(dtype)
        restored = x.new_empty((x.shape[0], 3, 4 * height, 4 * width), dtype=dtype)
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            start = max(0, top - TAIL_HALO)
            strip = self._enlarge(x[:, :, start : bottom + TAIL_HALO])
            restored[:, :, 4 * top : 4 * bottom] = strip[:, :, 4 * (top - start) : 4 * (bottom - start)]
        return restored

    def _enlarge(self, x: Tensor) -> Tensor:
        """Features on the LQ grid, (N, features, H, W), to the picture, (N, 3, 4H, 4W)."""
        for conv in (self.conv_up1, self.conv_up2):
            x = activate(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")))
        restored: Tensor = self.conv_last(activate(self.conv_hr(x)))
        return restored


def _is_as_built(body: nn.Sequential) -> bool:
    """Whether a trunk is of its own classes alone: adapters and hooks of others would be passed over."""
    for module in body.modules():
        if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
            return False
        if type(module) is nn.Conv2d:
            if module.kernel_size != (3, 3) or module.padding != (1, 1) or module.bias is None or module.weight.is_inference():
                return False
        elif type(module) not in (nn.Sequential, RRDB, ResidualDenseBlock):
            return False
    return True


def _in_strips(layer: Callable[[Tensor], Tensor], x: Tensor, rows: int, *, halo: int) -> None:
    """Put ``layer(x)`` in the place of ``x``, (N, C, H, W), strip by strip; ``halo`` is what the layer reaches, rows."""
    height = x.shape[2]
    above = x[:, :, :0]
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        context = torch.cat((above, x[:, :, top : bottom + halo]), 2)
        skipped = above.shape[2]
        end = skipped + bottom - top
        above = context[:, :, max(0, end - halo) : end].clone()
        x[:, :, top:bottom] = layer(context)[:, :, skipped:end]
    give_memory_back()  # strips of several heights would pile up
