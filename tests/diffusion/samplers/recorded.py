"""What DiffBIR's published code drew, replayed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.golden import Case

__all__ = ["STEP_OPTIONS", "Recorded"]

STEP_OPTIONS = ("s_churn", "s_tmin", "s_tmax", "s_noise", "eta", "order")
AT_THE_START = ("start point x_T", "noise augmentation of c_img")


class Recorded:
    """The recorded draws in turn; those that had no effect are infinite, and must have none here.

    Args:
        case: whose.
        start: also those of the start, and of the condition where it is augmented.
    """

    def __init__(self, case: Case, *, start: bool = False) -> None:
        self.left = [d for d in case.facts["noise"] if start or d["where"] not in AT_THE_START]
        self.tensors = case.tensors

    def normal(self, shape: Sequence[int], *, device: torch.device, dtype: torch.dtype) -> Tensor:
        drawn = self.left.pop(0)
        assert "sigma_from" not in drawn
        assert list(shape) == drawn["shape"]
        return self.tensors[drawn["name"]].to(dtype) if drawn["used"] else torch.full(tuple(shape), math.inf, dtype=dtype)

    def increment(self, shape: Sequence[int], start: float, end: float, *, device: torch.device, dtype: torch.dtype) -> Tensor:
        drawn = self.left.pop(0)
        assert start == pytest.approx(drawn["sigma_from"], rel=1e-5)
        assert end == pytest.approx(drawn["sigma_to"], rel=1e-5)
        return self.tensors[drawn["name"]].to(dtype)
