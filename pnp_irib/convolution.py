"""3x3 convolutions in fewer multiplications, for inference in float32 on CPUs.

Winograd's minimal filtering F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): 4x4 outputs from a 6x6 window take 36 products a
channel pair instead of 144, and all products are large matrix products, at which BLAS libraries are good.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.runtime import BORROWING

__all__ = [
    "TILE",
    "WINDOW",
    "Winograd",
    "both_ways",
    "fewer_products",
    "in_fewer_products",
    "is_hooked",
    "is_plain",
    "transformed_kernel",
]

FEWEST_PRODUCTS = 64 * 64  # of channels; below, the transforms cost what they save
FEWEST_PIXELS = 24**2
FEWEST_OF_WIDE = 16**2  # pixels for as many channels as make the transforms cheap beside the products:
WIDE = 320  # half their harmonic mean, as of 640 to 640
MOST_TILES = 256  # of a block, whose products are taken back to pixels while they are in the cache

# The three transforms of F(4, 3) with the points 0, 1, -1, 2, -2 and infinity; one for each direction.
WINDOW = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
TILE = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))


def both_ways(matrix: Tensor, maps: Tensor, half: Tensor, out: Tensor) -> None:
    """``matrix`` (o, i) along both sides of ``maps`` (i, i, N), into ``out`` (o, o, N); ``half`` is a buffer of o i N."""
    o, i = matrix.shape
    half = half[: o * maps[0].numel()].view(o, i, -1)
    torch.mm(matrix, maps.flatten(1), out=half.flatten(1))
    torch.bmm(matrix.expand(o, o, i), half, out=out)


def transformed_kernel(weight: Tensor) -> Tensor:
    """Weights of a convolution, (out, in, 3, 3), in Winograd's domain: (36, in, out), in the dtype of the weights."""
    kernel = torch.tensor(_KERNEL, dtype=weight.dtype, device=weight.device)
    lying = weight.detach().permute(2, 3, 1, 0).reshape(9, -1)
    return (torch.kron(kernel, kernel) @ lying).view(36, weight.shape[1], weight.shape[0])


def fewer_products(conv: nn.Module, height: int, width: int) -> Winograd | None:
    """A convolution in this form, if that is faster on pictures of about this size.

    Returns:
        None where it is not, or where the layer is not a plain 3x3 convolution (with an adapter around it, say).
    """
    return Winograd(conv) if is_plain(conv) and _pays(conv, height, width) else None


def _pays(conv: nn.Conv2d, height: int, width: int) -> bool:
    if conv.weight.device.type != "cpu" or conv.weight.dtype != torch.float32:
        return False
    if torch.is_autocast_enabled("cpu"):  # the transforms would lose most digits in half precision
        return False
    made, read = conv.weight.shape[:2]
    if height * width < FEWEST_PIXELS:
        return height * width >= FEWEST_OF_WIDE and made * read >= WIDE * (made + read)
    return made * read >= FEWEST_PRODUCTS


@contextlib.contextmanager
def in_fewer_products(module: nn.Module) -> Iterator[None]:
    """Let the convolutions inside a module take this form wherever it is faster and no gradient is asked for.

    Their kernels are transformed anew at every call, in one buffer for all, so that hardly any memory is added. One thread
    at a time.
    """
    chosen = [conv for conv in module.modules() if is_plain(conv)]
    buffer = _Buffer()
    with BORROWING:
        try:
            for conv in chosen:
                conv.forward = functools.partial(_either_way, conv, buffer)  # type: ignore[method-assign]
            yield
        finally:
            for conv in chosen:
                vars(conv).pop("forward", None)


def _either_way(conv: nn.Conv2d, buffer: _Buffer, x: Tensor) -> Tensor:
    if torch.is_grad_enabled() or not _pays(conv, x.shape[-2], x.shape[-1]):
        return nn.Conv2d.forward(conv, x)
    return Winograd(conv, buffer)(x)


class _Buffer:
    """Memory for one transformed kernel after the other."""

    def __init__(self) -> None:
        self._memory = torch.empty(0, dtype=torch.float32)

    def of(self, numbers: int) -> Tensor:
        """So many numbers, of any value."""
        if self._memory.numel() < numbers:
            self._memory = torch.empty(numbers, dtype=torch.float32)
        return self._memory[:numbers]


