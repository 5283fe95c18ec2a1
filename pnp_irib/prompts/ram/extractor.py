"""RAM and DAPE as a `PromptExtractor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.prompts.base import Prompt, Tag

if TYPE_CHECKING:
    from torch import Tensor

    from pnp_irib.hub import Origin
    from pnp_irib.prompts.ram.model import RamModel
    from pnp_irib.prompts.ram.network import RamNetwork

__all__ = ["RamTags"]

HUB = "hf-hub:"


class RamTags:
    """Tags of RAM (arXiv 2306.03514) as text, and its image embedding. The weights load at the first use.

    With DAPE, the LoRA of SeeSR (arXiv 2311.16518), it is meant for degraded pictures, without it for good ones. You bring the
    files; see `pnp_irib.ram_files` for where they are found. A result is the same alone and in a batch.

    Args:
        source: a folder with ``ram_swin_large_14m.pth``, ``DAPE.pth`` and the two lists ``ram_tag_list.txt`` and
            ``ram_tag_list_threshold.txt`` (there or in its sub-folder ``data``); or the ``.safetensors`` copy of them that
            ``pnp-irib convert`` writes, on this machine or as ``hf-hub:owner/repo/file``.
        lora: fold DAPE in. False: plain RAM.
        dtype: "float32", "bfloat16" or "float16", or such a torch dtype. Thresholds are compared in float32 always.

    Attributes:
        turn: entered while pictures are read; for who shares a limited memory with it, and gives it its turn there.

    Raises:
        WeightsError: nothing is at ``source``, or a file of the folder is missing; damaged ones are told at the first use.
        ConfigError: there is no such dtype.
    """

    def __init__(self, source: str | Path, *, lora: bool = True, dtype: str | torch.dtype = "float32") -> None:
        self.source = str(source)
        self.lora = lora
        self.dtype = _dtype(dtype)
        self.turn: Callable[[], AbstractContextManager[None]] = nullcontext
        self._model: RamModel | None = None
        place = Path(self.source.removeprefix("local-dir:")).expanduser()
        self._local = None if self.source.startswith(HUB) else place.absolute()  # the working directory may change
        if self._local is not None:  # from the Hub nothing is fetched before it is needed
            self._files()

    @property
    def name(self) -> str:
        """``dape``, or ``ram`` without the LoRA."""
        return "dape" if self.lora else "ram"

    def __repr__(self) -> str:
        return f"RamTags({self.source!r}, lora={self.lora}, dtype='{str(self.dtype).removeprefix('torch.')}')"

    @property
    def network(self) -> RamNetwork:
        """The network, frozen; loaded if it is not yet. Its `RamNetwork.embed` gives embeddings with gradients.

        Raises:
            WeightsError: a file is damaged, or does not fit.
        """
        return self._loaded().network

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The files that it is read from with their sha256, for records; those above 1 GiB are left out."""
        from pnp_irib.weights import LARGE, origin_of

        return tuple(origin_of(path) for path in self._files() if path.stat().st_size < LARGE)

    def to(self, device: Any = None, dtype: str | torch.dtype | None = None) -> Self:
        """Load the network, and move or cast it. A call moves it to where its pictures are.

        Raises:
            ConfigError: there is no such dtype.
            WeightsError: a file is damaged, or does not fit.
        """
        if dtype is not None:
            self.dtype = _dtype(dtype)
        with torch.inference_mode(False):  # else its weights could take part in no training any more
            self.network.to(device=device, dtype=self.dtype)
        return self

    @torch.no_grad()
    def __call__(self, pictures: Tensor, /) -> list[Prompt]:
        """Tags of each picture in the order of the published list, and its embedding.

        A tag is there where its probability, its score, is greater than its threshold. The text is the tags joined by a comma
        and a space; it is empty where there are none.

        Args:
            pictures: (N, 3, H, W), floating point, any size from 1x1. Values outside [0, 1] are clipped: the tagger was made
                with files of pictures, which have none, but estimates of a projector may.

        Returns:
            Prompts whose ``embedding`` is float32 and (1 + L, C), that is (145, 512) of the published RAM; its token 0 is that
            of the mean over the picture, the others are its 12x12 places row by row.

        Raises:
            InputError: not a batch of RGB pictures, or some values are not finite.
            WeightsError: a file is damaged, or does not fit.
            ConfigError: values on the way are too large for float16.
        """
        return [replace(prompt, embedding=embedding.float()) for prompt, embedding in self.read(pictures)]

    def read(self, pictures: Tensor) -> list[tuple[Prompt, Tensor]]:
        """The same under the caller's grad mode: prompts without an embedding, and each embedding with its gradients.

        For restorers that are trained through; see `__call__`.
        """
        with self._working(pictures):
            return [(self._prompt(one), one) for one in self._embed(pictures)]

    def embed(self, pictures: Tensor) -> list[Tensor]:
        """The embeddings alone, as `read` gives them, for pictures whose tags are known."""
        with self._working(pictures):
            return self._embed(pictures)

    @contextmanager
    def _working(self, pictures: Tensor) -> Iterator[None]:
        """Checked pictures, and the network where they are; in its own dtype also under autocast."""
        from pnp_irib.prompts.ram.network import check_pictures

        check_pictures(pictures)
        if not torch.isfinite(pictures).all():
            raise InputError("pictures must be finite; some values are NaN or infinite.")
        with self.turn(), torch.autocast(pictures.device.type, enabled=False):
            self.to(pictures.device)
            yield

    def _embed(self, pictures: Tensor) -> list[Tensor]:
        # One by one: in a batch the products take other code paths, and the last digit of a score may decide about a tag.
        return [self.network.embed(one[None])[0] for one in pictures.float().clamp(0, 1)]

    @torch.no_grad()
    def _prompt(self, embedding: Tensor) -> Prompt:
        labels, logits = self._loaded().labels, self.network.classify(embedding[None])[0].float().cpu()
        if not (logits.isfinite().all() and embedding.isfinite().all()):
            if self.dtype == torch.float16:
                raise ConfigError("the tagger gave values that float16 cannot hold; use float32 or bfloat16.")
            raise WeightsError(f"{self.source}: its values are not finite, so the weights are damaged; fetch them anew.")
        scores = logits.sigmoid()
        found = (scores > labels.thresholds).nonzero().flatten().tolist()
        return Prompt.from_tags([Tag(labels.names[label], scores[label].item()) for label in found])

    def _loaded(self) -> RamModel:
        if self._model is None:
            from pnp_irib.prompts.ram.model import RamModel

            self._model = RamModel.read(self._path(), lora=self.lora)
            with torch.inference_mode(False):
                self._model.network.to(self.dtype)
        return self._model

    def _path(self) -> Path:
        """The folder or file; of the Hub's, fetched if need be."""
        from pnp_irib.weights import resolve_file

        if self._local is None:
            return resolve_file(self.source)
        if not self._local.exists():
            files = "RAM and DAPE" if self.lora else "RAM"
            raise WeightsError(f"nothing is at {self._local}; expected a folder with the files of {files}, or a copy of them.")
        return self._local

    def _files(self) -> list[Path]:
        """What it is read from; that it is there and of the right kind is checked, at no cost."""
        from pnp_irib.prompts.ram.model import read_header
        from pnp_irib.prompts.ram.published import find_published

        path = self._path()
        if path.is_dir():
            return list(find_published(path, lora=self.lora).values())
        read_header(path, lora=self.lora)
        return [path]


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    for known in (torch.float32, torch.bfloat16, torch.float16):
        if dtype in (known, str(known).removeprefix("torch.")):
            return known
    raise ConfigError(f"dtype={dtype!s:.40}: expected float32, bfloat16 or float16.")
