"""The bootstrap covers what it says, and does not take seeds for pictures."""

from __future__ import annotations

import numpy as np
import pytest

from pnp_irib.bench import statistics
from pnp_irib.bench.statistics import paired_bootstrap, relative_change
from pnp_irib.errors import InputError


def test_the_interval_covers_the_true_mean_nineteen_times_in_twenty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)  # for speed; the ends move little
    random = np.random.default_rng(7)
    runs, hits = 300, 0
    for run in range(runs):
        # an exponential: skewed, as differences of metrics are
        interval = paired_bootstrap([[value] for value in random.exponential(0.5, size=50) - 0.2], seed=run)
        hits += interval.low <= 0.3 <= interval.high
    assert 0.89 <= hits / runs <= 0.98


def test_seeds_of_a_picture_stay_together() -> None:
    random = np.random.default_rng(3)
    pictures = random.normal(size=12)
    once = paired_bootstrap([[value] for value in pictures])
    repeated = paired_bootstrap([[value] * 9 for value in pictures])
    assert (repeated.low, repeated.high) == pytest.approx((once.low, once.high))  # nine seeds alike are no new evidence
    apart = paired_bootstrap([[value] for value in np.repeat(pictures, 9)])
    assert apart.high - apart.low < 0.5 * (once.high - once.low)


def test_pictures_weigh_alike_whatever_their_seeds() -> None:
    assert paired_bootstrap([[1.0, 1.0, 1.0], [3.0]]).mean == 2


def test_known_interval_of_two_pictures() -> None:
    interval = paired_bootstrap([[0.0], [1.0]])
    assert (interval.mean, interval.low, interval.high) == (0.5, 0, 1)  # resamples: 00 01 10 11


def test_the_seed_decides_and_enough_resamples_are_drawn() -> None:
    values = [[v] for v in np.random.default_rng(0).normal(size=30)]
    assert paired_bootstrap(values, seed=1) == paired_bootstrap(values, seed=1)
    assert paired_bootstrap(values, seed=1) != paired_bootstrap(values, seed=2)
    assert statistics.RESAMPLES >= 5000


def test_nothing_to_resample_is_an_error() -> None:
    cases: list[list[list[float]]] = [[], [[]], [[1.0], []]]
    for nothing in cases:
        with pytest.raises(InputError, match="at least one picture"):
            paired_bootstrap(nothing)


def test_relative_change() -> None:
    assert relative_change(20.0, -1.0) == -0.05
    assert relative_change(0.0, 1.0) is None
