"""``SUPIR-v0Q.ckpt`` and ``SUPIR-v0F.ckpt``: control branch, connectors, and an encoder that sees through degradation."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.ldm import load_published, unet_names, vae_names
from pnp_irib.errors import WeightsError
from pnp_irib.runtime import store_channels_last
from pnp_irib.weights import load_checkpoint
from pnp_irib_supir.connectors import Attended, Modulated
from pnp_irib_supir.networks import Networks, empty_control_branch, places

__all__ = ["networks_from", "read_supir", "robust_vae_from"]

CONTROL, CONNECTORS, ENCODER = (
    "model.control_model.",
    "model.diffusion_model.project_modules.",
    "first_stage_model.denoise_encoder.",
)
_HINT = {
    "controlnet_cond_embedding.weight": "input_hint_block.0.weight",
    "controlnet_cond_embedding.bias": "input_hint_block.0.bias",
}


def read_supir(file: Path, unet: Any, vae: Any, *, dtype: torch.dtype) -> tuple[Networks, Any]:
    """UNet with all that steers it, and a VAE with the robust encoder.

    Tensors that are not known are named in a warning: the published file of variant Q may hold some.

    Args:
        file: of the checkpoint.
        unet: of Stable Diffusion XL.
        vae: likewise; the robust one has its other parts in common with it.
        dtype: of the weights.

    Raises:
        WeightsError: missing, damaged, or it does not fit.
    """
    tensors = load_checkpoint(file)
    networks = networks_from(tensors, unet, source=str(file), dtype=dtype)
    robust = robust_vae_from(tensors, vae, source=str(file), dtype=dtype)
    if tensors:
        more = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        warnings.warn(f"{file} holds what is not known and not used: {', '.join(list(tensors)[:3])}{more}.", stacklevel=2)
    return networks, robust


def networks_from(tensors: dict[str, Tensor], unet: Any, *, source: str, dtype: torch.dtype) -> Networks:
    """UNet, control branch and connectors, frozen.

    Args:
        tensors: of the checkpoint; what is used is taken out.
        unet: of Stable Diffusion XL.
        source: of the tensors, for messages.
        dtype: of the weights.

    Raises:
        WeightsError: names what is missing or of another shape.
    """
    if not any(name.startswith(CONTROL) for name in tensors):
        raise WeightsError(
            f"{source} holds no SUPIR: it holds {', '.join(list(tensors)[:3])}, ...; expected {CONTROL}*, as in "
            f"SUPIR-v0Q.ckpt or SUPIR-v0F.ckpt."
        )
    control = nn.Module.to(empty_control_branch(unet, source=source), dtype=dtype)
    names = unet_names(control.state_dict(), control.config.layers_per_block)
    _load(control, {**names, **_HINT}, tensors, CONTROL, source)

    standing = places(unet)
    key = f"{CONNECTORS}0.mlp_shared.0.weight"
    hidden = len(tensors[key]) if key in tensors else 128
    with torch.device("meta"):
        connectors = nn.ModuleList(
            Attended(*place.widths) if place.kind == "attended" else Modulated(*place.widths, hidden=hidden)
            for place in standing
        ).to(dtype)
    backwards = {
        name: f"{len(standing) - 1 - int(number)}.{rest}"
        for name in connectors.state_dict()
        for number, _, rest in [name.partition(".")]
    }
    _load(connectors, backwards, tensors, CONNECTORS, source)
    return Networks(unet, control, connectors)


def robust_vae_from(tensors: dict[str, Tensor], vae: Any, *, source: str, dtype: torch.dtype) -> Any:
    """A VAE whose encoder was trained on low-quality pictures; all else it shares with the one that it is made of.

    Args:
        tensors: of the checkpoint; what is used is taken out.
        vae: an ``AutoencoderKL``.
        source: of the tensors, for messages.
        dtype: of the weights.

    Raises:
        WeightsError: names what is missing or of another shape.
    """
    robust = copy.copy(vae)
    robust._modules = dict(vae._modules)
    robust.encoder = copy.deepcopy(vae.encoder).to("meta", dtype)
    own = [f"encoder.{name}" for name in robust.encoder.state_dict()]
    names = {name.removeprefix("encoder."): published.removeprefix("encoder.") for name, published in vae_names(own).items()}
    _load(robust.encoder, names, tensors, ENCODER, source)
    store_channels_last(robust.encoder)
    return robust


def _load(network: nn.Module, names: Mapping[str, str], tensors: dict[str, Tensor], prefix: str, source: str) -> None:
    """Give a network its tensors, which are taken out."""
    used = {name: tensors.pop(key) for name in set(names.values()) if (key := f"{prefix}{name}") in tensors}
    load_published(network, names, used, source=source, prefix=prefix)
