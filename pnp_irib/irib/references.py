"""What an LQ estimate is compared with: the degrade-back channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from pnp_irib.degrade import apply, draw, mean_channel
from pnp_irib.profile import DegradationProfile, preset

__all__ = ["DegradeBack", "ReferenceConfig", "area"]


class ReferenceConfig(BaseModel):
    """The degrade-back channel D: a draw of a degradation, its blur-and-resize mean, or area reduction."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    profile: DegradationProfile | None = Field(default=None, description="D; None: area reduction of the HQ picture")
    channel: Literal["sample", "mean"] = Field(default="mean", description="a draw as it is, or only its blur and resizing")

    @field_validator("profile", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return preset(value) if isinstance(value, str) else value


class DegradeBack:
    r"""D of $q(x_L | z_H)$, the Gaussian around D(z): pictures of the HQ grid taken back to the LQ grid, differentiably.

    Of the HQ picture itself it gives the *paired* reference, of the restored one, $D(g(\hat x_L))$, the *cycle* reference.

    Args:
        config: which degradation.
        scale: HQ size over LQ size.
    """

    def __init__(self, config: ReferenceConfig, scale: int) -> None:
        self.config = config
        self.scale = scale

    def __call__(self, hq: Tensor, seeds: Sequence[int]) -> Tensor:
        """(N, 3, scale H, scale W) to (N, 3, H, W), a draw of its own for each picture; about [0, 1]."""
        profile = self.config.profile
        if profile is None:
            return area(hq, self.scale)
        plans = [draw(profile, hq.shape[-2:], seed, scale=self.scale) for seed in seeds]
        return mean_channel(hq, plans) if self.config.channel == "mean" else apply(hq, plans, differentiable=True)


def area(hq: Tensor, scale: int) -> Tensor:
    """Pictures reduced by averaging."""
    return F.avg_pool2d(hq, scale)
