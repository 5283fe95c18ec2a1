"""Checkpoints: folders of saved models that also hold the state of the training. A checkpoint is complete or absent."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch

from pnp_irib.errors import WeightsError
from pnp_irib.hub.mixin import HubMixin

__all__ = ["latest_checkpoint", "load_state", "save_checkpoint"]

STATE_NAME = "training_state.pt"


def latest_checkpoint(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    found = sorted(p for p in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d{7}", p.name))
    return found[-1] if found else None


def save_checkpoint(run: Path, model: HubMixin, state: dict[str, Any], step: int, *, keep: int, card: str) -> Path:
    """Write ``checkpoints/step-NNNNNNN`` in one step (written beside, then renamed) and drop the oldest beyond ``keep``."""
    folder = run / "checkpoints" / f"step-{step:07d}"
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, card=card)
    with (partial / STATE_NAME).open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    for old in sorted((run / "checkpoints").glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The training state of a checkpoint.

    Raises:
        WeightsError: it is missing or damaged.
    """
    path = checkpoint / STATE_NAME
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise WeightsError(
            f"{checkpoint} holds no {STATE_NAME}: it is a saved model, not a checkpoint to resume from."
        ) from None
    except Exception as error:
        raise WeightsError(f"{path} is damaged; delete {checkpoint} to resume from the one before.") from error
    return state
