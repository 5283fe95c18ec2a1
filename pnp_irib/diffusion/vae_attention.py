"""The attention of the VAE of Stable Diffusion in its parts, for where the keys and values do not come from the map alone."""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attend", "queries_keys_values"]


def queries_keys_values(layer: Any, normal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of a normalised map (N, C, h, w), each (N, heads, h w, C / heads)."""
    tokens = normal.flatten(2).transpose(1, 2)
    query, key, value = (
        to(tokens).unflatten(2, (layer.heads, -1)).transpose(1, 2) for to in (layer.to_q, layer.to_k, layer.to_v)
    )
    return query, key, value


def attend(layer: Any, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What the layer makes of a map (N, C, h, w) whose queries these are, of each picture or of all in one sequence."""
    found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    found = layer.to_out[1](layer.to_out[0](found)).reshape(x.shape[0], -1, x.shape[1])
    found = found.transpose(1, 2).unflatten(2, x.shape[-2:])
    return cast(Tensor, (found + x) / layer.rescale_output_factor)
