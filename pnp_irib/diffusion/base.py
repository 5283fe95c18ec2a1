"""A Stable Diffusion model, in the parts that restorers are built of."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.text import TextEmbedder
from pnp_irib.errors import WeightsError
from pnp_irib.runtime import require

__all__ = ["StableDiffusion"]

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")


@dataclass
class StableDiffusion:
    """The parts of a Stable Diffusion 1.x or 2.x model, frozen and in evaluation mode.

    Attributes:
        text: prompts to embeddings.
        vae: an ``AutoencoderKL`` of diffusers.
        unet: a ``UNet2DConditionModel``.
        alphas: products of 1 - beta by timestep, (T,) float32.
    """

    text: TextEmbedder
    vae: Any
    unet: Any
    alphas: Tensor

    @classmethod
    def load(cls, place: str | Path, *, dtype: torch.dtype = torch.float32) -> Self:
        """Read a model in the folder layout of diffusers.

        Args:
            place: a folder, or ``hf-hub:owner/repo[@revision]``.
            dtype: of its weights.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            WeightsError: it is not there, or not such a model.
        """
        require("diffusers", "transformers", extra="diffusion")
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        name, options = _place(place)
        try:
            with warnings.catch_warnings(), _no_progress_bar():
                warnings.simplefilter("ignore")  # of settings that other schedulers have
                alphas = DDPMScheduler.from_pretrained(name, subfolder="scheduler", **options).alphas_cumprod
                tokenizer = CLIPTokenizer.from_pretrained(name, subfolder="tokenizer", **options)
                encoder = CLIPTextModel.from_pretrained(name, subfolder="text_encoder", dtype=dtype, **options)
                vae = AutoencoderKL.from_pretrained(name, subfolder="vae", torch_dtype=dtype, **options)
                unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", torch_dtype=dtype, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(f"the base model {place} cannot be read: {reason}") from error
        for part in (encoder, vae, unet):
            part.eval().requires_grad_(False)
        return cls(TextEmbedder(tokenizer, encoder), vae, unet, alphas.float())

    @property
    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        """Text encoder, VAE and UNet."""
        return self.text.encoder, self.vae, self.unet

    @property
    def device(self) -> torch.device:
        """Where the UNet is."""
        device: torch.device = next(self.unet.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet."""
        dtype: torch.dtype = next(self.unet.parameters()).dtype
        return dtype

    @property
    def factor(self) -> int:
        """Pixels on a side of one latent pixel."""
        levels: int = len(self.vae.config.block_out_channels)
        return 1 << (levels - 1)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Self:
        """Move all parts in place."""
        for part in self.modules:
            part.to(device=device, dtype=dtype)
        return self


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing one over what the command line says."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _place(place: str | Path) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` takes: a folder is never looked for elsewhere."""
    text = str(place)
    if text.startswith("hf-hub:"):
        name, _, revision = text.removeprefix("hf-hub:").partition("@")
        return name, {"revision": revision or None}
    folder = Path(text.removeprefix("local-dir:")).expanduser()
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise WeightsError(
            f"{folder} is no Stable Diffusion model in the layout of diffusers: {', '.join(missing)} missing. "
            f"Give its folder, or hf-hub:owner/repo."
        )
    return str(folder), {"local_files_only": True}
