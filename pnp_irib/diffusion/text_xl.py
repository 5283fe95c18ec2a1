"""Texts to what the UNet of Stable Diffusion XL reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.text import Embedder, padded_tokens
from pnp_irib.diffusion.text_cleaning import cleaned
from pnp_irib.runtime import BORROWING

__all__ = ["TextEmbedderXL", "Words"]


class Words(NamedTuple):
    """What a UNet reads of texts.

    Attributes:
        hidden: of each token, both encoders side by side, (N, length, width).
        pooled: of a text as a whole, of the second one, (N, width).
    """

    hidden: Tensor
    pooled: Tensor


class TextEmbedderXL(Embedder[Words]):
    """Hidden states of two CLIP text encoders before their last layers, and one vector of a text.

    Texts are `cleaned`: the encoders were trained with such.

    Args:
        tokenizer: a ``CLIPTokenizer`` that pads with the token of the end, and knows no other special ones than this and that
            of the beginning. It serves both encoders.
        encoders: a ``CLIPTextModel``, of OpenAI, and a ``CLIPTextModelWithProjection``, of OpenCLIP.
    """

    def __init__(self, tokenizer: Any, encoders: nn.ModuleList) -> None:
        super().__init__(encoders)
        self.tokenizer = tokenizer

    def tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Ids for each encoder, (N, length), cut and padded to the length that it reads."""
        clip, openclip = self.encoder
        first = padded_tokens(self.tokenizer, [cleaned(text, unescaped=False) for text in texts], clip)
        second = padded_tokens(self.tokenizer, [cleaned(text) for text in texts], openclip)
        ends = (second == self.tokenizer.eos_token_id).long()
        return first, second.masked_fill(ends.cumsum(1) > ends, 0)  # OpenCLIP pads with zeros

    def length(self, text: str) -> int:
        """How many tokens a text has, not cut, without those of the beginning and the end; of the encoders, the larger one."""
        texts = {cleaned(text), cleaned(text, unescaped=False)}
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        return max(len(ids) for ids in found)

    def encode(self, text: str, device: torch.device) -> tuple[Tensor, ...]:
        """See `Embedder`."""
        encoded = zip(self.encoder, self.tokens([text]), strict=True)
        (first, _), (second, found) = (_before_last_layer(encoder, ids.to(device)) for encoder, ids in encoded)
        return torch.cat([first, second], 2), found.text_embeds

    def together(self, *found: Tensor) -> Words:
        """See `Embedder`."""
        return Words(*found)


def _before_last_layer(encoder: Any, ids: Tensor) -> tuple[Tensor, Any]:
    """Hidden states that a text encoder's last layer is given, and all that the encoder says.

    Asked for hidden states, transformers leaves hooks behind.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        seen.append(given[0] if given else named["hidden_states"])

    with BORROWING:
        last = getattr(encoder, "text_model", encoder).encoder.layers[-1]
        hook = last.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            found = encoder(ids)
        finally:
            hook.remove()
    return seen[0], found
