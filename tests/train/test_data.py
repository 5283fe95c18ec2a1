"""Batches are a pure function of seed and step."""

from __future__ import annotations

from pathlib import Path

import torch

from pnp_irib.irib.references import area
from pnp_irib.train import load_config
from pnp_irib.train.data import Pictures, make_batch


def test_a_batch_depends_on_seed_step_and_part_alone(config_file: Path) -> None:
    config = load_config(config_file)
    pictures = Pictures(config.data.folder, smallest=64)
    first, again = make_batch(pictures, config, 7), make_batch(pictures, config, 7)
    assert torch.equal(first.elq, again.elq)
    assert torch.equal(first.hq, again.hq)
    for other in (
        make_batch(pictures, config, 8),
        make_batch(pictures, config, 7, part=1, parts=2),
        make_batch(pictures, config.model_copy(update={"seed": 4}), 7),
    ):
        assert not torch.equal(first.elq, other.elq)


def test_targets_follow_the_mixture(config_file: Path) -> None:
    config = load_config(config_file)
    pictures = Pictures(config.data.folder, smallest=64)
    kinds = set()
    for step in range(12):
        batch = make_batch(pictures, config, step)
        assert batch.elq.shape == batch.reference.shape == (4, 3, 16, 16)
        for i in range(4):
            gate = batch.gate[i].item()
            if i in batch.severe:
                assert gate == 1
                torch.testing.assert_close(batch.reference[i], area(batch.hq[i : i + 1], 4)[0])
                kinds.add("extreme")
            else:
                assert torch.equal(batch.reference[i], batch.elq[i])
                kinds.add("light" if gate == 0 else "clean")
                if gate != 0:
                    torch.testing.assert_close(batch.elq[i], area(batch.hq[i : i + 1], 4)[0])
    assert kinds == {"extreme", "light", "clean"}


def test_parts_are_the_whole_batch(config_file: Path) -> None:
    config = load_config(config_file)
    pictures = Pictures(config.data.folder, smallest=64)
    whole = make_batch(pictures, config.model_copy(update={"batch": 8}), 5)
    for part in (0, 1):
        batch = make_batch(pictures, config, 5, part=part, parts=2)
        assert batch.numbers == tuple(range(part, 8, 2))
        assert torch.equal(batch.elq, whole.elq[part::2])
        assert torch.equal(batch.reference, whole.reference[part::2])
        assert [batch.numbers[i] for i in batch.severe] == [n for n in whole.severe if n % 2 == part]
