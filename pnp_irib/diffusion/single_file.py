"""A Stable Diffusion 2.x model in one file, in the layout of its authors' training code."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnp_irib.errors import WeightsError
from pnp_irib.weights import load_checkpoint, read_pickle

__all__ = ["read_single_file"]

TEXT = "cond_stage_model.model."
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_OTHERS = {
    "positional_embedding": "embeddings.position_embedding.weight",
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}


def read_single_file(file: Path, configs: Path, *, dtype: torch.dtype) -> tuple[Any, Any, Any]:
    """Text encoder, VAE and UNet.

    Args:
        file: ``.safetensors``, or ``.ckpt`` read with ``weights_only``.
        configs: a folder in the layout of diffusers with the configurations of the parts; no weights are needed there.
        dtype: of the weights.

    Raises:
        WeightsError: damaged, or not such a file.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel

    tensors = _tensors(file)
    missing = [prefix for prefix in ("model.diffusion_model.", "first_stage_model.", TEXT) if not _has(tensors, prefix)]
    if missing:
        raise WeightsError(
            f"{file} holds no tensors named {', '.join(f'{prefix}*' for prefix in missing)}; expected Stable Diffusion 2.x as "
            f"its authors publish it. Of another layout? Give a folder in the layout of diffusers."
        )
    options: dict[str, Any] = {"config": str(configs), "local_files_only": True, "torch_dtype": dtype}
    shown = logging.getLogger("diffusers").level
    try:
        logging.getLogger("diffusers").setLevel(logging.ERROR)  # other keys of the file are meant to be left over
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vae = AutoencoderKL.from_single_file(dict(tensors), subfolder="vae", **options)
            unet = UNet2DConditionModel.from_single_file(dict(tensors), subfolder="unet", **options)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{file} does not fit the configuration in {configs}: {reason}") from error
    finally:
        logging.getLogger("diffusers").setLevel(shown)
    return _text_encoder(file, tensors, configs, dtype), vae, unet


def _tensors(file: Path) -> dict[str, Tensor]:
    content = load_checkpoint(file) if file.suffix == ".safetensors" else read_pickle(file)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise WeightsError(f"{file} holds a {type(content).__name__}, expected tensors by name.")
    # Some files keep overlapping views of one storage.
    return {key: value.contiguous() for key, value in content.items() if isinstance(value, Tensor)}


def _has(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    return any(key.startswith(prefix) for key in tensors)


def _text_encoder(file: Path, tensors: Mapping[str, Tensor], configs: Path, dtype: torch.dtype) -> Any:
    """The text tower of OpenCLIP as a ``CLIPTextModel``, which has one layer less: the last is not used."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig.from_pretrained(configs, subfolder="text_encoder", local_files_only=True)
    with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
        encoder = CLIPTextModel(config)
    named: dict[str, Tensor] = {}
    for key, value in tensors.items():
        name = key.removeprefix(TEXT)
        if name in _OTHERS:
            named[_OTHERS[name]] = value
        elif name.startswith("transformer.resblocks.") and key.startswith(TEXT):
            number, _, rest = name.removeprefix("transformer.resblocks.").partition(".")
            if int(number) >= config.num_hidden_layers:
                continue
            layer = f"encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                for part, third in zip("qkv", value.chunk(3), strict=True):
                    named[f"{layer}.self_attn.{part}_proj.{rest.removeprefix('attn.in_proj_')}"] = third
            else:
                stem, _, kind = rest.rpartition(".")
                named[f"{layer}.{_LAYER.get(stem, stem)}.{kind}"] = value
    own = encoder.state_dict()
    prefix = "text_model." if any(key.startswith("text_model.") for key in own) else ""
    wanted = {key for key in own if not key.endswith("position_ids")}
    given = {f"{prefix}{key}": value.to(dtype) for key, value in named.items()}
    wrong = sorted(key for key in wanted if key not in given or given[key].shape != own[key].shape)
    if wrong:
        raise WeightsError(f"{file} does not fit the text encoder that {configs} describes, such as in {wrong[0]}.")
    encoder.load_state_dict({key: given[key] for key in wanted}, strict=False)
    return torch.nn.Module.to(encoder, dtype)
