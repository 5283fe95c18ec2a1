"""A Stable Diffusion 2.x model in one file, in the layout of its authors' training code."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.ldm import (
    SD2,
    Family,
    Published,
    empty_network,
    load_published,
    text_names,
    unet_names,
    vae_names,
)
from pnp_irib.errors import WeightsError, check_number
from pnp_irib.weights import load_checkpoint, read_pickle

__all__ = [
    "TEXT",
    "UNET",
    "VAE",
    "Heads",
    "parts_of",
    "read_single_file",
    "taken",
    "tensors_of",
    "text_encoder_of",
    "unet_of",
    "vae_of",
]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."
_OF_VAE = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_OF_TEXT = re.compile(r"transformer\.resblocks\.(\d+)\.|token_embedding\.|positional_embedding$|ln_final\.")
_OTHERS = {
    "conditioner.embedders.0.transformer.": "Stable Diffusion XL",
    "conditioner.embedders.0.model.": "the refiner of Stable Diffusion XL",
    "cond_stage_model.transformer.": "Stable Diffusion 1.x",
    "cond_stage_model.model.": "Stable Diffusion 2.x",
}


@dataclass(frozen=True)
class Heads:
    """Channels of an attention head, which a single file does not say. Stable Diffusion 2.x and XL have 64 everywhere.

    Attributes:
        unet: of the UNet.
        text: of the text encoders.
    """

    unet: int = 64
    text: int = 64

    def __post_init__(self) -> None:
        check_number("heads.unet", self.unet, whole=True)
        check_number("heads.text", self.text, whole=True)


def read_single_file(
    file: Path, configs: Path | None, *, dtype: torch.dtype, heads: Heads | None = None, without_unet: bool = False
) -> tuple[Any, Any, Any]:
    """Text encoder, VAE and UNet, frozen.

    Args:
        file: ``.safetensors``, or ``.ckpt`` read with ``weights_only``.
        configs: a folder in the layout of diffusers with the configurations of the parts; no weights are needed there. None:
            the shapes of the tensors tell all but ``heads``.
        dtype: of the weights.
        heads: see `Heads`; only without ``configs``.
        without_unet: leave the UNet out, which need not be there then; None stands for it.

    Raises:
        WeightsError: damaged, or not such a file; names the first tensor that is missing.
    """
    tensors = tensors_of(file, (*(() if without_unet else (UNET,)), VAE, TEXT), SD2)
    if without_unet:
        taken(tensors, UNET)
    return parts_of(tensors, configs, dtype=dtype, heads=heads, source=str(file))


def parts_of(
    tensors: dict[str, Tensor], configs: Path | None, *, dtype: torch.dtype, heads: Heads | None = None, source: str
) -> tuple[Any, Any, Any]:
    """The same of tensors, which are taken out one by one; without those of a UNet, None stands for it.

    Raises:
        WeightsError: they do not fit; names the first that is missing.
    """
    heads = heads or Heads()
    vae = vae_of(taken(tensors, VAE), configs, dtype, source)
    encoder = _text_encoder(taken(tensors, TEXT), configs, dtype, heads.text, source)
    own = taken(tensors, UNET)
    return encoder, vae, unet_of(own, configs, dtype, heads.unet, source) if own else None


def tensors_of(file: Path, wanted: Sequence[str], family: Family) -> dict[str, Tensor]:
    """Tensors of a file by name: those of the parts that are wanted, each of which must be there.

    Args:
        file: ``.safetensors``, or ``.ckpt`` read with ``weights_only``.
        wanted: beginnings of their names.
        family: that is expected, for messages.

    Raises:
        WeightsError: damaged, or a part is not there; says what the file looks like.
    """
    content = load_checkpoint(file) if file.suffix == ".safetensors" else read_pickle(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}, expected tensors by name.")
    named = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    wrapped = "module." if next(iter(named), "").startswith("module.") else ""  # by what spreads a model over devices
    tensors = {key.removeprefix(wrapped): value for key, value in named.items()}
    if missing := [prefix for prefix in wanted if not any(key.startswith(prefix) for key in tensors)]:
        looks = (title for prefix, title in _OTHERS.items() if any(key.startswith(prefix) for key in tensors))
        other = next((title for title in looks if title != family.title), None)
        raise WeightsError(
            f"{file} holds no tensors named {', '.join(f'{prefix}*' for prefix in missing)}; expected {family.title} as its "
            f"authors publish it. "
            + (f"It looks like {other}." if other else "Of another layout? Give a folder in the layout of diffusers.")
        )
    return {key: value for key, value in tensors.items() if key.startswith((UNET, *wanted))}


def taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """One part, out of the whole."""
    names = [key for key in tensors if key.startswith(prefix)]
    return {key.removeprefix(prefix): tensors.pop(key) for key in names}


def vae_of(tensors: dict[str, Tensor], configs: Path | None, dtype: torch.dtype, source: str, *, family: Family = SD2) -> Any:
    """The VAE of its tensors; ``configs``: see `read_single_file`."""
    tensors = {name: value for name, value in tensors.items() if name.startswith(_OF_VAE)}  # not those of its training
    config = _stated(configs, "vae") or Published(tensors, source=source, prefix=VAE, family=family).vae()
    vae = empty_network("AutoencoderKL", config, dtype, source=str(configs or source))
    load_published(vae, vae_names(vae.state_dict()), tensors, source=source, prefix=VAE)
    return vae


def unet_of(
    tensors: dict[str, Tensor],
    configs: Path | None,
    dtype: torch.dtype,
    head_width: int,
    source: str,
    *,
    family: Family = SD2,
    pooled: int | None = None,
) -> Any:
    """The UNet of its tensors; ``pooled``: see `Published.unet`."""
    published = Published(tensors, source=source, prefix=UNET, family=family)
    config = _stated(configs, "unet") or published.unet(head_width, pooled)
    unet = empty_network("UNet2DConditionModel", config, dtype, source=str(configs or source))
    load_published(unet, unet_names(unet.state_dict(), unet.config.layers_per_block), tensors, source=source, prefix=UNET)
    return unet


def _stated(configs: Path | None, part: str) -> Mapping[str, Any] | None:
    """A network's arguments as a folder has them."""
    if configs is None:
        return None
    config: Mapping[str, Any] = json.loads((configs / part / "config.json").read_text())
    return config


