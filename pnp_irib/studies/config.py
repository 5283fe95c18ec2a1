"""What a study is made of. One YAML file, read strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    RootModel,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from pnp_irib.errors import ConfigError, explain_validation
from pnp_irib.profile import DegradationProfile, between, preset
from pnp_irib.train import TrainConfig, load_config
from pnp_irib.train.run import located, located_extractor, read_config, resolved
from pnp_irib.weights import WEIGHT_OPTIONS, package_file

__all__ = [
    "Arm",
    "ComparisonStudy",
    "Condition",
    "FinetunedArm",
    "LoRA",
    "LookForwardStudy",
    "OverheadStudy",
    "PictureArm",
    "RestorerArm",
    "Study",
    "TrainedArm",
    "load_study",
    "overridden",
]

_PACKAGE = "package:"
_PLACES = {"folder", "init", "denoiser", *WEIGHT_OPTIONS}
"""Settings of a training configuration that name files."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _condition(value: Any) -> Any:
    if value == "none" or value is None:
        return None
    if isinstance(value, dict) and "between" in value:
        unknown = sorted(set(value) - {"between", "at"})
        ends, at = value["between"], value.get("at")
        if unknown or not (isinstance(ends, list) and len(ends) == 2) or not isinstance(at, int | float):
            raise ValueError("expected {between: [MILDER, HARSHER], at: NUMBER}")
        return between(preset(ends[0]), preset(ends[1]), float(at))
    return preset(value)


Condition: TypeAlias = Annotated[DegradationProfile | None, BeforeValidator(_condition)]
"""How HQ pictures are degraded: a preset, a profile, two presets and a place between them, or none: only reduced."""

Seeds: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)]


class RestorerArm(_Section):
    """A restorer as it is, with or without a projector."""

    restorer: str = Field(description="registry name")
    options: dict[str, Any] = Field(
        default={}, description="of the restorer; weights, checkpoint, base and path are paths, or package:NAME/FILE"
    )
    projector: str = Field(default="auto", description="auto, none, or a projector's name")
    against: str | None = Field(default=None, description="arm that it is compared with; None: the study's reference")


class TrainedArm(_Section):
    """A projector that is trained for the study, in front of the restorer that it was trained for."""

    train: Path = Field(description="a training configuration")
    set: dict[str, Any] = Field(default={}, description="settings over those of that file; sections key by key")
    seeds: Seeds = Field(default=(0,), description="each is a training run; they replace the seed of the file")
    against: str | None = Field(default=None, description="arm that it is compared with; None: the study's reference")


class LoRA(_Section):
    """Low-rank adapters on all convolutions and linear layers."""

    rank: int = Field(gt=0)
    alpha: int | None = Field(default=None, gt=0, description="scale of the adapters times the rank; None: the rank")


class FinetunedArm(_Section):
    """The restorer itself, trained from ELQ to HQ: data, terms behind the restorer and steps of a training configuration."""

    finetune: Path = Field(description="a training configuration")
    set: dict[str, Any] = Field(default={}, description="settings over those of that file; sections key by key")
    seeds: Seeds = Field(default=(0,), description="each is a training run; they replace the seed of the file")
    lora: LoRA | None = Field(default=None, description="train adapters; None: all weights")
    against: str | None = Field(default=None, description="arm that it is compared with; None: the study's reference")


class PictureArm(_Section):
    """What no model made: the ELQ picture enlarged, or the HQ picture itself, which bounds what can be reached."""

    picture: Literal["bicubic", "hq"]
    against: str | None = Field(default=None, description="arm that it is compared with; None: the study's reference")


def _kind(value: Any) -> str | None:
    keys = set(value) if isinstance(value, dict) else {name for name in _ARMS if hasattr(value, name)}
    found = [name for name in _ARMS if name in keys]
    return found[0] if len(found) == 1 else None


_ARMS = ("restorer", "train", "finetune", "picture")

Arm: TypeAlias = Annotated[
    Annotated[RestorerArm, Tag("restorer")]
    | Annotated[TrainedArm, Tag("train")]
    | Annotated[FinetunedArm, Tag("finetune")]
    | Annotated[PictureArm, Tag("picture")],
    Discriminator(
        _kind,
        custom_error_type="arm",
        custom_error_message=f"an arm has exactly one of the settings {', '.join(_ARMS)}, which says what restores",
    ),
]
"""How pictures are restored."""


