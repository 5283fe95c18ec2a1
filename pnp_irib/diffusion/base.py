"""Stable Diffusion 1.x and 2.x, from a folder or a single file."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor

from pnp_irib.diffusion.model import EPS, DiffusionModel, NoiseSchedule, fingerprint_of, known_as
from pnp_irib.diffusion.places import SD21_BASE, find_base
from pnp_irib.diffusion.single_file import Heads, read_single_file
from pnp_irib.diffusion.text import TextEmbedder
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.hub import SourceFile
from pnp_irib.runtime import require

__all__ = ["StableDiffusion"]

PARTS = ("tokenizer", "text_encoder", "vae", "unet", "scheduler")
_NO_PICTURE = 1e-6  # share of the picture in a latent that counts as none


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
            _check_parts(folder, [p for p in (PARTS if heads is None else ("tokenizer",)) if given.get(p) is None])
        configs = folder if heads is None else None  # None: the tensors of a single file tell
        try:
            with warnings.catch_warnings(), _no_progress_bar():
                warnings.simplefilter("ignore")  # of settings that other schedulers have
                words = _read_tokenizer(folder, tokenizer)
                if single is not None:
                    words.pad_token = words.convert_ids_to_tokens(0)  # as OpenCLIP pads
                stated = None if configs is None or (single is not None and noise != EPS) else _read_scheduler(configs)
                if single is None:
                    encoder, vae, unet = _read(found.path, dtype, unet)
                else:
                    encoder, vae, own = read_single_file(
                        single, configs, dtype=dtype, heads=heads, without_unet=unet is not None
                    )
                    unet = own if unet is None else unet
        except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise WeightsError(f"the base model {place} cannot be read: {reason}") from error
        if stated is not None:
            _check_noise(stated, noise, place)
        if len(words) > encoder.config.vocab_size:
            raise WeightsError(
                f"the tokenizer has {len(words)} tokens, the text encoder of {place} embeds {encoder.config.vocab_size}: they "
                f"do not belong together."
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise WeightsError(
                f"the UNet of {place} reads {unet.config.in_channels} channels, expected the {vae.config.latent_channels} of "
                f"a latent. Is it one for inpainting or depth? Give Stable Diffusion 2.1-base."
            )
        for part in (encoder, vae, unet):
            part.eval().requires_grad_(False)
        fingerprint = fingerprint_of(vae, unet)
        origin = found.origin
        if not origin.files:  # gigabytes of the user's own are not read a second time for a hash
            files = (SourceFile(name="fingerprint of VAE and UNet", sha256=fingerprint),)
            origin = origin.model_copy(update={"files": files})
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


def _check_parts(folder: Path, wanted: Sequence[str]) -> None:
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise WeightsError(
            f"{folder} is no Stable Diffusion model in the layout of diffusers: {', '.join(missing)} missing. "
            f"Give its folder, or hf-hub:owner/repo."
        )


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


def _read_tokenizer(folder: Path | None, own: str | Path | None) -> Any:
    """The tokenizer of a model's folder, or one of its own."""
    from transformers import CLIPTokenizer

    if own is None:
        assert folder is not None  # else there is one of its own
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
    path = Path(own).expanduser()
    if missing := [name for name in ("vocab.json", "merges.txt") if not (path / name).is_file()]:
        # Without them, transformers makes an empty one.
        raise WeightsError(f"no tokenizer at {path}: {' and '.join(missing)} missing. Give the folder that holds them.")
    return CLIPTokenizer.from_pretrained(path, local_files_only=True)


def _read_scheduler(folder: Path) -> Any:
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)


def _check_noise(scheduler: Any, noise: NoiseSchedule, place: str | Path) -> None:
    """Compare what a folder says of a model's training with what is expected."""
    expected = {"eps": "epsilon", "v": "v_prediction"}[noise.prediction]
    if (predicted := scheduler.config.prediction_type) != expected:
        hint = ", as Stable Diffusion 2.1-base does (2.1 without -base, for 768 pixels, is another model)"
        raise WeightsError(
            f"the base model {place} predicts {predicted!r:.40}; expected {expected!r}{hint if noise == EPS else ''}."
        )
    if (left := scheduler.alphas_cumprod[-1].item()) < _NO_PICTURE and not noise.zero_snr:
        raise WeightsError(f"the base model {place} begins at pure noise; expected the noise of Stable Diffusion 2.1-base.")
    if left >= _NO_PICTURE and noise.zero_snr:
        raise WeightsError(
            f"the base model {place} begins at noise with {left:.2g} of the picture; expected one that was fine-tuned to "
            f"begin at pure noise."
        )


def _read(folder: Path, dtype: torch.dtype, unet: Any) -> tuple[Any, Any, Any]:
    """Text encoder, VAE and UNet of a folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    safe: dict[str, Any] = {"local_files_only": True, "use_safetensors": True}
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=dtype, **safe)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype, **safe)
    if unet is None:
        unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=dtype, **safe)
    return encoder, vae, unet
