"""Training runs of a study: each is made once, kept under the hash of its configuration, resumed after any interruption."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pnp_irib.errors import ConfigError
from pnp_irib.files import atomic_file
from pnp_irib.studies.budget import Budget, OutOfTimeError
from pnp_irib.studies.config import FinetunedArm, TrainedArm, overridden
from pnp_irib.studies.finetune import WEIGHTS_NAME, finetune
from pnp_irib.train import TrainConfig, train
from pnp_irib.train.checkpoint import latest_checkpoint

__all__ = ["TrainingRun", "digest", "make_run", "planned_runs"]

FACTS_NAME = "study.json"

log = logging.getLogger("pnp_irib.studies")


@dataclass(frozen=True)
class TrainingRun:
    """One training run of an arm.

    Attributes:
        arm: which.
        config: what is trained, the seed of the run included.
        folder: its run directory.
    """

    arm: TrainedArm | FinetunedArm
    config: TrainConfig
    folder: Path

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return (self.folder / (WEIGHTS_NAME if isinstance(self.arm, FinetunedArm) else "projector")).exists()

    def facts(self) -> dict[str, Any]:
        """Budget and cost: steps, pictures seen, pictures restored, seconds (None: unknown, since each call was killed)."""
        config = self.config
        restores = isinstance(self.arm, FinetunedArm) or config.objective.uses_restorer
        severe = sum(e.share for e in config.mixture if e.target == "reference") / sum(e.share for e in config.mixture)
        slots = (config.hq_pictures or config.batch) * config.accumulate
        noted = _noted(self.folder)
        return {
            "steps": config.steps,
            "pictures": config.steps * config.batch * config.accumulate,
            "restored": round(config.steps * slots * severe) if restores else 0,  # on average; the draws are the same for all
            "seconds": noted["seconds"] / noted["steps"] * config.steps if noted["steps"] else None,
        }


def digest(facts: Any) -> str:
    """Short hash of what determines a result."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def planned_runs(arm: TrainedArm | FinetunedArm, cache: Path) -> list[TrainingRun]:
    """The runs of an arm, one a seed; nothing is trained yet."""
    base = arm.train if isinstance(arm, TrainedArm) else arm.finetune
    config = overridden(base, arm.set)
    runs = []
    for seed in arm.seeds:
        seeded = config.model_copy(update={"seed": seed})
        what: dict[str, Any] = {"config": seeded.model_dump(mode="json")}
        if isinstance(arm, FinetunedArm):
            what["finetune"] = arm.lora.model_dump() if arm.lora is not None else "full"
        runs.append(TrainingRun(arm, seeded, cache / digest(what)))
    return runs


def make_run(run: TrainingRun, title: str, budget: Budget) -> None:
    """Train what is left of a run.

    Raises:
        OutOfTimeError: the time was up first; the next call goes on from there.
        ConfigError: the configuration cannot be carried out.
    """
    if run.done:
        return
    budget.check()
    log.info("training %s, seed %d: %d steps, in %s", title, run.config.seed, run.config.steps, run.folder)
    began = time.monotonic()
    if isinstance(run.arm, FinetunedArm):
        before, after = finetune(run.config, run.arm.lora, run.folder, out_of_time=lambda: budget.hours_left == 0)
    else:
        newest = latest_checkpoint(run.folder)
        found = train(run.config, run.folder, resume=newest is not None, max_hours=budget.hours_left, show_progress=False)
        before, after = _step_of(newest), _step_of(found)
    _note(run.folder, after - before, time.monotonic() - began)
    if not run.done:
        raise OutOfTimeError


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-"))


def _noted(folder: Path) -> dict[str, Any]:
    path = folder / FACTS_NAME
    try:
        noted: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {"steps": 0, "seconds": 0.0}
    except ValueError as error:
        raise ConfigError(f"{path} is damaged; delete {folder} to train again.") from error
    return noted


def _note(folder: Path, steps: int, seconds: float) -> None:
    """Add what a call did. One that was killed left no note: the rate of the others stands for its steps."""
    noted = _noted(folder)
    facts = {"steps": noted["steps"] + steps, "seconds": noted["seconds"] + seconds}
    with atomic_file(folder / FACTS_NAME) as file:
        file.write(json.dumps(facts).encode())
