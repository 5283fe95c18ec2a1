"""From the noisiest level to the last, step by step; what a step may ask for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["At", "Step", "walk"]

L = TypeVar("L")


@dataclass
class At(Generic[L]):
    """Where a step is, and what it has at hand.

    Attributes:
        levels: of noise, falling; for the samplers of `edm`, sigmas.
        denoise: the estimate of the picture in a latent of a level.
        draw: gives standard normal numbers.
        increment: gives those of a Brownian path between two sigmas.
        number: of the step.
        past: what earlier steps left, the latest last; see `remember`.
    """

    levels: Sequence[L]
    denoise: Callable[[Tensor, L], Tensor]
    draw: Callable[[], Tensor]
    increment: Callable[[float, float], Tensor]
    number: int = 0
    past: list[Tensor] = field(default_factory=list)

    @property
    def here(self) -> L:
        """The level that the step begins at."""
        return self.levels[self.number]

    @property
    def there(self) -> L:
        """The level that it leads to."""
        return self.levels[self.number + 1]

    @property
    def last(self) -> bool:
        """Whether no step follows."""
        return self.number == len(self.levels) - 2

    def remember(self, value: Tensor, count: int) -> None:
        """Keep something for later steps: the latest ``count``."""
        self.past.append(value)
        del self.past[: max(0, len(self.past) - count)]


Step = Callable[[At[L], Tensor], Tensor]
"""One step of a sampler: where it is, and the latent there, to the latent of the next level."""


def walk(
    step: Step[L],
    latent: Tensor,
    levels: Sequence[L],
    denoise: Callable[[Tensor, L], Tensor],
    *,
    draw: Callable[[], Tensor],
    increment: Callable[[float, float], Tensor],
    kept: int | None = None,
    each: Callable[[int, Tensor, Tensor], None] | None = None,
    guide: Callable[[Tensor, L, int], Tensor] | None = None,
) -> Tensor:
    """All steps, under the caller's grad mode.

    Args:
        step: the sampler.
        latent: of the first level.
        levels: falling; one more than there are steps.
        denoise: see `At`.
        draw: see `At`.
        increment: see `At`.
        kept: gradients pass through so many of the last steps; None: all.
        each: told in every step its number, the latent that the network is asked about first, and the estimate.
        guide: changes every estimate of the picture, given it, its level, and the number of the step.

    Returns:
        The latent of the last level, of the shape of ``latent``.
    """
    gradients, total = torch.is_grad_enabled(), len(levels) - 1
    asked = 0

    def estimate(x: Tensor, level: L) -> Tensor:
        nonlocal asked
        found = denoise(x, level)
        if guide is not None:
            found = guide(found, level, at.number)
        if each is not None and asked == 0:
            each(at.number, x, found)
        asked += 1
        return found

    at = At(levels, estimate, draw, increment)
    for number in range(total):
        at.number, asked = number, 0
        with torch.set_grad_enabled(gradients and (kept is None or total - number <= kept)):
            latent = step(at, latent)
    return latent
