"""Stable Diffusion XL with the tiny weights of SUPIR's golden data."""

from __future__ import annotations

import functools
import gzip
import json
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from pnp_irib.diffusion.single_file import Heads
from tests.golden import golden_folder, missing

MODEL = golden_folder("supir") / "model"
FOLDER = MODEL / "sdxl"
HEADS = Heads(unet=32, text=4)


def ready() -> None:
    """Skip, or in CI fail, where the golden data is not."""
    if not FOLDER.is_dir():
        missing("supir")


@functools.cache
def single_file() -> dict[str, Tensor]:
    """Tensors of the single file that the folder was made from, float16, by their published names."""
    places: dict[str, list[list[str]]] = json.loads(gzip.decompress((MODEL / "sdxl_single_file_map.json.gz").read_bytes()))
    parts = {
        part: {name: value.half() for name, value in load_file(next((FOLDER / part).glob("*.safetensors"))).items()}
        for part in ("text_encoder", "text_encoder_2", "vae", "unet")
    }
    found: dict[str, Tensor] = {}
    for key, uses in places.items():
        values = [_published(parts[part][name], operation) for part, name, operation in uses]
        found[key] = torch.cat(values).contiguous() if values else torch.tensor(2.6592).half()
    found["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    return found


def _published(value: Tensor, operation: str) -> Tensor:
    """A parameter as the published file has it."""
    if operation == "squeeze_last_two_dims":
        return value[..., None, None]
    return value.mT if operation == "transpose" else value


def at_its_place(value: Tensor, operation: str) -> Tensor:
    """The inverse: a view of a published tensor that a parameter is made of."""
    if operation == "squeeze_last_two_dims":
        return value[..., 0, 0]
    if operation.startswith("chunk3_"):
        return value.chunk(3)[int(operation.split("_")[1])]
    assert operation in ("copy", "transpose")
    return value.mT if operation == "transpose" else value


def parts_by_name(encoders: Any, vae: Any, unet: Any) -> dict[str, dict[str, Tensor]]:
    """Parameters of all parts, by the names that their files in the layout of diffusers have."""
    clip, openclip = ({f"text_model.{_inside(name)}": p for name, p in e.state_dict().items()} for e in encoders)
    openclip["text_projection.weight"] = openclip.pop("text_model.text_projection.weight")
    return {"text_encoder": clip, "text_encoder_2": openclip, "vae": vae.state_dict(), "unet": unet.state_dict()}


def _inside(name: str) -> str:
    """Versions of transformers differ in whether the name of the inner model is there."""
    return name.removeprefix("text_model.")
