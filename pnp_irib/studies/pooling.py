"""Statistics of arms that were trained several times."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from pnp_irib.bench.statistics import Interval, paired_bootstrap

__all__ = ["Runs", "paired_differences", "pooled_interval", "run_means", "spread"]

Runs = Mapping[int | None, Sequence[Sequence[float]]]
"""By training seed (None: not trained): for each picture its values, one a degradation seed."""


def paired_differences(arm: Runs, reference: Runs) -> list[list[float]]:
    """For each picture the differences arm - reference, one a degradation seed, each a mean over training runs.

    Runs of the same training seed saw the same batches: where both arms have some, only these are compared, else the means of
    all.
    """
    common = [seed for seed in arm if seed in reference]
    ours, theirs = (_mean([runs[seed] for seed in common or runs]) for runs in (arm, reference))
    return [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]


def pooled_interval(arm: Runs, reference: Runs) -> Interval:
    """Mean of `paired_differences` with its interval: pictures are resampled; training runs and seeds stay together."""
    return paired_bootstrap(paired_differences(arm, reference))


def run_means(runs: Runs) -> list[float]:
    """Mean over pictures and degradation seeds of each training run."""
    return [statistics.fmean(value for picture in pictures for value in picture) for pictures in runs.values()]


def spread(runs: Runs) -> float | None:
    """Standard deviation of the means of the training runs; None for fewer than two."""
    return statistics.stdev(run_means(runs)) if len(runs) > 1 else None


def _mean(runs: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """Over training runs: for each picture, one value a degradation seed."""
    return [[statistics.fmean(values) for values in zip(*picture, strict=True)] for picture in zip(*runs, strict=True)]
