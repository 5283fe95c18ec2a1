"""SUPIR from its published files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from pnp_irib.diffusion.places import SDXL_BASE
from pnp_irib.diffusion.restorer import check_choices, check_options
from pnp_irib.diffusion.single_file import Heads
from pnp_irib.diffusion.xl import StableDiffusionXL
from pnp_irib.runtime import choose_device, choose_dtype
from pnp_irib.weights import origin_of, resolve_file
from pnp_irib_supir.checkpoint import read_supir
from pnp_irib_supir.restorer import Supir
from pnp_irib_supir.spec import FILES, SUPIR

__all__ = ["load_supir"]

_OWN = ("base", "networks", "robust_vae", "spec")  # arguments of `Supir` that are no options


def load_supir(
    variant: str = "Q",
    base: str | Path | StableDiffusionXL = SDXL_BASE.key,
    checkpoint: str | Path | None = None,
    tokenizer: str | Path | None = None,
    heads: Heads | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> Supir:
    """Build the restorer. What is not given is taken from the Hub's cache, or fetched once its size and licence are shown.

    Args:
        variant: "Q" for heavy degradation, or "F", which keeps more of lightly degraded pictures.
        base: Stable Diffusion XL: a single file such as ``sd_xl_base_1.0_0.9vae.safetensors``, a folder in the layout of
            diffusers, ``hf-hub:owner/repo[/file]``, a known name (see `pnp_irib.diffusion.places`), or a loaded model.
        checkpoint: ``SUPIR-v0Q.ckpt`` or ``SUPIR-v0F.ckpt``: a path, or ``hf-hub:owner/repo/file``.
        tokenizer: for a base that is a single file, see `StableDiffusionXL.load`.
        heads: likewise.
        device: where it runs.
        dtype: "auto", or a dtype of all parts; they are read in it, since all of them in float32 are 28 GB.
        options: see `Supir`.

    Raises:
        ConfigError: there is no such variant or option, or one has a value that is impossible.
        WeightsError: something is missing, damaged, or does not fit.
    """
    check_options(SUPIR.name, options, [name for name in inspect.signature(Supir).parameters if name not in _OWN])
    check_choices(variant=(variant, tuple(FILES)))
    spec = SUPIR.model_copy(update={"weights": (FILES[variant],), "title": f"{SUPIR.title}, variant {variant}"})
    file = resolve_file(FILES[variant].places[0] if checkpoint is None else checkpoint, spec=spec)
    if not isinstance(base, StableDiffusionXL):
        own = choose_dtype(dtype, choose_device(str(device)), spec.safe_dtypes)
        base = StableDiffusionXL.load(base, dtype=own, tokenizer=tokenizer, heads=heads)
    networks, robust = read_supir(file, base.unet, base.vae, dtype=base.dtype)
    restorer = Supir(base, networks, robust, spec=spec, device=device, dtype=dtype, **options)
    restorer.sources = (origin_of(file),)
    return restorer