def _text_encoder(tensors: dict[str, Tensor], configs: Path | None, dtype: torch.dtype, head_width: int, source: str) -> Any:
    """The text tower of OpenCLIP as a ``CLIPTextModel``, which has one layer less: the last is not used."""
    from transformers import CLIPTextConfig, CLIPTextModel

    if configs is None:
        config = CLIPTextConfig(**Published(tensors, source=source, prefix=TEXT).text(head_width))
    else:
        config = CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder", local_files_only=True)
    used = {
        name: value
        for name, value in tensors.items()
        if (found := _OF_TEXT.match(name)) and int(found[1] or 0) < config.num_hidden_layers
    }
    described = str(configs or source)
    return text_encoder_of(CLIPTextModel, config, text_names, used, dtype, source, prefix=TEXT, described=described)


def text_encoder_of(
    kind: Any,
    config: Any,
    names: Callable[[Iterable[str]], dict[str, str]],
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    source: str,
    *,
    prefix: str,
    described: str | None = None,
) -> Any:
    """A text encoder of transformers, of its tensors.

    Args:
        kind: its class.
        config: a ``CLIPTextConfig``.
        names: gives the published names of its parameters.
        tensors: by these.
        dtype: of the weights.
        source: of the tensors, for messages.
        prefix: that their names have in the file, for messages.
        described: where the configuration comes from, if elsewhere.

    Raises:
        WeightsError: there is no such encoder, or the tensors do not fit.
    """
    try:
        with torch.device("meta"):
            encoder = kind(config)
    except (ValueError, TypeError, RuntimeError) as error:
        raise WeightsError(f"{described or source} describes no text encoder that can be built: {error}") from error
    nn.Module.to(encoder, dtype=dtype)
    load_published(encoder, names(encoder.state_dict()), tensors, source=source, prefix=prefix)
    for module in encoder.modules():  # the only values that no file has
        if "position_ids" in module._buffers:
            module._buffers["position_ids"] = torch.arange(config.max_position_embeddings)[None]
    return encoder
