"""The tagging head of RAM: every label asks the picture whether it is there.

Cross-attention from label embeddings to image tokens (Query2Label, Liu et al., arXiv 2107.10834), without attention among the
labels: what is said of one does not depend on the others, so that they can be asked in any portions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.prompts.ram.architecture import LAYER_NORM_EPS, RamArchitecture

__all__ = ["TaggingHead"]


class TaggingHead(nn.Module):
    """Label stream and image tokens to the label stream behind the last layer.

    Attributes:
        rows: labels that go through the layers at a time, over all pictures of the batch: bounds the memory above the result
            to some tens of megabytes at the published sizes. With gradients, what they need is kept for all labels anyway.
    """

    rows: int = 2048

    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        self.encoder = _Encoder(architecture)

    def forward(self, labels: Tensor, tokens: Tensor, last: nn.Linear) -> Tensor:
        """One number for every label and picture.

        Args:
            labels: (K, head_width), the stream before the first layer.
            tokens: (N, T, embedding).
            last: head_width to 1.

        Returns:
            (N, K), logits.
        """
        layers = [layer for layer in self.encoder.layer if isinstance(layer, _Layer)]
        seen = [layer.look(tokens) for layer in layers]
        found = []
        for part in labels.split(max(1, self.rows // max(1, len(tokens)))):
            stream = part.expand(len(tokens), -1, -1)
            for layer, (key, value) in zip(layers, seen, strict=True):
                stream = layer(stream, key, value)
            found.append(last(stream).squeeze(-1))
        return torch.cat(found, dim=1)


class _Encoder(nn.Module):
    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        self.layer = nn.ModuleList(_Layer(architecture) for _ in range(architecture.head_layers))


class _Layer(nn.Module):
    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        width, hidden = architecture.head_width, architecture.head_mlp
        self.crossattention = _CrossAttention(width, architecture.embedding, architecture.head_heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, hidden)})
        self.output = _AddAndNorm(hidden, width)

    def look(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of image tokens (N, T, E), (N, heads, T, width / heads) each: the same for all labels."""
        return self.crossattention.look(tokens)

    def forward(self, stream: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, K, width) -> the same shape."""
        stream = self.crossattention(stream, key, value)
        changed: Tensor = self.output(F.gelu(self.intermediate["dense"](stream)), stream)
        return changed


class _CrossAttention(nn.Module):
    def __init__(self, width: int, incoming: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        parts = {"query": nn.Linear(width, width), "key": nn.Linear(incoming, width), "value": nn.Linear(incoming, width)}
        self.self = nn.ModuleDict(parts)  # the published name
        self.output = _AddAndNorm(width, width)

    def look(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self._project("key", tokens), self._project("value", tokens)

    def forward(self, stream: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = self._project("query", stream)
        found = F.scaled_dot_product_attention(query, key, value)  # its softmax is float32 inside
        changed: Tensor = self.output(found.transpose(1, 2).flatten(2), stream)
        return changed

    def _project(self, part: str, hidden: Tensor) -> Tensor:
        projected: Tensor = self.self[part](hidden)
        count, length, width = projected.shape
        return projected.view(count, length, self.heads, width // self.heads).transpose(1, 2)


class _AddAndNorm(nn.Module):
    def __init__(self, incoming: int, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(incoming, width)
        self.LayerNorm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, hidden: Tensor, stream: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dense(hidden) + stream)
        return normed
