"""A projector is trained through a restorer: two steps, by the term behind the restorer alone."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pnp_irib.projectors.loading import load_projector
from pnp_irib.train import load_config, train

__all__ = ["check_training"]


def check_training(
    name: str,
    options: dict[str, Any],
    shared_dir: Path,
    folder: Path,
    caplog: pytest.LogCaptureFixture,
    *,
    unchanged: tuple[str, ...],
    profile: str = "standard",
    **changes: Any,
) -> None:
    """The projector learns, the restorer does not, and the run says so.

    Args:
        name: of the restorer.
        options: of it, as a file states them.
        shared_dir: with the photographs.
        folder: an empty one, for the run.
        caplog: the log.
        unchanged: parts that must be said to be unchanged.
        profile: of the degradations that the projector is made for.
        changes: of the configuration.
    """
    photographs = folder / "photographs"
    photographs.mkdir()
    for path in sorted((shared_dir / "data" / "dev").glob("*.webp"))[:2]:
        shutil.copyfile(path, photographs / path.name)
    small = {"widths": [8, 8], "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1], "condition_width": 8}
    config = {
        "projector": small,
        "data": {"folder": str(photographs), "crop": 64},
        "mixture": [{"profile": "extreme", "share": 1, "gate": 1}],
        "restorer": name,
        "through": {"name": name, "options": options},
        "objective": {"lq": 0, "hq": 1.0, "gate": 0},
        "steps": 2,
        "checkpoint_every": 1,
        "ema": 0,
        "batch": 1,
        "lr": 0.001,
        "warmup": 1,
    } | changes
    settings = folder / "train.yaml"
    settings.write_text(yaml.safe_dump(config))
    with caplog.at_level(logging.INFO):
        train(load_config(settings), folder / "run")
    projector = load_projector(f"local-dir:{folder / 'run' / 'projector'}")
    steps = [load_projector(f"local-dir:{step}") for step in sorted((folder / "run" / "checkpoints").iterdir())]
    first, last = (dict(one.named_parameters()) for one in (steps[0], projector))
    assert len(steps) == 2
    assert [key for key, value in last.items() if not torch.equal(value, first[key])]
    assert projector.provenance.lq_profile is not None
    assert projector.provenance.lq_profile.name == profile
    said = caplog.text.partition("bit for bit unchanged")[2]
    for part in unchanged:
        assert part in said
