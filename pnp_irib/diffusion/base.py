"""Stable Diffusion 1.x and 2.x, from a folder or a single file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from pnp_irib.diffusion.loading import (
    check_fit,
    check_noise,
    check_parts,
    fingerprint_and_origin,
    read_networks,
    read_scheduler,
    read_text_encoder,
    read_tokenizer,
    reading,
)
from pnp_irib.diffusion.model import EPS, DiffusionModel, NoiseSchedule, known_as
from pnp_irib.diffusion.places import SD21_BASE, find_base
from pnp_irib.diffusion.single_file import Heads, read_single_file
from pnp_irib.diffusion.text import TextEmbedder
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.runtime import require

__all__ = ["StableDiffusion"]

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_OTHER = " (2.1 without -base, for 768 pixels, is another model)"


class StableDiffusion(DiffusionModel[Tensor]):
    """A Stable Diffusion 1.x or 2.x model, see `DiffusionModel` for its parts."""

    text: TextEmbedder

    @classmethod
    def load(
        cls,
        place: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        unet: Any = None,
        tokenizer: str | Path | None = None,
        heads: Heads | None = None,
        noise: NoiseSchedule = EPS,
    ) -> Self:
        """Read a model.

        A single file has weights only. With ``tokenizer`` or ``heads`` the shapes of its tensors tell the sizes of the
        networks; else the small files of Stable Diffusion 2.1-base do, wherever these are found.

        Args:
            place: a folder in the layout of diffusers; a single file in that of its authors; ``hf-hub:owner/repo[@revision]``,
                or ``hf-hub:owner/repo/file[@revision]``; or the name of a known model, ``stable-diffusion-2-1-base`` (see
                `find_base`).
            dtype: of its weights.
            unet: takes the place of the model's own, which need not be there then; a ``UNet2DConditionModel``.
            tokenizer: folder with ``vocab.json`` and ``merges.txt``; None: the model's own, for a single file that of Stable
                Diffusion 2.1-base.
            heads: widths of the attention heads of a single file.
            noise: that the model must have been trained with; a single file does not say, and is taken to be so.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ConfigError: it is no place, or ``heads`` is given with a folder, whose files say it.
            WeightsError: it is not there, or not such a model.
        """
        require("diffusers", "transformers", extra="diffusion")
        found = find_base(place, without="unet" if unet is not None else None)
        single = found.path if found.path.is_file() else None
        if single is None and heads is not None:
            raise ConfigError(f"heads= is for single files; {found.path} is a folder, whose config.json files say it.")
        folder: Path | None = found.path
        if single is not None:
            folder = find_base(SD21_BASE.key, only_configs=True).path if tokenizer is None else None
        if folder is not None:
            given = {"unet": unet, "tokenizer": tokenizer}
            check_parts(folder, [p for p in (PARTS if heads is None else ("tokenizer",)) if given.get(p) is None])
            if single is None and (folder / "text_encoder_2").is_dir():
                raise WeightsError(f"{folder} has a second text encoder: it is Stable Diffusion XL, expected 1.x or 2.x.")
        configs = folder if heads is None else None  # None: the tensors of a single file tell
        with reading(place):
            words = read_tokenizer(folder, tokenizer)
            if single is not None:
                words.pad_token = words.convert_ids_to_tokens(0)  # as OpenCLIP pads
            stated = None if configs is None or (single is not None and noise != EPS) else read_scheduler(configs)
            if single is None:
                encoder = read_text_encoder(found.path, "text_encoder", "CLIPTextModel", dtype)
                vae, unet = read_networks(found.path, dtype, unet)
            else:
                encoder, vae, own = read_single_file(single, configs, dtype=dtype, heads=heads, without_unet=unet is not None)
                unet = own if unet is None else unet
        if stated is not None:
            check_noise(stated, noise, place, SD21_BASE, _OTHER)
        check_fit(place, words, encoder, vae, unet, SD21_BASE)
        for part in (encoder, vae, unet):
            part.eval().requires_grad_(False)
        fingerprint, origin = fingerprint_and_origin(found, vae, unet)
        return cls(
            TextEmbedder(words, encoder),
            vae,
            unet,
            noise.alphas if stated is None else stated.alphas_cumprod.float(),
            fingerprint,
            known_as(place),
            copy.deepcopy(unet.conv_in),
            origin=origin,
            noise=noise,
        )
