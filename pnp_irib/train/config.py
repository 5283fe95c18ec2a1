"""What a training run is made of. One YAML file, read strictly; the run directory keeps a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pnp_irib.irib.objective import ObjectiveConfig
from pnp_irib.irib.references import ReferenceConfig
from pnp_irib.priors import LatentPriorConfig, PixelPriorConfig, PriorConfig
from pnp_irib.profile import DegradationProfile, preset
from pnp_irib.projectors.latent import LatentArchitecture
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.train.run import located, located_extractor, read_config, resolved
from pnp_irib.weights import WEIGHT_OPTIONS

__all__ = ["MixtureEntry", "TrainConfig", "load_config"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataConfig(_Section):
    """Where the HQ pictures come from."""

    folder: Path = Field(description="folder of HQ pictures, searched recursively")
    crop: int = Field(default=256, gt=0, description="side of the HQ crops, pixels")
    scales: tuple[float, float] = Field(default=(1.0, 1.0), description="range of the random shrinking of the HQ pictures")

    @field_validator("scales")
    @classmethod
    def _between(cls, scales: tuple[float, float]) -> tuple[float, float]:
        if not 0 < scales[0] <= scales[1] <= 1:
            raise ValueError("must be ordered and in (0, 1]")
        return scales


Profile = Annotated[DegradationProfile, Field(description="preset name or profile")]


class MixtureEntry(_Section):
    """A share of the batches."""

    profile: Profile | None = Field(default=None, description="degradation; None: only reduced to the LQ grid")
    share: float = Field(gt=0, description="relative frequency")
    target: Literal["reference", "input"] = Field(default="reference", description="what the projector should make of it")
    gate: Literal[0, 1] | None = Field(default=None, description="label of the severity gate; None: unsupervised")

    @field_validator("profile", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return preset(value) if isinstance(value, str) else value


class PromptConfig(_Section):
    """Prompts in training."""

    extractor: str = Field(default="none", description="see pnp_irib.prompts.load_extractor")
    dropout: float = Field(default=0.5, ge=0, le=1, description="share of pictures without a prompt")
    on: Literal["elq", "reference"] = Field(default="elq", description="picture that the prompt is extracted from")
    look_forward: float = Field(
        default=0.0, ge=0, le=1, description="share of the prompts that are read off a first estimate, as with lfo=1"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.look_forward and self.extractor == "none":
            raise ValueError("prompts.look_forward needs an extractor; name one, such as imagenet-tags")
        return self


class RestorerConfig(_Section):
    """A frozen restorer in the loop."""

    name: str
    options: dict[str, Any] = Field(default={}, description="of the restorer; weights, checkpoint and base are paths")


class ValidationConfig(_Section):
    """Pictures that the projector is tried on while it is trained, with the restorer that it is for."""

    folder: Path = Field(description="folder of HQ pictures that are not trained on")
    profile: Profile = Field(description="preset name or profile")
    pictures: int = Field(default=8, gt=0, description="how many of them, evenly spread")
    every: int = Field(default=500, gt=0, description="steps between two trials")
    options: dict[str, Any] = Field(default={}, description="of the restorer, where another stands in for it in training")

    @field_validator("profile", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return preset(value) if isinstance(value, str) else value


class TrainConfig(_Section):
    """A training run."""

    seed: int = Field(default=0, ge=0, lt=2**63)
    projector: Annotated[PixelArchitecture | LatentArchitecture, Field(discriminator="kind")] | None = Field(
        default=None, description="a new one; None: the pixel projector, or that of `init`"
    )
    init: str | None = Field(
        default=None, min_length=1, description="projector to start from, in place of a new one: a folder or hf-hub: name"
    )
    data: DataConfig
    mixture: tuple[MixtureEntry, ...] = Field(min_length=1)
    reference: ReferenceConfig = ReferenceConfig()
    prompts: PromptConfig = PromptConfig()
    restorer: str = Field(description="restorer that the projector is for")
    through: RestorerConfig | None = Field(default=None, description="restorer of the HQ terms; None: `restorer` itself")
    objective: ObjectiveConfig = ObjectiveConfig()
    prior: PriorConfig | None = Field(default=None, description="prior over HQ pictures, weighted by objective.hq_prior")
    gradient_steps: int | None = Field(
        default=None, gt=0, description="last steps of a restorer of many that gradients pass through; None: all"
    )
    validation: ValidationConfig | None = None
    hq_pictures: int | None = Field(
        default=None,
        gt=0,
        description="of these first pictures of a batch, those with the reference as target are restored or enlarged",
    )
    hq_crop: int | None = Field(
        default=None, gt=0, description="side of the LQ crop that goes through the restorer; None: all"
    )
    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0, description="pictures of a process at a time")
    accumulate: int = Field(default=1, gt=0, description="batches whose gradients make one step")
    lr: float = Field(default=3e-4, gt=0)
    final_lr: float = Field(default=0.05, ge=0, le=1, description="learning rate at the end, relative")
    warmup: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = Field(
        default=False, description="compute blocks of Stable Diffusion again in the backward pass: less memory, more time"
    )
    checkpoint_every: int = Field(default=500, gt=0)
    keep: int = Field(default=3, gt=0, description="checkpoints that stay")
    log_every: int = Field(default=20, gt=0)

    @field_validator("projector", mode="before")
    @classmethod
    def _pixel_by_default(cls, value: Any) -> Any:
        return {"kind": "pixel"} | value if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.projector is not None and self.init is not None:
            raise ValueError("projector describes a new one, and init an existing one to start from; leave one of them out")
        latent = isinstance(self.projector, LatentArchitecture) or self.init is not None  # as far as one can tell
        if isinstance(self.projector, LatentArchitecture) and any(entry.gate is not None for entry in self.mixture):
            raise ValueError("labels of the gate (gate: in mixture) are for pixel projectors, which have one; leave them out")
        if (self.objective.hq_prior > 0) != (self.prior is not None):
            raise ValueError("a prior needs both: its weight objective.hq_prior above 0, and a section prior")
        if isinstance(self.prior, LatentPriorConfig) and self.prior.base is None and not latent:
            raise ValueError("prior.base is not set, and a pixel projector has no base to share; name a Stable Diffusion")
        if self.data.crop % 4:
            raise ValueError(f"data.crop={self.data.crop} is not a multiple of 4; use {self.data.crop // 4 * 4}")
        if not self.objective.is_set:
            raise ValueError("every weight of the objective is zero, so there is nothing to learn; set lq, hq or another term")
        if self.hq_pictures is not None and self.hq_pictures > self.batch:
            raise ValueError(f"hq_pictures={self.hq_pictures} exceeds batch={self.batch}")
        if self.hq_crop is not None and self.hq_crop > self.data.crop // 4:
            raise ValueError(f"hq_crop={self.hq_crop} exceeds the LQ crop of {self.data.crop // 4} pixels")
        return self


def load_config(path: str | Path) -> TrainConfig:
    """Read a training configuration; paths in it are relative to the file and may hold environment variables, ``$NAME``.

    Raises:
        ConfigError: it cannot be read, or says something unknown or impossible.
    """
    path = Path(path)
    config = read_config(path, TrainConfig)
    data = config.data.model_copy(update={"folder": resolved(config.data.folder, path)})
    extractor = located_extractor(config.prompts.extractor, path)
    update: dict[str, Any] = {"data": data, "prompts": config.prompts.model_copy(update={"extractor": extractor})}
    if config.init is not None:
        update["init"] = located(config.init, path)
    if isinstance(config.projector, LatentArchitecture):
        update["projector"] = config.projector.model_copy(update={"base": located(config.projector.base, path)})
    if isinstance(config.prior, LatentPriorConfig) and config.prior.base is not None:
        update["prior"] = config.prior.model_copy(update={"base": located(config.prior.base, path)})
    if isinstance(config.prior, PixelPriorConfig):
        update["prior"] = config.prior.model_copy(update={"denoiser": located(config.prior.denoiser, path)})
    if (validation := config.validation) is not None:
        given = {"folder": resolved(validation.folder, path), "options": _places(validation.options, path)}
        update["validation"] = validation.model_copy(update=given)
    if config.through is not None:
        update["through"] = config.through.model_copy(update={"options": _places(config.through.options, path)})
    return config.model_copy(update=update)


def _places(options: dict[str, Any], config: Path) -> dict[str, Any]:
    """Options of a restorer, those that name files resolved."""
    return {
        key: located(value, config) if key in WEIGHT_OPTIONS and isinstance(value, str) else value
        for key, value in options.items()
    }
