"""What all priors over HQ pictures share: the call, the configurations, the randomness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, TypeAlias

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator
from torch import Tensor, nn

from pnp_irib.errors import InputError
from pnp_irib.prompts import Prompt

__all__ = ["Kind", "LatentPriorConfig", "PixelPriorConfig", "Prior", "PriorConfig", "check_generators", "normal"]

Kind: TypeAlias = Literal["score-matching", "sds", "vsd"]
"""Gradients through the denoiser; score distillation; its variational form, with a critic that follows the pictures."""


class Prior(Protocol):
    """L_HQ-prior: how far restored pictures are from what a frozen denoiser holds for natural.

    Randomness comes from one generator a picture, on the CPU: first the timestep, or sigma, is drawn from it, then the noise.
    So neither the other pictures of a batch nor the number of processes matter.

    Attributes:
        critic: its parameters are trained beside the projector, on `follow`; it has none where there is no critic.
    """

    critic: nn.Module

    def __call__(
        self, restored: Tensor, prompts: Sequence[Prompt | None] | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """The term of each picture, (N,), with gradients to the pictures.

        Args:
            restored: (N, 3, H, W), about [0, 1].
            prompts: one a picture, or None.
            generators: one a picture, on the CPU.

        Raises:
            InputError: they are not one a picture.
        """
        ...

    def follow(self, generators: Sequence[torch.Generator]) -> Tensor:
        """The loss of the critic on the pictures of the last call, (N,): minimised, the critic follows them.

        Args:
            generators: one a picture, on the CPU.

        Raises:
            RuntimeError: there was no call, or there is no critic.
        """
        ...


class _PriorConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind = Field(
        default="vsd",
        description="score matching (gradients through the denoiser), score distillation, or its variational form",
    )
    rank: int = Field(default=4, ge=1, le=256, description="of the LoRA of the critic of vsd")
    alpha: int = Field(default=8, ge=1, le=1024, description="that LoRA acts with the factor alpha / rank")
    lr: float = Field(default=5e-5, gt=0, description="learning rate of the critic")


class LatentPriorConfig(_PriorConfig):
    """A prior over HQ pictures: a Stable Diffusion on their latents."""

    family: Literal["latent"] = "latent"
    base: str | None = Field(default=None, description="Stable Diffusion, as a folder or hf-hub: name; None: the projector's")
    prediction: Literal["eps", "v"] = Field(default="eps", description="what the UNet of ``base`` predicts: the noise, or v")
    guidance: float = Field(default=7.5, ge=0, description="of the frozen denoiser, for sds and vsd")
    negative: str = Field(default="", description="prompt that guidance leads away from")
    timesteps: tuple[int, int] = Field(default=(20, 980), description="range that timesteps are drawn from")

    @field_validator("timesteps")
    @classmethod
    def _ordered(cls, timesteps: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= timesteps[0] <= timesteps[1] <= 999:
            raise ValueError("must be ordered and within 0 to 999")
        return timesteps


class PixelPriorConfig(_PriorConfig):
    """A prior over HQ pictures: a denoiser on their pixels, as ``pnp-irib train-prior`` makes it."""

    family: Literal["pixel"] = "pixel"
    denoiser: str = Field(min_length=1, description="a saved pixel denoiser, as a folder or hf-hub: name")
    sigmas: tuple[float, float] = Field(
        default=(0.02, 0.5), description="range that the noise is drawn from, log-uniformly; pictures reach from 0 to 1"
    )

    @field_validator("sigmas")
    @classmethod
    def _ordered(cls, sigmas: tuple[float, float]) -> tuple[float, float]:
        if not 0 < sigmas[0] <= sigmas[1]:
            raise ValueError("must be ordered and above 0")
        return sigmas


def _latent_by_default(value: Any) -> Any:
    return {"family": "latent"} | value if isinstance(value, dict) else value


PriorConfig: TypeAlias = Annotated[
    LatentPriorConfig | PixelPriorConfig, Field(discriminator="family"), BeforeValidator(_latent_by_default)
]
"""Configuration of a prior; ``family`` says which, and is latent where it is left out."""


def check_generators(pictures: Tensor, generators: Sequence[torch.Generator]) -> None:
    """Check that there is one generator a picture.

    Raises:
        InputError: there is not.
    """
    if len(generators) != len(pictures):
        raise InputError(f"{len(generators)} generators for {len(pictures)} pictures; give one each.")


def normal(like: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Standard normal noise of the shape, device and dtype of ``like``, each picture's from its own generator.

    It is drawn in float32, so that dtypes agree.
    """
    noise = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(noise).to(like)
