"""What runs have in common, whatever they train: the file of settings, the run directory, the learning rate, the average."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
import yaml
from pydantic import BaseModel, ValidationError
from torch import Tensor

from pnp_irib.diffusion.places import KNOWN
from pnp_irib.errors import ConfigError, explain_validation
from pnp_irib.files import atomic_file
from pnp_irib.hub import SourceFile
from pnp_irib.hub.names import valid_repository
from pnp_irib.prompts.loading import file_of
from pnp_irib.train.checkpoint import latest_checkpoint

__all__ = [
    "Schedule",
    "check_run",
    "dumped",
    "follow_average",
    "learning_rate",
    "located",
    "located_extractor",
    "read_config",
    "record",
    "resolved",
    "source_of",
]

CONFIG_NAME = "config.yaml"

Config = TypeVar("Config", bound=BaseModel)


class Schedule(Protocol):
    """Settings of the learning rate."""

    @property
    def steps(self) -> int:
        """Of the run."""

    @property
    def lr(self) -> float:
        """Largest learning rate."""

    @property
    def final_lr(self) -> float:
        """That at the end, relative to it."""

    @property
    def warmup(self) -> int:
        """Steps until it is reached."""


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read a configuration from a YAML file.

    Raises:
        ConfigError: it cannot be read, or says something unknown or impossible.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected a mapping of settings.")
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain_validation(error)}") from error


def resolved(named: Path, config: Path) -> Path:
    """A path of the configuration: environment variables put in, relative to the file.

    Raises:
        ConfigError: such a variable is not set.
    """
    text = os.path.expandvars(named)
    if "$" in text:
        raise ConfigError(f"{config}: {named} names an environment variable that is not set.")
    return (config.parent / Path(text).expanduser()).resolve()


def located(named: str, config: Path) -> str:
    """A model that the configuration names: on the Hub, known by name, or a file or folder, which is `resolved`.

    Raises:
        ConfigError: see there; or nothing is at a path that reads like a name on the Hub.
    """
    if named.startswith("hf-hub:") or named in KNOWN:
        return named
    path = resolved(Path(named.removeprefix("local-dir:")), config)
    if valid_repository(named.partition("@")[0]) and not path.exists():
        raise ConfigError(f"{config}: there is nothing at {path}. A name on the Hub is written hf-hub:{named}")
    return str(path)


def located_extractor(name: str, config: Path) -> str:
    """The name of a prompt extractor, with the files that it names `located`."""
    file = file_of(name)
    return name if file is None else f"{name.removesuffix(file)}{located(file, config)}"


def dumped(config: BaseModel) -> str:
    """A configuration as its file in the run directory."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def source_of(config: BaseModel) -> SourceFile:
    """The record of that file."""
    return SourceFile(name="training configuration", sha256=hashlib.sha256(dumped(config).encode()).hexdigest())


def check_run(config: BaseModel, run: Path, *, resume: bool) -> None:
    """Check that the directory is free, or holds this very run; before the first checkpoint there is nothing to lose.

    Raises:
        ConfigError: it holds another run, or it is one and ``resume`` was not asked for.
    """
    if latest_checkpoint(run) is None:
        return
    if not resume:
        raise ConfigError(f"{run} holds a run already. Resume it with --resume, or name another directory.")
    path = run / CONFIG_NAME
    try:
        recorded = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {' '.join(str(error).split())}. Name another directory.") from error
    if recorded != yaml.safe_load(dumped(config)):
        raise ConfigError(f"{path} differs from the given configuration; a run is resumed with what it was begun with.")


def record(config: BaseModel, run: Path) -> None:
    """Write the configuration; called when everything that it names could be loaded."""
    run.mkdir(parents=True, exist_ok=True)
    with atomic_file(run / CONFIG_NAME) as file:
        file.write(dumped(config).encode())


def learning_rate(schedule: Schedule, step: int) -> float:
    """Linear warm-up, then half a cosine down to ``final_lr``; a function of the step alone."""
    if step < schedule.warmup:
        return schedule.lr * (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return schedule.lr * (schedule.final_lr + (1 - schedule.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))


@torch.no_grad()
def follow_average(average: Iterable[Tensor], trained: Iterable[Tensor], step: int, ema: float) -> None:
    """Move averaged parameters towards the trained ones."""
    # A young average forgets its start quickly: min(ema, (1 + n) / (10 + n)).
    torch._foreach_lerp_(list(average), list(trained), 1 - min(ema, (1 + step) / (10 + step)))
