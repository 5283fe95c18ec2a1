"""The protocol that every restorer keeps. No base class is needed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pnp_irib.prompts import Prompt
    from pnp_irib.spec import RestorerSpec

__all__ = ["MultiStepRestorer", "NoiseSource", "ReadsInput", "Restorer", "TilingRestorer"]


@runtime_checkable
class NoiseSource(Protocol):
    """Where a restorer takes random numbers from: one independent stream for each picture of a batch."""

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Standard normal numbers of ``shape``, whose first entry is the batch size."""
        ...


@runtime_checkable
class Restorer(Protocol):
    """A frozen model that turns a low-quality picture into a restored one."""

    @property
    def spec(self) -> RestorerSpec:
        """Facts about the restorer."""
        ...

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """Restore a batch under the caller's grad mode.

        Args:
            lq: (N, 3, H, W), RGB, [0, 1].
            scale: enlargement; None: the native one.
            prompts: one a picture, for restorers that take prompts.
            noise: random numbers, for restorers that draw any.

        Returns:
            (N, 3, round(H * scale), round(W * scale)); about [0, 1], not clamped.
        """
        ...

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move the restorer in place."""
        ...


@runtime_checkable
class MultiStepRestorer(Protocol):
    """A capability: a differentiable restorer of many steps that can keep the gradients of the last ones only."""

    def gradients_through(self, steps: int) -> AbstractContextManager[None]:
        """Inside, gradients pass through the last ``steps`` steps of each restoration; the ones before are constants."""
        ...


@runtime_checkable
class ReadsInput(Protocol):
    """A capability: a restorer that may look at the pictures that a projector was given, beside those that it made of them."""

    def reading(self, pictures: Tensor) -> AbstractContextManager[None]:
        """Inside, the pictures that are restored were made of these.

        Args:
            pictures: (N, 3, h, w) in [0, 1], as many as are restored.
        """
        ...


@runtime_checkable
class TilingRestorer(Protocol):
    """A capability: a restorer that bounds its memory by itself, better than by cutting its input into tiles."""

    def restore_tiled(self, lq: Tensor, *, tile: int, dtype: torch.dtype) -> Tensor:
        """Restore at the native scale with the working memory of a picture of ``tile`` x ``tile`` pixels.

        Args:
            lq: (N, 3, H, W), RGB, [0, 1].
            tile: side of a square; as much area is worked on at a time.
            dtype: of the result, which may be huge.

        Returns:
            (N, 3, scale * H, scale * W), as `Restorer.restore` gives it, to within rounding.
        """
        ...
