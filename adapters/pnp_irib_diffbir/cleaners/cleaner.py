"""One interface to the three networks of DiffBIR's first stage."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.diffusion.latents import published_tiles
from pnp_irib.errors import ConfigError, InputError
from pnp_irib.images.resize import resize
from pnp_irib.rrdb.network import RRDBNet
from pnp_irib.runtime import give_memory_back
from pnp_irib_diffbir.cleaners.sizes import SHORTEST, raised, short_side_to
from pnp_irib_diffbir.cleaners.swinir import SwinIRInStrips
from pnp_irib_diffbir.cleaners.tiles import blended, tiles_on_grid

__all__ = ["BSRNET", "SCUNET", "SWINIR", "Cleaner", "Kind"]

MIN_ROWS = 16  # of a strip of BSRNet: below it, the context costs more than the strip


@dataclass(frozen=True)
class Kind:
    """What sets one of the networks apart.

    Attributes:
        name: of it.
        scale: its enlargement.
        sees: the picture as it is given, enlarged to the size that is wanted, or also raised to the shortest side allowed.
        padding: what lies below and right of pictures that its windows do not divide.
        bytes_per_pixel: working memory for one pixel that it sees, of the published sizes in float32; SwinIR takes about
            100 MB beside.
    """

    name: Literal["bsrnet", "swinir", "scunet"]
    scale: int
    sees: Literal["given", "wanted", "raised"]
    padding: Literal["constant", "replicate"]
    bytes_per_pixel: int


BSRNET = Kind("bsrnet", scale=4, sees="given", padding="constant", bytes_per_pixel=7_400)
"""The network of BSRGAN (Zhang et al., arXiv 2103.14006) trained for least error; takes any size as it is."""

SWINIR = Kind("swinir", scale=1, sees="raised", padding="constant", bytes_per_pixel=400)
"""SwinIR (Liang et al., arXiv 2108.10257) at an eighth of the resolution; sees black beyond the picture."""

SCUNET = Kind("scunet", scale=1, sees="wanted", padding="replicate", bytes_per_pixel=6_200)
"""SCUNet (Zhang et al., arXiv 2203.13278), a denoiser; sees the last pixels repeated beyond the picture."""


class Cleaner(nn.Module):
    """A network of the first stage. Frozen; gradients pass to the pictures.

    Args:
        kind: which one.
        network: maps (N, 3, H, W) to (N, 3, scale*H, scale*W) for sides that are multiples of ``multiple``.
        multiple: see above, pixels.
    """

    def __init__(self, kind: Kind, network: nn.Module, *, multiple: int = 1) -> None:
        super().__init__()
        self.kind = kind
        self.multiple = multiple
        self.network = network.requires_grad_(False)
        self.eval()  # networks of spandrel come in training mode, in which SwinIR leaves parts out by chance

    @property
    def scale(self) -> int:
        """Enlargement of `forward`."""
        return self.kind.scale

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the network works in."""
        return next(self.network.parameters()).dtype

    def forward(self, pictures: Tensor, *, strips: bool = True) -> Tensor:
        """The network on pictures of any size, in one piece. Differentiable.

        Args:
            pictures: (N, 3, H, W), RGB, [0, 1].
            strips: let SwinIR enlarge its features strip by strip, see `SwinIRInStrips`.

        Returns:
            (N, 3, scale*H, scale*W), about [0, 1], not clamped; dtype and device of ``pictures``.

        Raises:
            ConfigError: SwinIR in half precision.
        """
        height, width = pictures.shape[-2:]
        network = self.network if strips or not isinstance(self.network, SwinIRInStrips) else self.network.network
        cleaned: Tensor = network(self._padded(self._given(pictures)))
        return cleaned[..., : self.scale * height, : self.scale * width].to(pictures)

    def clean(self, pictures: Tensor, size: tuple[int, int], *, shortest: int = SHORTEST, memory: int | None = None) -> Tensor:
        """Clean pictures of a stated size, no side below ``shortest``. Differentiable.

        Unlike in the published code, it is never the tiles that decide at what size SwinIR sees a picture.

        Args:
            pictures: (N, 3, H, W), RGB, [0, 1], of any size.
            size: (height, width) that is wanted.
            shortest: side below which ``size`` is raised.
            memory: working memory that is aimed at, bytes, see `bounded`; None: as much as it takes.

        Returns:
            (N, 3, *raised(*size, shortest)), about [0, 1], not clamped; dtype and device of ``pictures``.
        """
        result = raised(*size, shortest)
        seen = {"given": (pictures.shape[-2], pictures.shape[-1]), "wanted": size, "raised": result}[self.kind.sees]
        return resize(self.bounded(resize(pictures, seen), memory), result)

    def bounded(self, pictures: Tensor, memory: int | None) -> Tensor:
        """`forward` in about ``memory`` bytes beside the pictures, as long as no gradient is recorded; else in one piece.

        BSRNet goes in strips, which give the same. SwinIR and SCUNet go in tiles of four windows at least that overlap by 128
        pixels where they are large enough, blended, one picture after the other: what a pixel takes from beyond its tile is
        lost. On a photograph, with small random weights, that changed values by up to 2.7/255 in tiles of 384 pixels and 0.2
        in tiles of 512 for SwinIR, and by up to 1.4/255 in tiles of 192 and 0.4 in tiles of 256 for SCUNet.
        """
        recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (pictures, *self.network.parameters()))
        if memory is None or recorded:
            return self(pictures)  # type: ignore[no-any-return]
        pixels = memory // self.kind.bytes_per_pixel
        count, _, height, width = pictures.shape
        with torch.no_grad():
            if count * height * width <= pixels:
                return self(pictures)  # type: ignore[no-any-return]
            if isinstance(self.network, RRDBNet):
                return torch.cat([self.in_strips(one, pixels, pictures.dtype) for one in pictures.split(1)])
            return torch.cat([self._in_tiles(one, pixels) for one in pictures.split(1)])

    @torch.no_grad()
    def in_strips(self, pictures: Tensor, pixels: int, dtype: torch.dtype) -> Tensor:
        """`forward` of BSRNet in the working memory of ``pixels`` pixels, equal but for rounding.

        Returns:
            (N, 3, 4*H, 4*W) of ``dtype``, on the device of ``pictures``.

        Raises:
            InputError: it is another network.
        """
        if not isinstance(self.network, RRDBNet):
            raise InputError(f"{self.kind.name} cannot go in strips: each of its windows sees more. Use bounded(...).")
        rows = max(MIN_ROWS, pixels // pictures.shape[-1])
        return self.network.forward_in_strips(self._given(pictures), rows, dtype).to(pictures.device)

    def _in_tiles(self, pictures: Tensor, pixels: int) -> Tensor:
        height, width = pictures.shape[-2:]
        padded = self._padded(pictures)
        tiles = tiles_on_grid(padded.shape[-2], padded.shape[-1], multiple=self.multiple, pixels=pixels)
        cleaned = self(padded) if tiles is None else blended(self, padded, tiles)
        give_memory_back()
        return cleaned[..., :height, :width]

    def as_published(
        self,
        pictures: Tensor,
        size: tuple[int, int] | None = None,
        *,
        tile: int | None = None,
        stride: int | None = None,
        shortest: int = SHORTEST,
    ) -> Tensor:
        """What the published pipeline hands to its second stage. Differentiable.

        Args:
            pictures: (N, 3, H, W), RGB, [0, 1]; already enlarged, except for BSRNet.
            size: (height, width) of the restored picture; None: ``scale`` times ``pictures``. Others only for BSRNet.
            tile: side of tiles, pixels of ``pictures``; None: in one piece, as are pictures with a side below it.
            stride: from tile to tile; None: half of ``tile``.
            shortest: side below which the result is enlarged.

        Returns:
            (N, 3, h, w), no side below ``shortest``, not clamped.

        Raises:
            ConfigError: SwinIR with tiles that are no multiple of its windows, or a stride that leaves gaps.
            InputError: another ``size`` for a network that does not enlarge.
        """
        given = (pictures.shape[-2], pictures.shape[-1])
        own = (self.scale * given[0], self.scale * given[1])
        if size is not None and self.scale == 1 and tuple(size) != own:
            raise InputError(
                f"{self.kind.name} keeps the size of pictures, {own[0]} x {own[1]}, but {size[0]} x {size[1]} are wanted. "
                "Enlarge them before."
            )
        if tile is None or min(given) < tile:
            if self.kind.sees == "raised":
                pictures = resize(pictures, raised(*given, shortest))
            cleaned: Tensor = self(pictures, strips=False)
        else:
            if self.kind == SWINIR and tile % self.multiple:
                raise ConfigError(f"tiles of {tile} pixels: the windows of this SwinIR need a multiple of {self.multiple}.")
            stride = max(1, tile // 2) if stride is None else stride
            run = partial(self, strips=False)
            cleaned = blended(run, pictures, published_tiles(*given, tile=tile, stride=stride), scale=self.scale)
        wanted = own if size is None else size
        # Sides of BSRNet's own result decide where it is raised: those of the wanted size are cut to whole pixels before.
        target = short_side_to(*own, shortest) if min(wanted) < shortest else wanted
        return resize(cleaned, target)

    def _given(self, pictures: Tensor) -> Tensor:
        if self.kind == SWINIR and self.dtype.itemsize < 4:
            raise ConfigError(f"swinir cannot run in {self.dtype}: the masks of its windows are float32. Use dtype='float32'.")
        layout = torch.channels_last if isinstance(self.network, RRDBNet) else torch.contiguous_format
        return pictures.to(device=self.device, dtype=self.dtype, memory_format=layout)

    def _padded(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[-2:]
        below, right = -height % self.multiple, -width % self.multiple
        return F.pad(pictures, (0, right, 0, below), mode=self.kind.padding) if below or right else pictures
