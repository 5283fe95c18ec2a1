"""The arms of a comparison, loaded: what restores, and what determines its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pnp_irib.bench.facts import parameter_count, projector_sha256, weights_sha256
from pnp_irib.errors import ConfigError
from pnp_irib.files import sha256_of
from pnp_irib.images.resize import resize
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer
from pnp_irib.result import Restoration
from pnp_irib.studies.config import Arm, FinetunedArm, PictureArm, RestorerArm, TrainedArm
from pnp_irib.studies.finetune import WEIGHTS_NAME, load_finetuned
from pnp_irib.studies.training import TrainingRun, digest
from pnp_irib.wrapper import WrappedRestorer, wrap

__all__ = ["Restorers", "Subject", "load_subjects", "wrapped_by_name"]

SCALE = 4  # HQ size over LQ size

Restore = Callable[[Tensor, Tensor, int], tuple[Tensor, float]]
"""ELQ (1, 3, H, W), HQ (1, 3, 4 H, 4 W) and seed to the restored picture, of the size of HQ, and seconds."""


@dataclass(frozen=True, eq=False)
class Subject:
    """One arm with one training seed.

    Attributes:
        arm: its name.
        seed: of its training; None where nothing was trained for the study.
        restore: how it restores.
        key: hash of what determines its results.
        facts: for the tables: restorer, projector, trained parameters, budget.
    """

    arm: str
    seed: int | None
    restore: Restore
    key: str
    facts: dict[str, Any]


class Restorers:
    """Restorers by name and options, each loaded once, in float32: faster types differ from machine to machine."""

    def __init__(self) -> None:
        self._loaded: dict[str, Restorer] = {}

    def get(self, name: str, options: dict[str, Any]) -> Restorer:
        """The restorer of this name with these options."""
        key = json.dumps([name, options], sort_keys=True, default=str)
        if key not in self._loaded:
            self._loaded[key] = load_restorer(name, **options).to(dtype=torch.float32)
        return self._loaded[key]


def load_subjects(name: str, arm: Arm, runs: list[TrainingRun], restorers: Restorers) -> list[Subject]:
    """Load an arm; of a trained one the finished ``runs``, one a seed.

    Raises:
        ConfigError: its projector is "auto", and none fits the restorer.
    """
    match arm:
        case PictureArm():
            return [_given(name, arm)]
        case RestorerArm():
            wrapped = wrapped_by_name(arm, restorers)
            return [_wrapped(name, None, wrapped, arm.options, {"trained parameters": 0})]
        case TrainedArm():
            return [_trained(name, run, restorers) for run in runs]
        case FinetunedArm():
            return [_finetuned(name, arm, run) for run in runs]


def wrapped_by_name(arm: RestorerArm, restorers: Restorers) -> WrappedRestorer:
    """The restorer of an arm with its projector.

    Raises:
        ConfigError: that is "auto", and none fits.
    """
    wrapped = wrap(restorers.get(arm.restorer, arm.options), projector=arm.projector)
    if wrapped.projector is None and arm.projector != "none":
        raise ConfigError(
            f"{arm.restorer}: the projector is {wrapped.describe_projector()}. Name one, or write projector: none."
        )
    return wrapped


def _given(name: str, arm: PictureArm) -> Subject:
    def restore(elq: Tensor, hq: Tensor, seed: int) -> tuple[Tensor, float]:
        if arm.picture == "hq":
            return hq, 0.0
        return resize(elq, (hq.shape[-2], hq.shape[-1])).clamp(0, 1), 0.0

    return Subject(name, None, restore, digest({"picture": arm.picture}), {"restorer": arm.picture, "trained parameters": 0})


def _trained(name: str, run: TrainingRun, restorers: Restorers) -> Subject:
    restorer = restorers.get(run.config.restorer, {})
    wrapped = wrap(restorer, projector=run.folder / "projector")
    assert wrapped.projector is not None
    facts = {"trained parameters": wrapped.projector.parameter_count, **run.facts()}
    return _wrapped(name, run.config.seed, wrapped, {}, facts)


def _finetuned(name: str, arm: FinetunedArm, run: TrainingRun) -> Subject:
    restorer, trained = load_finetuned(run.config, arm.lora, run.folder)
    wrapped = WrappedRestorer(restorer, None, why="finetuned")
    facts = {"trained parameters": trained, "trained weights": sha256_of(run.folder / WEIGHTS_NAME), **run.facts()}
    return _wrapped(name, run.config.seed, wrapped, {}, facts)


def _wrapped(name: str, seed: int | None, wrapped: WrappedRestorer, options: dict[str, Any], facts: dict[str, Any]) -> Subject:
    spec, projector = wrapped.restorer.spec, wrapped.projector
    asked = None if spec.scale == SCALE else SCALE

    def restore(elq: Tensor, hq: Tensor, seed: int) -> tuple[Tensor, float]:
        found: Restoration = wrapped(elq, seed=seed, scale=asked)
        return found.restored.float(), found.seconds["project"] + found.seconds["restore"]

    identity = {
        "restorer": [spec.name, weights_sha256(spec, options), {k: str(v) for k, v in options.items()}],
        "projector": projector_sha256(projector) if projector is not None else None,
        "trained": facts.get("trained weights"),
    }
    told = {
        "restorer": spec.name,
        "restorer parameters": parameter_count(wrapped.restorer),
        "projector": (projector.provenance.name or "given") if projector is not None else "none",
        "projector parameters": projector.parameter_count if projector is not None else 0,
    }
    return Subject(name, seed, restore, digest(identity), told | facts)
