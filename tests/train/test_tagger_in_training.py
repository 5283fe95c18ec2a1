"""Training with prompts that RAM and DAPE read."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from pnp_irib.files import sha256_of
from pnp_irib.prompts import RamTags
from pnp_irib.train.config import load_config
from pnp_irib.train.data import make_batch
from pnp_irib.train.session import Session
from tests.prompts.ram.tiny import SIZES, Tiny
from tests.train.test_objective_in_training import rewritten


def test_its_prompts_are_trained_with_and_its_files_recorded(config_file: Path, tmp_path: Path) -> None:
    folder = Tiny(SIZES["plain"]).write(tmp_path / "model")
    prompts = {"extractor": f"dape:{folder}", "dropout": 0.0, "look_forward": 0.5}
    config = load_config(rewritten(config_file, prompts=prompts, through=None, objective={"lq": 1.0}))
    running = Session(config, Accelerator())
    recorded = {file.name: file.sha256 for file in running.provenance.files}
    for name in ("ram_swin_large_14m.pth", "DAPE.pth", "ram_tag_list.txt", "ram_tag_list_threshold.txt"):
        assert recorded[name] == sha256_of(next(folder.rglob(name)))
    batch = make_batch(running.pictures, config, 0)
    found = running.forward._prompts(batch, batch.elq, 0, running.projector)
    assert found is not None
    with torch.no_grad():  # a fresh projector changes nothing, so that looking forward reads the same
        expected = RamTags(folder)(batch.elq)
    assert found == expected
    assert all(torch.isfinite(torch.tensor(value)) for value in running.step(0).values())
