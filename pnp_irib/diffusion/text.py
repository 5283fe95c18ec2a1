"""Texts to embeddings; a text is encoded once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["TextEmbedder"]

_KEPT = 256  # embeddings; 0.3 MB each at the width of Stable Diffusion 2.1


class TextEmbedder:
    """Hidden states of a CLIP text encoder behind its last layer norm.

    Args:
        tokenizer: a ``CLIPTokenizer`` of transformers.
        encoder: a ``CLIPTextModel``.
    """

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._of: torch.dtype | None = None

    def knows(self, texts: Sequence[str]) -> bool:
        """Whether all these are kept."""
        return self._of == self.encoder.dtype and all(text in self._known for text in texts)

    def forget(self) -> None:
        """Drop the embeddings that are kept."""
        self._known.clear()

    def tokens(self, texts: Sequence[str]) -> Tensor:
        """Ids (N, length), cut and padded to the length that the encoder reads."""
        length = self.encoder.config.max_position_embeddings
        found = self.tokenizer(list(texts), max_length=length, padding="max_length", truncation=True, return_tensors="pt")
        ids: Tensor = found.input_ids
        return ids

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """(N, length, width), one a text, of the encoder's dtype and on its device.

        Padding is read like words, as Stable Diffusion was trained.
        """
        device = self.encoder.device
        if self._of != self.encoder.dtype:
            self.forget()
            self._of = self.encoder.dtype
        with torch.autocast(device.type, enabled=False):  # what is kept must not depend on who asked first
            for text in [text for text in dict.fromkeys(texts) if text not in self._known]:
                # One at a time: the same alone and in a batch.
                self._known[text] = self.encoder(self.tokens([text]).to(device))[0][0]
        result = torch.stack([self._known[text].to(device) for text in texts])  # the encoder may have moved since
        for text in texts:
            self._known.move_to_end(text)
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        return result
