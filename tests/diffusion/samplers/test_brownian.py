"""Increments of a Brownian path, whose covariances are known."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion.samplers.brownian import BrownianPath, PathSource
from pnp_irib.noise import SeededNoise

COUNT = 40_000
# In the order of the questions: from above, within, across, back, over all, and beyond either end.
INTERVALS = ((9.0, 4.0), (9.0, 1.0), (7.0, 5.0), (6.0, 2.0), (1.0, 0.25), (0.5, 8.0), (20.0, 0.1), (12.0, 9.0), (4.0, 6.0))


def path() -> BrownianPath:
    generator = torch.Generator().manual_seed(7)
    return BrownianPath(lambda: torch.randn(COUNT, generator=generator, dtype=torch.float64))


def covariance(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Of the normalised increments over two intervals: what they share."""
    shared = min(max(one), max(other)) - max(min(one), min(other))
    same_way = (one[1] > one[0]) == (other[1] > other[0])
    lengths = abs(one[1] - one[0]) * abs(other[1] - other[0])
    return max(shared, 0.0) / math.sqrt(lengths) * (1 if same_way else -1)


def test_increments_have_the_covariances_of_one_path() -> None:
    asked = path()
    found = [asked.increment(*interval) for interval in INTERVALS]
    for (i, a), (j, b) in itertools.product(enumerate(found), enumerate(found)):
        # Five standard errors of a mean of products of normal numbers.
        assert (a * b).mean().item() == pytest.approx(covariance(INTERVALS[i], INTERVALS[j]), abs=5 * (2 / COUNT) ** 0.5)
    for value in found:
        assert value.mean().item() == pytest.approx(0, abs=5 / COUNT**0.5)


def test_increments_add_up() -> None:
    asked = path()
    whole, first, second = asked.increment(9, 1), asked.increment(9, 7), asked.increment(7, 1)
    torch.testing.assert_close(8**0.5 * whole, 2**0.5 * first + 6**0.5 * second)
    torch.testing.assert_close(asked.increment(1, 9), -whole)
    torch.testing.assert_close(asked.increment(9, 1), whole)


def test_new_intervals_get_the_numbers_as_they_are_drawn() -> None:
    drawn: list[Tensor] = []

    def draw() -> Tensor:
        drawn.append(torch.full((2,), float(len(drawn) + 1)))
        return drawn[-1]

    asked = BrownianPath(draw)
    for number, interval in enumerate(((1e4, 9.5), (9.5, 3.5), (3.5, 0.5)), 1):
        torch.testing.assert_close(asked.increment(*interval), torch.full((2,), float(number)))
    assert len(drawn) == 3
    with pytest.raises(ValueError, match=r"from 3\.5 to itself"):
        asked.increment(3.5, 3.5)


def test_plain_noise_has_no_path_of_its_own() -> None:
    assert not isinstance(SeededNoise([0]), PathSource)
