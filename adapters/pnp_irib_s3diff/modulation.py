"""LoRA whose ranks are mixed by what a degradation estimator says of the picture (arXiv 2409.17058, section 3.2).

What is mixed in which way is a value: a network bound to it is a light copy, so that pictures and threads do not meet.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.errors import WeightsError

__all__ = ["ALPHA", "Bound", "LowRank", "Modulator", "block_of", "sinusoids", "with_layers"]

ALPHA = 8  # of the LoRA's scale, alpha / rank; it is in no file


class Modulator(nn.Module):
    """Scores to a matrix for each block of a network.

    Args:
        blocks: of the network.
        rank: of its LoRA.
        frequencies: of a score's sinusoids.
        code: width of a block's code.
    """

    def __init__(self, blocks: int, rank: int, *, frequencies: int, code: int) -> None:
        super().__init__()
        width = 4 * frequencies
        self.rank = rank
        self.of_scores = nn.Linear(width, width)
        self.of_blocks = nn.Linear(code, code)
        self.fuse = nn.Linear(width + code, rank * rank)
        self.blocks = nn.Parameter(torch.zeros(blocks, code))

    def forward(self, sinusoids: Tensor) -> Tensor:
        """(N, blocks, rank, rank) of `sinusoids` (N, 4 F); the ranks that go out of A, then those that go into B."""
        picture = self.of_scores(sinusoids).relu()[:, None].expand(-1, len(self.blocks), -1)
        block = self.of_blocks(self.blocks).relu()[None].expand(len(sinusoids), -1, -1)
        fused: Tensor = self.fuse(torch.cat([picture, block], 2))
        found: Tensor = fused.unflatten(2, (self.rank, self.rank))
        return found


def sinusoids(scores: Tensor, frequencies: Tensor) -> Tensor:
    """Of each score its sines, then its cosines at each frequency: (N, K) and (F,) to (N, 2 K F)."""
    phases = scores[..., None] * frequencies * 2 * math.pi
    return torch.cat([phases.sin(), phases.cos()], 2).flatten(1)


class LowRank(nn.Module):
    """The LoRA of a network.

    Args:
        tensors: A and B of each layer, by the layer's name.
        unet: whether it is that of a UNet, else of a VAE.
    """

    def __init__(self, tensors: Mapping[str, tuple[Tensor, Tensor]], *, unet: bool) -> None:
        super().__init__()
        self.names = tuple(tensors)
        self.blocks = tuple(block_of(name, unet=unet) for name in tensors)
        self.down = nn.ParameterList(a for a, _ in tensors.values())
        self.up = nn.ParameterList(b for _, b in tensors.values())
        self.requires_grad_(False)

    def bound(self, network: nn.Module, matrices: Tensor, *, merged: bool = False, beside: bool = False) -> Any:
        """A light copy of a network with the LoRA mixed by matrices.

        Args:
            network: as it was loaded; it stays as it is.
            matrices: see `Modulator`, (1 or N, blocks, rank, rank); N: one a picture of the batch that it will be given.
            merged: in new weights, which take memory; for one picture.
            beside: see `Bound`.
        """
        layers: dict[str, nn.Module] = {}
        for name, block, down, up in zip(self.names, self.blocks, self.down, self.up, strict=True):
            layer = network.get_submodule(name)
            layer = getattr(layer, "base_layer", layer)  # without adapters of others
            bound = Bound(layer, down, up, matrices[:, block], beside=beside)
            layers[name] = bound.merged() if merged else bound
        return with_layers(network, layers)


def block_of(name: str, *, unet: bool) -> int:
    """The number of the block that a layer belongs to."""
    found = re.match(r"(?:encoder\.)?(down_blocks|mid_block|up_blocks)\.(\d+)?", name)
    if found is None:
        return 9 if unet else 5
    if found[1] == "mid_block":
        return 4
    return int(found[2]) + (5 if found[1] == "up_blocks" else 0)


class Bound(nn.Module):
    """A linear layer or convolution with its mixed LoRA.

    Args:
        layer: as it was loaded.
        down: A, of the layer's kind, from its input to the ranks.
        up: B, from the ranks to its output.
        matrices: (1 or N, rank, rank).
        beside: the LoRA always works beside the layer, as published.
    """

    def __init__(self, layer: nn.Module, down: Tensor, up: Tensor, matrices: Tensor, *, beside: bool = False) -> None:
        super().__init__()
        self._beside = beside
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            raise WeightsError(f"a LoRA is for {type(layer).__name__}; expected a linear layer or a convolution.")
        self.layer = layer
        self._down, self._up, self._matrices = down, up, matrices
        self._scale = ALPHA / len(down)

    def weight(self) -> Tensor:
        """The layer's weight with the LoRA in it; for one picture."""
        up = self._up.flatten(1) @ self._matrices[0].mT * self._scale
        return torch.addmm(self.layer.weight.flatten(1), up, self._down.flatten(1)).view_as(self.layer.weight)

    def merged(self) -> nn.Module:
        """The layer with that weight."""
        layer = copy.copy(self.layer)
        weight = self.weight()
        if weight.ndim == 4:
            weight = weight.contiguous(memory_format=torch.channels_last)
        layer._parameters = dict(layer._parameters) | {"weight": weight}  # type: ignore[dict-item]
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """As the layer; what is cheaper: another weight, or the LoRA beside the layer."""
        layer = self.layer
        linear = isinstance(layer, nn.Linear)
        positions = x[..., 0].numel() if linear else x[:, 0].numel()
        one = len(self._matrices) == 1 and not self._beside
        if one and positions * sum(layer.weight.flatten(1).shape) > layer.weight.numel():
            weight = self.weight()
            found: Tensor = F.linear(x, weight, layer.bias) if linear else self._convolved(x, weight, layer.bias)
            return found
        mixing = self._matrices * self._scale
        if linear:
            mixed = F.linear(x, self._down) @ mixing.expand(len(x), -1, -1)
            found = layer(x) + F.linear(mixed, self._up)
            return found
        mixed = torch.einsum("nkhw,nkq->nqhw", self._convolved(x, self._down, None), mixing.expand(len(x), -1, -1))
        found = layer(x) + F.conv2d(mixed, self._up)
        return found

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        layer: Any = self.layer
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation)


def with_layers(module: nn.Module, layers: Mapping[str, nn.Module]) -> Any:
    """A light copy of a module in which others stand for some of its submodules; all else it shares.

    Args:
        module: stays as it is.
        layers: by the names of those that they stand for.
    """
    if "" in layers:
        return layers[""]
    found = copy.copy(module)
    found._modules = dict(module._modules)
    inside: dict[str, dict[str, nn.Module]] = {}
    for name, layer in layers.items():
        first, _, rest = name.partition(".")
        inside.setdefault(first, {})[rest] = layer
    for name, within in inside.items():
        found._modules[name] = with_layers(module.get_submodule(name), within)
    return found
