"""DAPE's LoRA, folded into the weights of RAM once and in float32.

The published code folds it in on every change to evaluation mode and takes it out again for training, so that weights drift,
and adds what is stored for another network with shared weights (``tag_encoder``) on top. Here only what is for tagging counts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pnp_irib.errors import WeightsError

__all__ = ["merge"]

_ALPHA = 1.0  # in no file; the default of the published code, whose rank is 8: a scaling of 1/8


def merge(weights: dict[str, Tensor], lora: Mapping[str, Tensor], *, source: Path) -> None:
    """Add the LoRA to ``weights``, in place of the dictionary's entries.

    Every query and value of Swin and every query and key of the tagging head must have its pair; the layer that makes Swin's
    query, key and value has one for the first and the third.

    Args:
        weights: of the network, by the published names, float32.
        lora: ``NAME.lora_A`` and ``NAME.lora_B`` by the names of the layers.
        source: of ``lora``, for messages.

    Raises:
        WeightsError: a pair is missing, does not fit, or belongs to no such layer.
    """
    layers = [name.removesuffix(".weight") for name in weights if _has_lora(name)]
    wanted = {f"{layer}.lora_{part}" for layer in layers for part in "AB"}
    if missing := sorted(wanted - lora.keys()):
        raise WeightsError(f"{source} lacks {_some(missing)}: it is not the LoRA of this RAM, or only a part of it.")
    if extra := sorted(lora.keys() - wanted):
        raise WeightsError(f"{source} holds {_some(extra)}, which is for no layer of this RAM.")
    for layer in layers:
        down, up = (lora[f"{layer}.lora_{part}"].float() for part in "AB")
        weight = weights[f"{layer}.weight"]
        merged_layer = layer.endswith(".qkv")
        rank, rows = (down.shape[0] // 2, weight.shape[0] // 3 * 2) if merged_layer else (down.shape[0], weight.shape[0])
        expected = ((2 * rank if merged_layer else rank, weight.shape[1]), (rows, rank))
        if rank == 0 or (tuple(down.shape), tuple(up.shape)) != expected:
            raise WeightsError(
                f"{source}: the LoRA of {layer} has the shapes {tuple(down.shape)} and {tuple(up.shape)}; expected "
                f"{expected[0]} and {expected[1]} for a weight of the shape {tuple(weight.shape)}."
            )
        delta = _query_and_value(down, up, rank) if merged_layer else up @ down
        weights[f"{layer}.weight"] = weight + _ALPHA / rank * delta


def _query_and_value(down: Tensor, up: Tensor, rank: int) -> Tensor:
    """(3 C, C): the first half of each matrix is for the query, the second for the value; the key has none."""
    width = up.shape[0] // 2
    query, value = up[:width] @ down[:rank], up[width:] @ down[rank:]
    return torch.cat([query, torch.zeros_like(query), value])


def _has_lora(name: str) -> bool:
    if name.startswith("visual_encoder."):
        return name.endswith(".attn.qkv.weight")
    return name.startswith("tagging_head.") and name.endswith((".self.query.weight", ".self.key.weight"))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
