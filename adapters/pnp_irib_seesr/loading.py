"""SeeSR from its published files."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.places import SD21_BASE, SD_TURBO
from pnp_irib.diffusion.restorer import check_options
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import Origin, parse_name
from pnp_irib.hub.download import fetch
from pnp_irib.prompts.ram import RamTags
from pnp_irib.spec import RestorerSpec
from pnp_irib_seesr.networks import Networks, give_image_attention, image_tensors, read_network
from pnp_irib_seesr.restorer import SeeSR
from pnp_irib_seesr.spec import FILES, SEESR, SEESR_TURBO

__all__ = ["load_seesr", "load_seesr_turbo"]

_OWN = ("base", "networks", "tagger", "spec", "turbo")  # arguments of `SeeSR` that are no options


def load_seesr(
    base: str | Path | None = None,
    checkpoint: str | Path | None = None,
    dape: str | Path | RamTags | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> SeeSR:
    """SeeSR in 50 steps; see `_load`."""
    return _load(SEESR, base or SD21_BASE.key, checkpoint, dape, {"device": device, "dtype": dtype} | options, turbo=False)


def load_seesr_turbo(
    base: str | Path | None = None,
    checkpoint: str | Path | None = None,
    dape: str | Path | RamTags | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> SeeSR:
    """SeeSR in 2 steps of SD-Turbo; see `_load`."""
    return _load(SEESR_TURBO, base or SD_TURBO.key, checkpoint, dape, {"device": device, "dtype": dtype} | options, turbo=True)


def _load(
    spec: RestorerSpec,
    base: str | Path,
    checkpoint: str | Path | None,
    dape: str | Path | RamTags | None,
    options: dict[str, Any],
    *,
    turbo: bool,
) -> SeeSR:
    """Build the restorer.

    Args:
        spec: which one.
        base: Stable Diffusion 2-base or 2.1-base (of which the UNet is not read), for turbo SD-Turbo: a folder in the layout
            of diffusers, ``hf-hub:owner/repo``, or a known name (see `pnp_irib.diffusion.places`).
        checkpoint: the published folder with ``unet/`` and ``controlnet/``, or ``hf-hub:owner/repo`` with these.
        dape: the tagger: the folder of its published files, its slim copy, or a loaded `RamTags`.
        options: see `SeeSR`.
        turbo: whose UNet and spacing of steps.

    Raises:
        ConfigError: there is no such option.
        WeightsError: something is missing, damaged, or does not fit.
    """
    check_options(spec.name, options, [name for name in inspect.signature(SeeSR).parameters if name not in _OWN])
    if checkpoint is None:
        raise WeightsError(
            f"{spec.name} needs checkpoint=, the folder with unet/ and controlnet/ (named in the README of "
            f"{spec.weights[0].places[0]})."
        )
    if dape is None:
        raise WeightsError(
            f"{spec.name} needs dape=, the folder of the tagger: ram_swin_large_14m.pth, DAPE.pth, ram_tag_list.txt and "
            f"ram_tag_list_threshold.txt, or their slim copy."
        )
    if not isinstance(base, str | Path):
        raise ConfigError(
            f"base={type(base).__name__}: {spec.name} reads its base itself. Give its folder, or hf-hub:owner/repo."
        )
    folder, origin = _folder(checkpoint, spec)
    tagger = dape if isinstance(dape, RamTags) else RamTags(dape)
    controlnet = read_network(folder / "controlnet", "ControlNetModel")
    if turbo:
        model = StableDiffusion.load(base)
        give_image_attention(model.unet, image_tensors(folder / "unet"), source=f"{folder / 'unet'} on {base}")
    else:
        model = StableDiffusion.load(base, unet=read_network(folder / "unet", "UNet2DConditionModel"))
    model.fingerprint = None  # nobody else's adapters fit this UNet
    widths = {
        "the text encoder": model.text.encoder.config.hidden_size,
        "the UNet": model.unet.config.cross_attention_dim,
        "the ControlNet": controlnet.config.cross_attention_dim,
    }
    if len(set(widths.values())) > 1:
        told = ", ".join(f"{part} {width}" for part, width in widths.items())
        raise WeightsError(
            f"these parts do not belong together: the embedding of a word has the widths: {told}. Stable Diffusion 2 has 1024 "
            f"in all of them; is base= the right one?"
        )
    restorer = SeeSR(model, Networks(model.unet, controlnet), tagger, spec=spec, turbo=turbo, **options)
    restorer.sources = (origin, *tagger.origins)
    return restorer


def _folder(checkpoint: str | Path, spec: RestorerSpec) -> tuple[Path, Origin]:
    path = Path(str(checkpoint).removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return path, Origin(place=f"local-dir:{path}")
    if not str(checkpoint).startswith("hf-hub:"):
        raise WeightsError(f"no folder at {path}. Give the one that holds unet/ and controlnet/, or hf-hub:owner/repo.")
    fetched = fetch(parse_name(str(checkpoint)), FILES, licence=f"{spec.weights_licence} for the weights of {spec.name}")
    return fetched.folder, fetched.origin()
