"""Peak memory tells stages apart, though the process never shrinks by itself."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from pnp_irib.bench import memory
from pnp_irib.bench.memory import PeakMemory


def touch(mib: int, *, block: int = 1) -> None:
    """Have ``mib`` resident at once, in blocks that the allocator keeps after they are freed."""
    held = [torch.ones(block * 2**18) for _ in range(mib // block)]
    del held


def resident(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) // 1024


@pytest.fixture
def meter() -> PeakMemory:
    """Skips only where the system cannot do it, found out without the code under test: a broken meter must fail."""
    touch(100, block=50)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        usable = resident("VmHWM") <= resident("VmRSS") + 16
        ctypes.CDLL(None).malloc_trim  # noqa: B018 - there, or not
    except (OSError, AttributeError, TypeError, StopIteration):
        usable = False
    if not usable:
        pytest.skip("this system cannot measure the peak memory of a stage")
    return PeakMemory()


def test_stages_after_a_large_one_are_small_again(meter: PeakMemory) -> None:
    with meter.stage("large"):
        touch(300)
    with meter.stage("small"):
        touch(40)
    assert 290 < meter.rise_mib["large"] < 340
    assert 30 < meter.rise_mib["small"] < 80
    assert meter.mib["large"] - meter.mib["small"] > 200


def test_a_stage_keeps_its_largest_and_switching_starts_another(meter: PeakMemory) -> None:
    for mib in (60, 200, 60):
        with meter.stage("project"):
            touch(mib)
            meter.switch("restore")
            touch(100)
            meter.switch("restore")  # a second tile: still the same stage
    assert 190 < meter.rise_mib["project"] < 240
    assert 90 < meter.rise_mib["restore"] < 140


def test_where_the_mark_cannot_be_set_back_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset", lambda: None)
    meter = PeakMemory()
    with meter.stage("restore"):
        touch(10)
    assert meter.mib == {}
    assert meter.rise_mib == {}
