"""What reading a latent diffusion model has in common, whatever its version: folders, tokenizer, and whether parts fit."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pnp_irib.diffusion.model import NoiseSchedule, fingerprint_of
from pnp_irib.diffusion.places import Found, KnownModel
from pnp_irib.errors import WeightsError
from pnp_irib.hub import Origin, SourceFile

__all__ = [
    "check_fit",
    "check_noise",
    "check_parts",
    "fingerprint_and_origin",
    "read_networks",
    "read_scheduler",
    "read_text_encoder",
    "read_tokenizer",
    "reading",
]

_NO_PICTURE = 1e-6  # share of the picture in a latent that counts as none


@contextlib.contextmanager
def reading(place: str | Path) -> Iterator[None]:
    """Keep the libraries quiet inside, and make one kind of error of all theirs.

    Raises:
        WeightsError: what is at ``place`` cannot be read.
    """
    try:
        with warnings.catch_warnings(), _no_progress_bar():
            warnings.simplefilter("ignore")  # of settings that other schedulers have
            yield
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"the base model {place} cannot be read: {reason}") from error


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


def check_parts(folder: Path, wanted: Sequence[str], title: str = "Stable Diffusion", hint: str = "") -> None:
    """Raise unless a folder has these parts of a model; ``title`` and ``hint`` are for the message."""
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise WeightsError(
            f"{folder} is no {title} model in the layout of diffusers: {', '.join(missing)} missing. {hint}"
            f"Give its folder, or hf-hub:owner/repo."
        )


def read_tokenizer(folder: Path | None, own: str | Path | None, **options: Any) -> Any:
    """The tokenizer of a model's folder, or one of its own; ``options`` take the place of what it states."""
    from transformers import CLIPTokenizer

    if own is None:
        assert folder is not None  # else there is one of its own
        return CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True, **options)
    path = Path(own).expanduser()
    if missing := [name for name in ("vocab.json", "merges.txt") if not (path / name).is_file()]:
        # Without them, transformers makes an empty one.
        raise WeightsError(f"no tokenizer at {path}: {' and '.join(missing)} missing. Give the folder that holds them.")
    return CLIPTokenizer.from_pretrained(path, local_files_only=True, **options)


def read_scheduler(folder: Path) -> Any:
    """What a folder says of a model's noise, as a ``DDPMScheduler``, whichever it names."""
    from diffusers import DDPMScheduler

    return DDPMScheduler.from_pretrained(folder, subfolder="scheduler", local_files_only=True)


def read_text_encoder(folder: Path, part: str, kind: str, dtype: torch.dtype) -> Any:
    """A text encoder of a folder; ``kind``: its class in transformers.

    Raises:
        WeightsError: some of its weights are missing; transformers would make them up.
    """
    import transformers

    options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
    encoder, info = getattr(transformers, kind).from_pretrained(folder, subfolder=part, dtype=dtype, **options)
    return _complete(encoder, info, folder / part)


def read_networks(folder: Path, dtype: torch.dtype, unet: Any = None) -> tuple[Any, Any]:
    """VAE and UNet of a folder; ``unet``: takes the place of its own.

    Raises:
        WeightsError: some of their weights are missing; diffusers would make them up.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    def network(kind: Any, part: str) -> Any:
        options: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}
        found, info = kind.from_pretrained(folder, subfolder=part, torch_dtype=dtype, **options)
        return _complete(found, info, folder / part)

    return network(AutoencoderKL, "vae"), network(UNet2DConditionModel, "unet") if unet is None else unet


def _complete(network: Any, info: dict[str, Any], folder: Path) -> Any:
    """The network, if all its weights were there."""
    if missing := sorted(info["missing_keys"]):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise WeightsError(
            f"{folder} does not fit {type(network).__name__}: missing {', '.join(missing[:3])}{more}. "
            f"Is the download complete?"
        )
    return network


def check_noise(scheduler: Any, noise: NoiseSchedule, place: str | Path, known: KnownModel, remark: str = "") -> None:
    """Compare what a folder says of a model's training with what is expected.

    Args:
        scheduler: of the folder.
        noise: that is expected.
        place: of the folder, for messages.
        known: a model that was trained so, for messages.
        remark: on it.

    Raises:
        WeightsError: they differ.
    """
    expected = {"eps": "epsilon", "v": "v_prediction"}[noise.prediction]
    if (predicted := scheduler.config.prediction_type) != expected:
        hint = f", as {known.title} does{remark}" if noise.prediction == "eps" else ""
        raise WeightsError(f"the base model {place} predicts {predicted!r:.40}; expected {expected!r}{hint}.")
    if (left := scheduler.alphas_cumprod[-1].item()) < _NO_PICTURE and not noise.zero_snr:
        raise WeightsError(f"the base model {place} begins at pure noise; expected the noise of {known.title}.")
    if left >= _NO_PICTURE and noise.zero_snr:
        raise WeightsError(
            f"the base model {place} begins at noise with {left:.2g} of the picture; expected one that was fine-tuned to "
            f"begin at pure noise."
        )


def check_fit(place: str | Path, words: Any, encoder: Any, vae: Any, unet: Any, known: KnownModel) -> None:
    """Raise where tokenizer and text encoder, or UNet and VAE, do not belong together; ``known``: one that fits."""
    if len(words) > encoder.config.vocab_size:
        raise WeightsError(
            f"the tokenizer has {len(words)} tokens, the text encoder of {place} embeds {encoder.config.vocab_size}: they "
            f"do not belong together."
        )
    if unet.config.in_channels != vae.config.latent_channels:
        raise WeightsError(
            f"the UNet of {place} reads {unet.config.in_channels} channels, expected the {vae.config.latent_channels} of "
            f"a latent. Is it one for inpainting or depth? Give {known.title}."
        )


def fingerprint_and_origin(found: Found, vae: Any, unet: Any) -> tuple[str, Origin]:
    """Of what was loaded."""
    fingerprint, origin = fingerprint_of(vae, unet), found.origin
    if not origin.files:  # gigabytes of the user's own are not read a second time for a hash
        files = (SourceFile(name="fingerprint of VAE and UNet", sha256=fingerprint),)
        origin = origin.model_copy(update={"files": files})
    return fingerprint, origin
