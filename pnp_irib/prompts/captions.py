"""Prompts from any image-text model of transformers, which the user names; none is part of this library."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pnp_irib.errors import ConfigError, InputError, WeightsError, check_number
from pnp_irib.hub.names import Name, parse_name, valid_repository
from pnp_irib.prompts.base import Prompt
from pnp_irib.prompts.captioner import Captioner, missing_from
from pnp_irib.runtime import dtype_named

if TYPE_CHECKING:
    from torch import Tensor

    from pnp_irib.hub import Origin

__all__ = ["Captions"]

_SMALLEST = 32  # pixels; processors take smaller sides for channels


class Captions:
    """Captions by an image-text model of transformers (extra ``diffusion``), which is read or fetched at the first call.

    Any model that ``AutoModelForImageTextToText`` and ``AutoProcessor`` know will do: one that captions, such as BLIP, GIT or
    ViT-GPT2, is shown the picture alone; one that chats, such as LLaVA, is asked a question about it. Each next word is the
    likeliest, never drawn, and each picture is read by itself: a caption is the same alone and in a batch.

    Weights are read from safetensors alone, and no code that comes with a model is run. Those that also read video, such as
    Qwen-VL and SmolVLM, need torchvision.

    Args:
        place: the folder of a model, or ``hf-hub:owner/repo[@revision]``. Terms are those of its page there.
        question: for a model that chats, in place of the usual one; others are given it as text beside the picture: the
            beginning of a caption, or the words that their page asks for.
        max_new_tokens: a caption ends there at the latest. What exceeds `MAX_CHARACTERS` is cut.
        dtype: "auto" (that of the files), "float32", "bfloat16" or "float16".

    Raises:
        WeightsError: no model is at ``place``; what is fetched is checked at the first call.
        ConfigError: ``place`` is no name on the Hub, or another option is out of range.
    """

    def __init__(
        self, place: str | Path, *, question: str | None = None, max_new_tokens: int = 256, dtype: str = "auto"
    ) -> None:
        check_number("max_new_tokens", max_new_tokens, whole=True)
        if question is not None and not (isinstance(question, str) and question.strip()):
            raise ConfigError(f"question={question!r:.60}: expected a text that is not empty, or None for the usual one.")
        if dtype != "auto":
            dtype_named(dtype)
        self.place = str(place)
        self.question = question
        self.max_new_tokens = int(max_new_tokens)
        self.dtype = dtype
        self._captioner: Captioner | None = None
        self._source = _source(self.place)

    @property
    def name(self) -> str:
        """``caption:PLACE``."""
        return f"caption:{self.place}"

    def __repr__(self) -> str:
        options = f"question={self.question!r}, max_new_tokens={self.max_new_tokens}, dtype={self.dtype!r}"
        return f"Captions({self.place!r}, {options})"

    def _key(self) -> tuple[Path | Name, str | None, int, str]:
        return self._source, self.question, self.max_new_tokens, self.dtype

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Captions) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The files that it was read from with their sha256, for records; none before the first call."""
        return () if self._captioner is None else (self._captioner.origin,)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, /) -> list[Prompt]:
        """A caption of each picture, on one line; empty where the model says nothing.

        Args:
            pictures: (N, 3, H, W), floating point, any size from 1x1, read in 8 bits. Values outside [0, 1] are clipped; sides
                below 32 pixels are stretched to 32.

        Raises:
            InputError: not a batch of RGB pictures, or some values are not finite.
            WeightsError: it cannot be fetched, is damaged, captions no pictures, or needs code of its own.
            ConfigError: the model refuses the picture or the question.
            MissingExtraError: transformers, or a package that it needs for this model, is not installed.
        """
        from pnp_irib.images.io import to_pil
        from pnp_irib.images.resize import resize
        from pnp_irib.images.tensors import check_picture

        if not torch.isfinite(pictures).all():
            raise InputError("pictures must be finite; some values are NaN or infinite.")
        if not len(pictures):
            return []
        shown = check_picture(pictures.detach().clamp(0, 1), name="pictures")
        height, width = shown.shape[-2:]
        if min(height, width) < _SMALLEST:
            shown = resize(shown.float(), (max(height, _SMALLEST), max(width, _SMALLEST)))
        captioner = self._loaded()
        captioner.model.to(pictures.device)
        # One by one: in a batch the products take other code paths, and the last digit may decide about a word.
        images = [to_pil(one[None]) for one in shown]
        return [Prompt(captioner.caption(image, self.question, self.max_new_tokens)) for image in images]

    def _loaded(self) -> Captioner:
        if self._captioner is None:
            self._captioner = Captioner.read(self._source, self.dtype)
        return self._captioner


def _source(place: str) -> Path | Name:
    """Where a model is: a folder of this machine, or a repository of the Hub, which is not asked yet."""
    if place.startswith("hf-hub:"):
        return parse_name(place)
    folder = Path(place.removeprefix("local-dir:")).expanduser().absolute()  # the working directory may change
    if not folder.exists():
        hint = f" A name on the Hub is written hf-hub:{place}." if valid_repository(place.partition("@")[0]) else ""
        raise WeightsError(f"nothing is at {folder}; expected the folder of an image-text model of transformers.{hint}")
    if (missing := missing_from(folder)) is not None:
        raise WeightsError(f"{folder} holds no image-text model of transformers: {missing}.")
    return folder
