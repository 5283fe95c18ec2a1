"""Stable Diffusion XL, from a folder or a single file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

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
from pnp_irib.diffusion.model import EPS, DiffusionModel, known_as
from pnp_irib.diffusion.places import SD21_BASE, SDXL, SDXL_BASE, find_base
from pnp_irib.diffusion.single_file import Heads
from pnp_irib.diffusion.text_xl import TextEmbedderXL, Words
from pnp_irib.diffusion.xl_file import read_xl_file
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.runtime import require

__all__ = ["StableDiffusionXL"]

_KINDS = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
_END = "<|endoftext|>"
# Where a tokenizer pads with "!", that sign is a special token, which neither encoder was trained with.
_TOKENS: dict[str, Any] = {
    "bos_token": "<|startoftext|>",
    "eos_token": _END,
    "unk_token": _END,
    "pad_token": _END,
    "added_tokens_decoder": {},
}


class StableDiffusionXL(DiffusionModel[Words]):
    """A Stable Diffusion XL model, see `DiffusionModel` for its parts.

    Beside a latent, a time and words, its UNet reads a vector of the text and six lengths in pixels: height and width of the
    picture, top and left of what was cut out of it, height and width of what it is to be like.

    Its VAE overflows in float16.
    """

    text: TextEmbedderXL

    @classmethod
    def load(
        cls,
        place: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        tokenizer: str | Path | None = None,
        heads: Heads | None = None,
    ) -> Self:
        """Read a model that predicts the noise.

        A single file has weights only; the shapes of its tensors tell the sizes of the networks. It does not say what it
        predicts, and is taken to predict the noise.

        Args:
            place: a folder in the layout of diffusers; a single file in that of its authors; ``hf-hub:owner/repo[@revision]``,
                or ``hf-hub:owner/repo/file[@revision]``; or the name of a known model, ``stable-diffusion-xl-base-1.0`` (see
                `find_base`).
            dtype: of its weights.
            tokenizer: folder with ``vocab.json`` and ``merges.txt``; None: the model's own, for a single file that of Stable
                Diffusion XL base 1.0, or else the same of 2.1-base, wherever one of these is found.
            heads: widths of the attention heads of a single file, where they are not 64.

        Raises:
            MissingExtraError: diffusers or transformers is not installed.
            ConfigError: it is no place, or ``heads`` is given with a folder, whose files say it.
            WeightsError: it is not there, or not such a model.
        """
        require("diffusers", "transformers", extra="diffusion")
        found = find_base(place, layout=SDXL)
        single = found.path.is_file()
        if single:
            folder = _small_files() if tokenizer is None else None
        else:
            folder = found.path
            if heads is not None:
                raise ConfigError(f"heads= is for single files; {folder} is a folder, whose config.json files say it.")
            _check_folder(folder, tokenizer)
        with reading(place):
            words = read_tokenizer(folder, tokenizer, **_TOKENS)
            if single:
                encoders, vae, unet = read_xl_file(found.path, dtype=dtype, heads=heads)
            else:
                _check_noise(read_scheduler(found.path), place)
                encoders = nn.ModuleList(read_text_encoder(found.path, part, kind, dtype) for part, kind in _KINDS.items())
                vae, unet = read_networks(found.path, dtype)
        for encoder in encoders:
            check_fit(place, words, encoder, vae, unet, SDXL_BASE)
        _check_widths(place, encoders, unet)
        for part in (encoders, vae, unet):
            part.eval().requires_grad_(False)
        fingerprint, origin = fingerprint_and_origin(found, vae, unet)
        return cls(
            TextEmbedderXL(words, encoders),
            vae,
            unet,
            EPS.alphas,
            fingerprint,
            known_as(place),
            copy.deepcopy(unet.conv_in),
            origin=origin,
        )


def _small_files() -> Path:
    """A folder with the tokenizer of Stable Diffusion XL, which is also that of 2.1-base."""
    try:
        return find_base(SDXL_BASE.key, only_configs=True, layout=SDXL).path
    except WeightsError as error:
        try:
            return find_base(SD21_BASE.key, only_configs=True).path
        except WeightsError:
            raise error from None


def _check_folder(folder: Path, tokenizer: str | Path | None) -> None:
    """Raise unless all parts are there."""
    one, two = ((folder / part).is_dir() for part in _KINDS)
    hint = ""
    if one and not two:
        hint = "It looks like Stable Diffusion 1.x or 2.x. "
    elif two and not one:
        hint = "It looks like the refiner of Stable Diffusion XL, which is another model. "
    wanted = (*_KINDS, "vae", "unet", "scheduler", *(("tokenizer",) if tokenizer is None else ()))
    check_parts(folder, wanted, SDXL.title, hint)


def _check_noise(scheduler: Any, place: str | Path) -> None:
    """Raise where a folder says that its model was trained with other noise."""
    check_noise(scheduler, EPS, place, SDXL_BASE)
    found = scheduler.alphas_cumprod.float()
    if len(found) != len(EPS.alphas) or (found - EPS.alphas).abs().max() > 1e-4:
        own, usual = (f"{len(of)} steps from {of[0]:.4f} to {of[-1]:.2g} of the picture" for of in (found, EPS.alphas))
        raise WeightsError(f"the base model {place} was trained on {own}; expected {usual}, as {SDXL_BASE.title} was.")


def _check_widths(place: str | Path, encoders: Any, unet: Any) -> None:
    """Raise unless the UNet reads what the text encoders give."""
    clip, openclip = (encoder.config for encoder in encoders)
    config = unet.config
    read = (config.cross_attention_dim, config.projection_class_embeddings_input_dim)
    given = (clip.hidden_size + openclip.hidden_size, openclip.projection_dim + 6 * (config.addition_time_embed_dim or 0))
    if config.addition_embed_type != "text_time" or read != given:
        raise WeightsError(
            f"the UNet of {place} reads words of {read[0]} numbers beside a vector of {read[1] or 0}; expected {given[0]} and "
            f"{given[1]}, as its text encoders and six lengths make. Is all of it {SDXL.title}? Give {SDXL_BASE.title}."
        )
