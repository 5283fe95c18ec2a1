"""How sure a difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Interval", "paired_bootstrap"]

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences with its 95 % percentile interval."""

    mean: float
    low: float
    high: float

    @property
    def clear_of_zero(self) -> bool:
        """Whether the interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(differences: Sequence[Sequence[float]], *, seed: int = 0) -> Interval:
    """Bootstrap over pictures.

    Args:
        differences: for each picture its differences (one a seed); pictures are resampled, the seeds of one stay together.
        seed: of the resampling.

    Raises:
        ValueError: no pictures.
    """
    if not differences:
        raise ValueError("no differences to resample")
    means = np.array([np.mean(values) for values in differences])
    random = np.random.default_rng(seed)
    chosen = random.integers(len(means), size=(RESAMPLES, len(means)))
    low, high = np.percentile(means[chosen].mean(1), [2.5, 97.5])
    return Interval(float(means.mean()), float(low), float(high))
