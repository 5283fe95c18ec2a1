"""How sure a difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pnp_irib.errors import InputError

__all__ = ["Interval", "paired_bootstrap", "relative_change"]

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences with its 95 % percentile interval."""

    mean: float
    low: float
    high: float


def paired_bootstrap(differences: Sequence[Sequence[float]], *, seed: int = BOOTSTRAP_SEED) -> Interval:
    """Percentile bootstrap over pictures of the mean difference, 10 000 resamples.

    The seeds of a picture share its content, so they are no independent evidence: a picture counts once, with their mean.

    Args:
        differences: for each picture its differences (one a seed); pictures are resampled, the seeds of one stay together.
        seed: of the resampling.

    Raises:
        InputError: no pictures, or a picture without a value.
    """
    if not differences or not all(differences):
        raise InputError("the bootstrap needs at least one picture, and one difference of each.")
    means = np.array([np.mean(values) for values in differences])
    random = np.random.default_rng(seed)
    # A resample at a time needs memory for one picture list only; the indices of all would grow with RESAMPLES x pictures.
    resampled = [means[random.integers(len(means), size=len(means))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(means.mean()), float(low), float(high))


def relative_change(baseline: float, difference: float) -> float | None:
    """``difference`` as a fraction of ``baseline``; None where the baseline is zero."""
    return difference / baseline if baseline else None