def is_plain(conv: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a 3x3 convolution that gives as many pixels as it reads, and nothing else (an adapter, hooks)."""
    if type(conv) is not nn.Conv2d or is_hooked(conv):
        return False
    ones = conv.stride == conv.padding == conv.dilation == (1, 1) and conv.groups == 1
    return ones and conv.kernel_size == (3, 3) and conv.padding_mode == "zeros"


def is_hooked(module: nn.Module) -> bool:
    """Whether calling a module does more than its class says: hooks, or another ``forward`` put in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


class Winograd:
    """A 3x3 convolution with zeros around the picture, up to rounding; no gradients pass.

    Args:
        conv: the convolution, whose weights of now are taken.
        buffer: holds the transformed kernel, until another uses it.
    """

    def __init__(self, conv: nn.Conv2d, buffer: _Buffer | None = None) -> None:
        weight = conv.weight.detach()
        made, read = weight.shape[:2]
        kernel = torch.tensor(_KERNEL, dtype=weight.dtype)
        out = None if buffer is None else buffer.of(36 * made * read).view(made, 36, read)
        self._kernel = torch.matmul(torch.kron(kernel, kernel), weight.permute(0, 2, 3, 1).reshape(made, 9, read), out=out)
        self._bias = conv.bias.detach() if conv.bias is not None else None

    @torch.no_grad()
    def __call__(self, x: Tensor, above: int = 0, below: int = 0) -> Tensor:
        """(N, in, H, W) to (N, out, H - above - below, W), in channels_last.

        Args:
            x: rows of a picture.
            above: 1 if the first of them is only a neighbour of what is wanted, 0 if it is wanted itself.
            below: the same of the last.
        """
        made = self._kernel.shape[0]
        height, width = x.shape[-2] - above - below, x.shape[-1]
        rows, columns = -(-height // 4), -(-width // 4)
        right, bottom = 4 * columns - width, 4 * rows - height
        lying = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1 + right, 1 - above, 1 - below + bottom))
        out = x.new_empty((x.shape[0], 4 * rows, 4 * columns, made))
        most = min(MOST_TILES, max(x.shape[1], made))
        across = min(columns, most)
        down = max(1, most // across)
        space = _Space(x, made, down * across)
        for picture, result in zip(lying, out, strict=True):
            for top in range(0, 4 * rows, 4 * down):
                for left in range(0, 4 * columns, 4 * across):
                    place = result[top : top + 4 * down, left : left + 4 * across]
                    part = picture[top : top + place.shape[0] + 2, left : left + place.shape[1] + 2]
                    space.convolve(part, self._kernel, self._bias, place)
        return out[:, :height, :width].permute(0, 3, 1, 2)


class _Space:
    """Buffers for blocks of up to ``tiles`` tiles of 4x4 pixels."""

    def __init__(self, x: Tensor, made: int, tiles: int) -> None:
        self._windows, self._products, self._half = x.new_empty((3, 36 * tiles * max(x.shape[1], made)))
        self._to_window, self._to_tile = x.new_tensor(WINDOW), x.new_tensor(TILE)

    def convolve(self, part: Tensor, kernel: Tensor, bias: Tensor | None, place: Tensor) -> None:
        """``part`` (4n + 2, 4m + 2, in) into ``place`` (4n, 4m, out)."""
        n, m = place.shape[0] // 4, place.shape[1] // 4
        made, _, read = kernel.shape
        windows = self._windows[: 36 * n * m * read]
        windows.view(6, 6, n, m, read).copy_(part.unfold(0, 6, 4).unfold(1, 6, 4).permute(3, 4, 0, 1, 2))
        both_ways(self._to_window, windows.view(6, 6, -1), self._half, windows.view(6, 6, -1))
        products = self._products[: 36 * n * m * made].view(36, n * m, made)
        for window, one, product in zip(windows.view(36, n * m, read), kernel.unbind(1), products, strict=True):
            torch.mm(window, one.T, out=product)
        pixels = self._windows[: 16 * n * m * made]
        both_ways(self._to_tile, products.view(6, 6, -1), self._half, pixels.view(4, 4, -1))
        if bias is not None:
            pixels.view(-1, made).add_(bias)
        place.view(n, 4, m, 4, made).copy_(pixels.view(4, 4, n, m, made).permute(2, 0, 3, 1, 4))
