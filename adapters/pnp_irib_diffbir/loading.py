"""DiffBIR from its published files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.restorer import check_choices, check_options
from pnp_irib.weights import origin_of
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.loading import load_cleaner
from pnp_irib_diffbir.files import published_file, read_controlnet
from pnp_irib_diffbir.networks import Networks
from pnp_irib_diffbir.restorer import DiffBIR
from pnp_irib_diffbir.spec import DIFFBIR
from pnp_irib_diffbir.versions import TASKS, VERSIONS, Task

__all__ = ["load_diffbir"]

_OWN = ("base", "networks", "cleaner", "version", "task", "spec")  # arguments of `DiffBIR` that are no options


def load_diffbir(
    version: str = "v2.1",
    task: Task = "sr",
    base: str | Path | StableDiffusion | None = None,
    control: str | Path | None = None,
    cleaner: str | Path | Cleaner | None = None,
    tokenizer: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> DiffBIR:
    """Build the restorer. What is not given is taken from the Hub's cache, or fetched once its size and licence are shown.

    Args:
        version: "v2.1", "v2" or "v1".
        task: "sr", "denoise", or "face" for aligned faces.
        base: for version 2.1 ``sd2.1-base-zsnr-laionaes5.ckpt``, else Stable Diffusion 2.1-base: a single file, a folder in
            the layout of diffusers, ``hf-hub:owner/repo[/file]``, a known name (see `pnp_irib.diffusion.places`), or a loaded
            model.
        control: IRControlNet, such as ``DiffBIR_v2.1.pt``: a path, or ``hf-hub:owner/repo/file``.
        cleaner: of the first stage, likewise, or loaded.
        tokenizer: for a base that is a single file, see `StableDiffusion.load`.
        device: where it runs.
        dtype: see `DiffBIR`.
        options: likewise.

    Raises:
        ConfigError: there is no such version, task or option, or one has a value that is impossible.
        MissingExtraError: the cleaner needs spandrel, and it is not installed.
        WeightsError: something is missing, damaged, or does not fit.
    """
    check_options(DIFFBIR.name, options, [name for name in inspect.signature(DiffBIR).parameters if name not in _OWN])
    check_choices(version=(version, tuple(VERSIONS)), task=(task, tuple(TASKS)))
    stated = VERSIONS[version]
    sources = []
    if not isinstance(cleaner, Cleaner):
        file = published_file(cleaner, stated.cleaners[task], spec=DIFFBIR)
        sources.append(origin_of(file))
        cleaner = load_cleaner(file)
    control_file = published_file(control, stated.controls[task], spec=DIFFBIR)
    sources.append(origin_of(control_file))
    if not isinstance(base, StableDiffusion):
        base = StableDiffusion.load(stated.base if base is None else base, tokenizer=tokenizer, noise=stated.noise)
    networks = Networks(base.unet, read_controlnet(control_file, base.unet))
    restorer = DiffBIR(base, networks, cleaner, version=version, task=task, device=device, dtype=dtype, **options)
    restorer.sources = tuple(sources)
    return restorer