class Grid(_Section):
    """Pictures that the page shows."""

    condition: str | None = Field(default=None, description="which condition; None: the first")
    pictures: int = Field(default=4, gt=0, le=16, description="rows, evenly spread over the pictures")
    arms: tuple[str, ...] | None = Field(default=None, description="columns; None: all arms, first seed")
    maps: bool = Field(default=False, description="below each, where it contradicts the input")


class _Measured(_Section):
    """A study on degraded pictures."""

    title: str
    data: Path = Field(description="folder of HQ pictures, searched with its sub-folders")
    pictures: int | None = Field(default=None, gt=0, description="how many of them, evenly spread; None: all")
    seeds: Seeds = Field(default=(0,), description="of the degradation; each degrades every picture once")
    conditions: dict[str, Condition] = Field(min_length=1, description="degradations by name")

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("a seed comes twice and would count as evidence twice")
        return seeds


class ComparisonStudy(_Measured):
    """Arms, conditions, pictures and seeds to metrics, and the differences between arms."""

    kind: Literal["comparison"]
    arms: dict[str, Arm] = Field(min_length=2)
    reference: str = Field(description="arm that the others are compared with")
    grid: Grid = Grid()
    budgets: Literal["equal", "free"] = Field(
        default="equal", description="free: trained arms may differ in steps and pictures, which is what such a study is about"
    )

    @model_validator(mode="after")
    def _names_lead_somewhere(self) -> Self:
        named = [("reference", self.reference), *(("grid.arms", name) for name in self.grid.arms or ())]
        named += [(f"arms.{name}.against", arm.against) for name, arm in self.arms.items() if arm.against is not None]
        for place, name in named:
            if name not in self.arms:
                raise ValueError(f"{place} names the arm {name!r}; there are {', '.join(self.arms)}")
        if self.grid.condition is not None and self.grid.condition not in self.conditions:
            raise ValueError(f"grid.condition is {self.grid.condition!r}; there are {', '.join(self.conditions)}")
        for name, arm in self.arms.items():
            if isinstance(arm, TrainedArm | FinetunedArm) and len(set(arm.seeds)) != len(arm.seeds):
                raise ValueError(f"arms.{name}.seeds: a seed comes twice and would count as a run of its own")
        return self

    def against(self, name: str) -> str:
        """The arm that an arm is compared with."""
        return self.arms[name].against or self.reference


class LookForwardStudy(_Measured):
    """Rounds of Look Forward Once with tags of ImageNet, against prompts that were not refined."""

    kind: Literal["look-forward"]
    restorer: str = Field(description="registry name")
    options: dict[str, Any] = Field(default={}, description="of the restorer, as in an arm")
    projector: str = Field(default="auto", description="auto or a projector's name")
    rounds: tuple[Annotated[int, Field(ge=0, le=16)], ...] = Field(default=(0, 1, 2, 3), min_length=1)

    @field_validator("rounds")
    @classmethod
    def _from_zero(cls, rounds: tuple[int, ...]) -> tuple[int, ...]:
        if rounds[0] != 0 or sorted(set(rounds)) != list(rounds):
            raise ValueError("must begin with 0, which the others are compared with, and rise")
        return rounds

    @field_validator("pictures")
    @classmethod
    def _several(cls, pictures: int | None) -> int | None:
        if pictures == 1:
            raise ValueError("at least 2 are needed: one control gives each picture the prompt of another")
        return pictures


class OverheadStudy(_Section):
    """Parameters, operations, time and memory of every stage."""

    kind: Literal["overhead"]
    title: str
    restorers: dict[str, RestorerArm] = Field(min_length=1, description="by the name in the tables")
    sizes: tuple[Annotated[int, Field(ge=8, le=2048)], ...] = Field(
        min_length=1, description="sides of the LQ picture, pixels"
    )
    repeats: int = Field(default=5, gt=0, description="how often each is timed; the median counts")

    @model_validator(mode="after")
    def _needs_projectors(self) -> Self:
        for name, arm in self.restorers.items():
            if arm.projector == "none" or arm.against is not None:
                raise ValueError(f"restorers.{name}: projector must name one or be 'auto', and 'against' has no place here")
        return self


