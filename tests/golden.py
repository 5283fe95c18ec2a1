"""Golden data: outputs of the published code on tiny models, in the folder that ``PNP_IRIB_GOLDEN`` names."""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

__all__ = ["Case", "cases_of", "check", "check_recorded", "golden_folder", "missing"]


def golden_folder(name: str) -> Path:
    """Where the golden data of a restorer lie, whether or not they are there."""
    shared = os.environ.get("PNP_IRIB_SHARED") or Path(__file__).resolve().parent.parent.parent / "shared"
    return Path(os.environ.get("PNP_IRIB_GOLDEN") or Path(shared) / "golden") / name


@dataclass(frozen=True)
class Case:
    """One recorded call of the published code."""

    folder: Path

    @cached_property
    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads((self.folder / "case.json").read_text())
        return facts

    @property
    def kind(self) -> str:
        return str(self.facts["kind"])

    @property
    def options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.facts["options"]
        return options

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        path = self.folder / "tensors.safetensors"
        return load_file(path) if path.exists() else {}

    @property
    def noise(self) -> list[Tensor]:
        """In the order of the draws."""
        return [self.tensors[drawn["name"]] for drawn in self.facts["noise"]]

    @property
    def outputs(self) -> dict[str, Tensor]:
        return {name: self.tensors[name] for name in self.facts["outputs"]}


def cases_of(name: str) -> list[Any]:
    """Every case of a restorer, as parameters of a test; without the folder one that says so."""
    folder = golden_folder(name) / "cases"
    if not folder.is_dir():
        return [pytest.param(None, id="no-golden-data")]
    return [pytest.param(Case(path), id=path.name) for path in sorted(folder.iterdir())]


def missing(name: str) -> None:
    """Skip a test for want of golden data; in CI, fail: a green run must not have tested nothing."""
    reason = f"no golden data at {golden_folder(name)}; set PNP_IRIB_GOLDEN to the folder of golden data"
    pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


def check(case: Case, found: dict[str, Any]) -> None:
    """Every output of the case within its tolerance, and of its shape.

    Args:
        case: what is expected.
        found: by the names of the case's outputs; more may be there.
    """
    assert case.outputs
    for name, expected in case.outputs.items():
        value = torch.as_tensor(found[name]).detach().cpu()
        assert tuple(value.shape) == tuple(expected.shape), name
        difference = (value.double() - expected.double()).abs().max().item()
        assert difference <= case.facts["tolerance"][name], f"{name}: {difference}"


def check_recorded(case: Case, found: dict[str, Any], *, without: Collection[str] = ()) -> None:
    """The same for cases whose outputs name their tensors, and whose tolerances are of several kinds.

    An output that is no tensor must be equal.

    Args:
        case: what is expected.
        found: by the names of the case's outputs; more may be there.
        without: outputs that are left out.
    """
    outputs = {name: expected for name, expected in case.facts["outputs"].items() if name not in without}
    assert outputs
    for name, expected in outputs.items():
        if not isinstance(expected, dict) or "tensor" not in expected:
            assert found[name] == expected, name
            continue
        known, value = case.tensors[expected["tensor"]].double(), torch.as_tensor(found[name]).detach().cpu().double()
        assert value.shape == known.shape, name
        if case.facts["tolerance"][name].get("exact"):
            assert torch.equal(value, known), name
            continue
        off, tolerance = (value - known).abs(), case.facts["tolerance"][name]
        if "grey_levels" in tolerance:
            assert off.max() <= tolerance["grey_levels"], f"{name}: {off.max()} grey levels"
            assert (off > 0).double().mean() <= tolerance["max_fraction_off"], name
            continue
        allowed = tolerance.get("abs", 0.0) + tolerance.get("rel", 0.0) * known.abs()
        allowed = allowed + tolerance.get("abs_over_max", 0.0) * known.abs().max()
        assert (off <= allowed).all(), f"{name}: {(off - allowed).max()} beyond its tolerance"
