"""Statistics of studies, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from pnp_irib.prompts import Tag
from pnp_irib.studies.pooling import Runs, paired_differences, pooled_interval, run_means, spread
from pnp_irib.studies.tags import agreement, top1_found

# Two training seeds, two pictures, two degradation seeds.
ARM: Runs = {0: [[1.0, 2.0], [3.0, 5.0]], 1: [[3.0, 4.0], [5.0, 5.0]]}
ALONE: Runs = {None: [[1.0, 1.0], [2.0, 0.0]]}


def test_runs_are_averaged_before_they_are_compared() -> None:
    # means over training seeds: (2, 3) and (4, 5); minus the other: (1, 2) and (2, 5)
    assert paired_differences(ARM, ALONE) == [[1.0, 2.0], [2.0, 5.0]]


def test_a_picture_counts_once_however_often_it_was_restored() -> None:
    found = pooled_interval(ARM, ALONE)
    # pictures: 1.5 and 3.5; of two pictures, the ends of the interval are the pictures themselves
    assert (found.mean, found.low, found.high) == pytest.approx((2.5, 1.5, 3.5))


def test_runs_of_the_same_training_seed_are_paired() -> None:
    other: Runs = {1: [[2.0, 2.0], [2.0, 2.0]], 2: [[100.0, 100.0], [100.0, 100.0]]}
    # only seed 1 is in both: its own (3, 4), (5, 5) minus 2
    assert paired_differences(ARM, other) == [[1.0, 2.0], [3.0, 3.0]]
    # no seed in common: the mean of all runs, 51
    assert paired_differences(ARM, {2: other[1], 3: other[2]}) == [[-49.0, -48.0], [-47.0, -46.0]]


def test_the_spread_is_that_of_training_runs() -> None:
    assert run_means(ARM) == [2.75, 4.25]
    assert spread(ARM) == pytest.approx(1.5 / 2**0.5)  # standard deviation of two numbers 1.5 apart
    assert spread(ALONE) is None


def test_agreement_of_tags() -> None:
    truth = [Tag("fox", 0.6), Tag("dog", 0.2)]
    assert agreement(truth, truth) == 1
    assert agreement([Tag("fox", 0.3), Tag("cat", 0.4)], truth) == pytest.approx(0.3 / (0.6 + 0.4 + 0.2))
    assert agreement([Tag("cat", 0.9)], truth) == 0
    assert agreement([], []) == 0


def test_the_likeliest_tag_of_the_truth() -> None:
    truth = [Tag("fox", 0.6), Tag("dog", 0.2)]
    assert top1_found([Tag("cat", 0.8), Tag("fox", 0.1)], truth) == 1
    assert top1_found([Tag("dog", 0.9)], truth) == 0
    assert top1_found([Tag("dog", 0.9)], []) == 0
