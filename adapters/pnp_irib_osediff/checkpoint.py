"""The files that OSEDiff is published in: LoRA on Stable Diffusion 2.1, and its first convolution in full."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pnp_irib.diffusion.lora import add_adapter, load_tensors
from pnp_irib.errors import WeightsError
from pnp_irib.files import write_atomically
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import read_pickle

__all__ = ["ALPHA", "UNET_ADAPTERS", "VAE_ADAPTER", "Checkpoint", "convert"]

ALPHA = 8  # no file states it; it is the default of peft, which the published code leaves as it is
UNET_ADAPTERS = {
    "default_encoder": "unet_lora_encoder_modules",
    "default_decoder": "unet_lora_decoder_modules",
    "default_others": "unet_lora_others_modules",
}
VAE_ADAPTER = "default_encoder"
_LISTS = (*UNET_ADAPTERS.values(), "vae_lora_encoder_modules")
_RANKS = ("rank_unet", "rank_vae")


@dataclass(frozen=True)
class Checkpoint:
    """What is trained of OSEDiff.

    Attributes:
        modules: names of the layers that carry LoRA, by the list's name in the file.
        rank_unet: of the LoRA of the UNet.
        rank_vae: of that of the VAE's encoder.
        unet: tensors by peft's names inside the UNet; ``conv_in.base_layer`` replaces the first convolution.
        vae: likewise for the VAE.
    """

    modules: dict[str, tuple[str, ...]]
    rank_unet: int
    rank_vae: int
    unet: dict[str, Tensor]
    vae: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """A published ``.pkl``, read with ``weights_only``, or a copy as safetensors (see `save`).

        Raises:
            WeightsError: damaged, or not such a file.
        """
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        wrong = [key for key in _RANKS if not (isinstance(content.get(key), int) and content[key] > 0)]
        wrong += [key for key in _LISTS if not _is_names(content.get(key))]
        wrong += [key for key in ("state_dict_unet", "state_dict_vae") if not _is_tensors(content.get(key))]
        if wrong:
            raise WeightsError(f"{path} is no checkpoint of OSEDiff: {', '.join(wrong)} missing or of another kind.")
        return cls(
            modules={key: tuple(dict.fromkeys(content[key])) for key in _LISTS},
            rank_unet=content["rank_unet"],
            rank_vae=content["rank_vae"],
            unet=dict(content["state_dict_unet"]),
            vae=dict(content["state_dict_vae"]),
        )

    def save(self, path: Path) -> None:
        """Write it as safetensors, in one step."""
        facts = {"modules": self.modules, "rank_unet": self.rank_unet, "rank_vae": self.rank_vae}
        tensors = {f"unet.{name}": value.contiguous() for name, value in self.unet.items()}
        tensors |= {f"vae.{name}": value.contiguous() for name, value in self.vae.items()}
        write_atomically(path, lambda part: save_file(tensors, part, metadata={"osediff": json.dumps(facts)}))

    def install(self, unet: Any, vae: Any) -> None:
        """Put the LoRA on a base model and replace the first convolution of its UNet.

        Raises:
            WeightsError: the base has other layers or shapes.
        """
        for name, key in UNET_ADAPTERS.items():
            add_adapter(unet, name, self.modules[key], rank=self.rank_unet, alpha=ALPHA)
        add_adapter(vae, VAE_ADAPTER, self.modules["vae_lora_encoder_modules"], rank=self.rank_vae, alpha=ALPHA)
        own = tuple(f".{name}." for name in (*UNET_ADAPTERS, VAE_ADAPTER))
        for module, tensors in ((unet, self.unet), (vae, self.vae)):
            lora = [name for name, _ in module.named_parameters() if any(adapter in name for adapter in own)]
            replaced = ["conv_in.base_layer.weight", "conv_in.base_layer.bias"] if module is unet else []
            load_tensors(module, tensors, required=[*lora, *replaced])
            for name in lora:  # frozen, as the base is; adapters of others are not ours
                module.get_parameter(name).requires_grad_(False)


def convert(spec: RestorerSpec, source: Path, target: Path) -> None:
    """Write a published checkpoint as safetensors, see `RestorerSpec.convert`.

    Raises:
        WeightsError: it is damaged, or no checkpoint of OSEDiff.
    """
    Checkpoint.read(source).save(target)


def _read_pickle(path: Path) -> dict[str, Any]:
    content = read_pickle(path)
    return content if isinstance(content, dict) else {}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("osediff", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (OSError, SafetensorError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise WeightsError(f"{path} cannot be read as a checkpoint: {reason}. Is the download complete?") from error
    if not isinstance(facts, dict):
        facts = {}
    split = {
        f"state_dict_{part}": {k.removeprefix(f"{part}."): v for k, v in tensors.items() if k.startswith(f"{part}.")}
        for part in ("unet", "vae")
    }
    modules = facts.get("modules")
    return {**facts, **(modules if isinstance(modules, dict) else {}), **split}


def _is_names(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(name, str) for name in value)


def _is_tensors(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(tensor, Tensor) for tensor in value.values())
