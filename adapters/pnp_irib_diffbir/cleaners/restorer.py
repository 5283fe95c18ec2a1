"""The cleaners as restorers of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import Origin
from pnp_irib.images.tensors import output_size
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.runtime import choose_device, choose_dtype
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import origin_of
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.loading import load_cleaner
from pnp_irib_diffbir.files import published_file
from pnp_irib_diffbir.spec import BSRNET, SCUNET, SWINIR

__all__ = ["BSRNetRestorer", "CleanerRestorer", "load_bsrnet", "load_scunet", "load_swinir"]

MEMORY = 2**31
"""Working memory beyond which large pictures go in tiles, bytes."""


class CleanerRestorer:
    """A cleaner as a `Restorer`. Differentiable.

    Args:
        spec: facts about it.
        cleaner: the network.
        memory: working memory that is aimed at where no gradient is recorded, bytes; None: as much as it takes.

    Raises:
        ConfigError: ``memory`` is no positive number of bytes.
    """

    def __init__(self, spec: RestorerSpec, cleaner: Cleaner, *, memory: int | None = MEMORY) -> None:
        if memory is not None and memory < 1:
            raise ConfigError(f"memory={memory}: expected a number of bytes, or None.")
        self.spec = spec
        self.cleaner = cleaner
        self.memory = memory
        self.origins: tuple[Origin, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.cleaner.device

    @property
    def dtype(self) -> torch.dtype:
        """What the network works in."""
        return self.cleaner.dtype

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; names may be "auto"."""
        if device is not None and not isinstance(device, torch.device):
            device = choose_device(device)
        if dtype is not None:
            dtype = choose_dtype(dtype, device or self.device, self.spec.safe_dtypes)
        self.cleaner.to(device=device, dtype=dtype)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Takes any size. Prompts and noise are not used: these networks take none.

        SwinIR and SCUNet keep the size; they restore the picture as it was enlarged before.

        Returns:
            (N, 3, round(H * scale), round(W * scale)), of the dtype of ``lq``.
        """
        if scale is None:
            scale = self.spec.scale or self.spec.default_scale or 1
        return self.cleaner.clean(lq, output_size(lq.shape[-2], lq.shape[-1], scale), shortest=1, memory=self.memory)


class BSRNetRestorer(CleanerRestorer):
    """BSRNet, which bounds its memory without tiles."""

    def restore_tiled(self, lq: Tensor, *, tile: int, dtype: torch.dtype) -> Tensor:
        """See `pnp_irib.restorer.TilingRestorer`: at the native scale, equal to `restore` but for rounding, without seams."""
        return self.cleaner.in_strips(lq, tile * tile, dtype)


Checkpoint: TypeAlias = str | Path | None
Device: TypeAlias = str | torch.device
Dtype: TypeAlias = str | torch.dtype


def load_bsrnet(checkpoint: Checkpoint = None, device: Device = "cpu", dtype: Dtype = "auto") -> CleanerRestorer:
    """BSRNet from ``BSRNet.pth``. For the options see `_load`."""
    return _load(BSRNET, checkpoint, device, dtype, memory=None)  # the wrapper asks for strips where memory is short


def load_swinir(
    checkpoint: Checkpoint = None, device: Device = "cpu", dtype: Dtype = "auto", memory: int | None = MEMORY
) -> CleanerRestorer:
    """SwinIR from ``realesrgan_s4_swinir_100k.pth`` or one of the older files. For the options see `_load`."""
    return _load(SWINIR, checkpoint, device, dtype, memory)


def load_scunet(
    checkpoint: Checkpoint = None, device: Device = "cpu", dtype: Dtype = "auto", memory: int | None = MEMORY
) -> CleanerRestorer:
    """SCUNet from ``scunet_color_real_psnr.pth``. For the options see `_load`."""
    return _load(SCUNET, checkpoint, device, dtype, memory)


def _load(spec: RestorerSpec, checkpoint: Checkpoint, device: Device, dtype: Dtype, memory: int | None) -> CleanerRestorer:
    """Find the file, build the restorer around it.

    Args:
        spec: which one.
        checkpoint: the published file, as a path or ``hf-hub:owner/repo/file``; None: see `published_file`.
        device: where it runs.
        dtype: "auto" takes the fastest safe one for the device (see `pnp_irib.runtime.choose_dtype`).
        memory: see `CleanerRestorer`.

    Raises:
        ConfigError: ``memory`` is no positive number of bytes.
        MissingExtraError: SwinIR and SCUNet need spandrel, and it is not installed.
        WeightsError: the file is missing, damaged, or of another network.
    """
    file = published_file(checkpoint, spec.weights[0], spec=spec)
    cleaner = load_cleaner(file, device=device, dtype=dtype)
    if spec.name != f"diffbir-{cleaner.kind.name}":
        raise WeightsError(
            f"{file} holds {cleaner.kind.name}, expected that of {spec.name}. Load diffbir-{cleaner.kind.name}."
        )
    restorer = (BSRNetRestorer if spec is BSRNET else CleanerRestorer)(spec, cleaner, memory=memory)
    restorer.origins = (origin_of(file),)
    return restorer
