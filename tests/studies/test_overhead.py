"""What wrapping costs, as a study."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from pnp_irib import load_projector, load_restorer
from pnp_irib.studies import run_study
from pnp_irib.studies.overhead import in_turn, operations
from tests.studies.conftest import RESTORER, written


def test_every_stage_at_every_size(study_folder: Path, listening: Path) -> None:
    content = {
        "kind": "overhead",
        "title": "Costs",
        "sizes": [16, 32],
        "repeats": 1,
        "restorers": {"small": {"restorer": RESTORER, "projector": f"local-dir:{listening}"}},
    }
    files = run_study(written(study_folder, "costs", content), study_folder / "out", cache=study_folder / "runs")
    found = json.loads(files[1].read_text())["restorers"]["small"]
    network = load_restorer(RESTORER).network  # type: ignore[attr-defined]
    assert found["parameters"]["restore"] == sum(p.numel() for p in network.parameters())
    assert found["parameters"]["project"] == load_projector(f"local-dir:{listening}").parameter_count
    small, large = found["sizes"]
    assert (small["size"], large["size"]) == (16, 32)
    weights = sum(m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d))
    # Each weight of a convolution multiplies and adds once at every pixel.
    assert small["gigaflops"]["restore"] == 2 * weights * 16 * 16 / 1e9
    assert large["gigaflops"]["restore"] == 4 * small["gigaflops"]["restore"]
    assert set(small["milliseconds"]) == {"project", "read tags", "restore", "alone, whole call", "wrapped, whole call"}
    assert small["milliseconds"]["wrapped, whole call"] > small["milliseconds"]["project"] > 0
    page = files[0].read_text()
    assert "| stage | parameters | GFLOP at 16x16 | GFLOP at 32x32 |" in page
    assert "| 32x32 | " in page
    assert len(list((study_folder / "out").iterdir())) == 2


def test_operations_of_a_convolution() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    assert operations(layer, torch.zeros(1, 3, 10, 12)) == 2 * 3 * 8 * 9 * 10 * 12


def test_operations_are_those_of_the_plain_form() -> None:
    """Without gradients the trunk takes Winograd's products at this size, which the counter does not see."""
    restorer = load_restorer("realesrgan-x4plus-anime", dtype="float32")
    enlarged = {"conv_up1": 4, "conv_up2": 16, "conv_hr": 16, "conv_last": 16}
    network = restorer.network  # type: ignore[attr-defined]
    convolutions = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    by_hand = sum(2 * m.weight.numel() * 24 * 24 * enlarged.get(name, 1) for name, m in convolutions)
    assert operations(restorer.restore, torch.zeros(1, 3, 24, 24)) == by_hand


def test_stages_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    monkeypatch.setattr(time, "perf_counter", lambda: 1000.0 * min(len(order), 2) + len(order))  # the first calls are slow
    medians = in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 1)
    assert order == ["a", "b"] * 2
    assert medians == {"a": 1, "b": 1}
