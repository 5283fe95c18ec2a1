"""What several processes agree on; that they train as one is shown by the runs themselves."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch

from pnp_irib.errors import ConfigError
from pnp_irib.train.processes import agreed, check_start, make_accelerator, means


def test_the_others_wait_for_the_main_process() -> None:
    """It validates alone; NCCL would end the run after ten minutes."""
    handed_over = make_accelerator("no").init_handler.to_kwargs()
    assert handed_over["timeout"] >= timedelta(hours=12)


def test_one_process_agrees_with_itself() -> None:
    accelerator = make_accelerator("no")
    assert means(accelerator, [0.1, 2.0]) == [0.1, 2.0]
    assert [agreed(accelerator, vote) for vote in (True, False)] == [True, False]
    check_start(accelerator, 3)


def test_different_checkpoints_are_told() -> None:
    two = SimpleNamespace(device="cpu", gather=lambda start: torch.cat((start, start + 500)))
    with pytest.raises(ConfigError, match=r"different steps, \[0, 500\]\. All machines must see the same run directory"):
        check_start(two, 0)
