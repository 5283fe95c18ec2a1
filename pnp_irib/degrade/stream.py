"""Random streams of single pictures: every draw has an address (a seed), and the global generator is never touched."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import TypeVar

import torch

from pnp_irib.errors import InputError

__all__ = ["Stream", "generator_for"]

T = TypeVar("T")

_BLOCK = 64
_MASK = (1 << 64) - 1


def generator_for(seed: int) -> torch.Generator:
    """A CPU generator of its own for ``seed``.

    All 64 bits of the seed count; the generator alone would read the lower 32, so that hashes used as seeds could collide.

    Raises:
        InputError: ``seed`` is negative or above 64 bits.
    """
    seed = operator.index(seed)  # NumPy integers would overflow below
    if not 0 <= seed <= _MASK:
        raise InputError(f"seed={seed}: a seed is a whole number from 0 to 2**64 - 1.")
    # The output function of SplitMix64, a bijection on 64 bits: neighbouring seeds end far apart.
    mixed = (seed + 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return torch.Generator(device="cpu").manual_seed((mixed ^ (mixed >> 31)) & 0xFFFFFFFF)


class Stream:
    """Uniform draws, choices and coins of one picture, in double precision."""

    def __init__(self, seed: int) -> None:
        self._generator = generator_for(seed)
        self._drawn: list[float] = []

    def _next(self) -> float:
        if not self._drawn:  # one call for many numbers: a call per number costs more than all that is done with it
            self._drawn = torch.rand(_BLOCK, generator=self._generator, dtype=torch.float64, device="cpu").tolist()[::-1]
        return self._drawn.pop()

    def uniform(self, low: float, high: float) -> float:
        """A number between ``low`` and ``high``."""
        return low + (high - low) * self._next()

    def chance(self, p: float) -> bool:
        """True with probability ``p``."""
        return self._next() < p

    def pick(self, items: Sequence[T]) -> T:
        """One of ``items``, all equally likely."""
        return items[int(self._next() * len(items))]

    def weighted(self, weights: dict[T, float]) -> T:
        """One of the keys; its value is its probability, and the values sum to one."""
        left = self._next()
        for item, weight in weights.items():
            left -= weight
            if left < 0:
                return item
        return max(weights, key=lambda item: weights[item])  # the sum fell short of the draw by rounding

    def seed(self) -> int:
        """A seed for a field of random numbers."""
        return int(self._next() * (1 << 48))
