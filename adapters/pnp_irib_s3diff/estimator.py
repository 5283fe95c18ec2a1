"""How much a picture is blurred, and how much noise is in it: the estimator of MM-RealSR (Mou et al., arXiv 2203.03844)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.weights import load_strictly

__all__ = ["DegradationEstimator"]

_KINDS = 2  # blur, noise
STRIP = 2**24  # values of a feature map; without gradients, larger pictures go in strips


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.conv2(self.conv1(x).relu())
        return found


class DegradationEstimator(nn.Module):
    """A network for each kind of degradation.

    Args:
        layers: of each body, in order: width of a residual block; or (width before, width behind, stride) of a convolution.
        hidden: width in each head.
    """

    def __init__(self, layers: tuple[int | tuple[int, int, int], ...], hidden: int) -> None:
        super().__init__()
        first, last = layers[0], layers[-1]
        first, last = (first if isinstance(first, int) else first[0]), (last if isinstance(last, int) else last[1])

        def layer(kind: int | tuple[int, int, int]) -> nn.Module:
            if isinstance(kind, int):
                return _Residual(kind)
            return nn.Conv2d(kind[0], kind[1], 3, stride=kind[2], padding=1)

        self.conv_first = nn.ModuleList(nn.Conv2d(3, first, 3, padding=1) for _ in range(_KINDS))
        self.body = nn.ModuleList(nn.Sequential(*map(layer, layers)) for _ in range(_KINDS))
        self.fc_degree = nn.ModuleList(
            nn.Sequential(nn.Linear(last, hidden), nn.ReLU(), nn.Linear(hidden, 1), nn.Sigmoid()) for _ in range(_KINDS)
        )

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], *, source: str) -> DegradationEstimator:
        """The network that some tensors are of, frozen, in float32. Convolutions that change the width halve the picture.

        Args:
            tensors: by their published names.
            source: of them, for messages.

        Raises:
            WeightsError: they are of another network.
        """
        try:
            count = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("body.0."))
            layers: list[int | tuple[int, int, int]] = []
            for number in range(count):
                convolution = tensors.get(f"body.0.{number}.weight")
                if convolution is None:
                    layers.append(len(tensors[f"body.0.{number}.conv1.weight"]))
                else:
                    layers.append((convolution.shape[1], convolution.shape[0], 2))
            hidden = len(tensors["fc_degree.0.0.weight"])
        except (ValueError, KeyError, IndexError) as error:
            raise WeightsError(
                f"{source} is no estimator of degradation: it holds {', '.join(list(tensors)[:3])}, ...; expected body.0.*, "
                f"conv_first.*, fc_degree.*, as in S3Diff's de_net.pth."
            ) from error
        network = cls(tuple(layers), hidden)
        load_strictly(network, {name: value.float() for name, value in tensors.items()}, source=source)
        return network.eval().requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Scores of blur and noise, (N, 2) in (0, 1), of pictures (N, 3, H, W) in [0, 1] of any size."""
        branches = zip(self.conv_first, self.body, self.fc_degree, strict=True)
        return torch.cat([head(_average(first, body, pictures)) for first, body, head in branches], 1)


def _average(first: Any, body: Any, pictures: Tensor) -> Tensor:
    """Means over whole pictures of what a body makes of them, (N, C)."""
    height, width = pictures.shape[-2:]
    rows = STRIP // (len(pictures) * first.out_channels * width)
    if torch.is_grad_enabled() or rows >= height:
        average: Tensor = body(first(pictures)).mean((2, 3))
        return average
    reach, stride = 1, 1  # how far a value looks on each side, and how far it is to the next one
    for layer in body:
        reach += stride * (2 if isinstance(layer, _Residual) else 1)
        stride *= 1 if isinstance(layer, _Residual) else layer.stride[0]
    halo = -(-reach // stride) * stride
    rows = max(halo, rows // stride * stride)
    sums, count = pictures.new_zeros(()), 0
    for top in range(0, height, rows):
        start, end = max(0, top - halo), top + rows
        maps = body(first(pictures[:, :, start : end + halo]))
        maps = maps[:, :, (top - start) // stride : (end - start) // stride if end < height else None]
        sums, count = sums + maps.sum((2, 3)), count + maps[0, 0].numel()
    return sums / count