Study: TypeAlias = ComparisonStudy | LookForwardStudy | OverheadStudy


class _File(RootModel[Annotated[Study, Field(discriminator="kind")]]):
    pass


def load_study(path: str | Path) -> Study:
    """Read a study; paths in it are relative to the file and may hold environment variables, ``$NAME``.

    Raises:
        ConfigError: it, or a training configuration that it names, cannot be read or says something unknown or impossible.
    """
    path = Path(path)
    study = read_config(path, _File).root
    if isinstance(study, OverheadStudy):
        restorers = {name: _located(arm, path) for name, arm in study.restorers.items()}
        return study.model_copy(update={"restorers": restorers})
    update: dict[str, Any] = {"data": resolved(study.data, path)}
    if isinstance(study, LookForwardStudy):
        return study.model_copy(update=update | {"options": _located_options(study.options, path)})
    arms = {name: _located(arm, path) for name, arm in study.arms.items()}
    if study.budgets == "equal":
        _check_budgets(arms)
    return study.model_copy(update=update | {"arms": arms})


def overridden(base: Path, changes: dict[str, Any]) -> TrainConfig:
    """A training configuration with some settings changed, sections key by key.

    Raises:
        ConfigError: it cannot be read, or the changes do not fit.
    """
    content = load_config(base).model_dump(mode="json")
    try:
        return TrainConfig.model_validate(_merged(content, changes))
    except ValidationError as error:
        raise ConfigError(f"{base} with the changes of the study: {explain_validation(error)}") from error


def _merged(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(content)
    for key, value in changes.items():
        known = merged.get(key)
        merged[key] = _merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return merged


def _located(arm: Any, path: Path) -> Any:
    """An arm with its paths resolved."""
    if isinstance(arm, RestorerArm):
        return arm.model_copy(update={"options": _located_options(arm.options, path)})
    if isinstance(arm, TrainedArm | FinetunedArm):
        field = "train" if isinstance(arm, TrainedArm) else "finetune"
        return arm.model_copy(update={field: resolved(getattr(arm, field), path), "set": _located_changes(arm.set, path)})
    return arm


def _located_options(options: dict[str, Any], path: Path) -> dict[str, Any]:
    return {
        key: _place(value, path) if key in WEIGHT_OPTIONS and isinstance(value, str) else value
        for key, value in options.items()
    }


def _located_changes(changes: dict[str, Any], path: Path) -> dict[str, Any]:
    located = {}
    for key, value in changes.items():
        if isinstance(value, dict):
            value = _located_changes(value, path)
        elif key in _PLACES and isinstance(value, str):
            value = _place(value, path)
        elif key == "extractor" and isinstance(value, str):
            value = located_extractor(value, path)
        located[key] = value
    return located


def _place(named: str, path: Path) -> str:
    """A file or folder that a setting names."""
    if not named.startswith(_PACKAGE):
        return located(named, path)
    dist, _, inner = named.removeprefix(_PACKAGE).partition("/")
    found = package_file(dist, inner)
    if found is None:
        raise ConfigError(f"{path}: {named} is not here; install the package {dist}, or name another file.")
    return str(found)


def _check_budgets(arms: dict[str, Arm]) -> None:
    """Trained arms are compared at the same number of steps, of pictures a step, and of windows behind the restorer."""
    budgets = {}
    for name, arm in arms.items():
        if isinstance(arm, TrainedArm | FinetunedArm):
            c = overridden(arm.train if isinstance(arm, TrainedArm) else arm.finetune, arm.set)
            windows = f"{c.hq_pictures or c.batch} windows of {c.hq_crop or c.data.crop // 4} pixels restored"
            budgets[name] = f"{c.steps} steps of {c.batch * c.accumulate} pictures, {windows}, precision {c.precision}"
    if len(set(budgets.values())) > 1:
        told = "; ".join(f"{name}: {budget}" for name, budget in budgets.items())
        raise ConfigError(
            f"the arms are trained with different budgets. Give all the same, or set budgets: free. Found {told}."
        )
