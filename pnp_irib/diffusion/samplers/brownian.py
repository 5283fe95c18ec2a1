"""A Brownian path that remembers what was asked of it."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BrownianPath", "PathSource", "increments"]


@runtime_checkable
class PathSource(Protocol):
    """A `pnp_irib.restorer.NoiseSource` that has a path of its own, such as a recorded one."""

    def increment(self, shape: Sequence[int], start: float, end: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        """As `BrownianPath.increment`, of ``shape``."""
        ...


class BrownianPath:
    """Increments of one path, however their intervals overlap.

    Intervals that were not asked for before get new noise. One that was is divided where a new one begins or ends, by the
    distribution of a Brownian bridge, so that all increments together are those of one path (Levy's construction).

    Args:
        draw: gives independent standard normal tensors, all of one shape.
    """

    def __init__(self, draw: Callable[[], Tensor]) -> None:
        self._draw = draw
        self._knots: list[float] = []  # rising
        self._between: list[Tensor] = []  # from a knot down to the one below it

    def increment(self, start: float, end: float) -> Tensor:
        """(W(end) - W(start)) / sqrt(|end - start|), standard normal.

        Raises:
            ValueError: ``start`` is ``end``.
        """
        if start == end:
            raise ValueError(f"no Brownian increment from {start} to itself")
        for place in (start, end):
            self._reach(place)
        low, high = (bisect.bisect_left(self._knots, place) for place in sorted((start, end)))
        total = self._between[low]
        for part in self._between[low + 1 : high]:
            total = total + part
        total = total / math.sqrt(abs(end - start))
        return total if end < start else -total

    def _reach(self, place: float) -> None:
        """Make a place a knot."""
        knots, at = self._knots, bisect.bisect_left(self._knots, place)
        if at < len(knots) and knots[at] == place:
            return
        if not knots:
            pass
        elif at == 0:
            self._between.insert(0, (knots[0] - place) ** 0.5 * self._draw())
        elif at == len(knots):
            self._between.append((place - knots[-1]) ** 0.5 * self._draw())
        else:
            below, above, whole = place - knots[at - 1], knots[at] - place, self._between[at - 1]
            spread = (below * above / (below + above)) ** 0.5
            upper = above / (below + above) * whole + spread * self._draw()
            self._between[at - 1 : at] = [whole - upper, upper]
        knots.insert(at, place)


def increments(noise: object, draw: Callable[[], Tensor], like: Tensor) -> Callable[[float, float], Tensor]:
    """Gives the increments of a path from start to end: of the source of noise, where it has a path, else of a new one.

    Args:
        noise: the source.
        draw: see `BrownianPath`.
        like: a tensor of the shape and dtype that is wanted, and on the device.
    """
    if not isinstance(noise, PathSource):
        return BrownianPath(draw).increment
    source = noise
    return lambda start, end: source.increment(tuple(like.shape), start, end, device=like.device, dtype=like.dtype)
