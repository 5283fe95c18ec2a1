"""The weighted sum of the terms, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pnp_irib.classifiers import FeatureNet, feature_distance
from pnp_irib.irib.prior import LatentPrior
from pnp_irib.irib.terms import gate_supervision, hq_fidelity, hq_structure, lq_reconstruction
from pnp_irib.prompts import Prompt

__all__ = ["Objective", "ObjectiveConfig", "Terms"]

Terms = dict[str, Tensor]
"""Named terms, each (N,), weights applied."""


class ObjectiveConfig(BaseModel):
    """Weights of the terms; a weight of zero switches a term off and its computation too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lq: float = Field(default=1.0, ge=0, description="weight of the LQ reconstruction")
    lambda_blur: float = Field(default=1.0, ge=0, description="weight of its blurred comparison")
    tau: float = Field(default=2.0, gt=0, le=64, description="standard deviation of that blur, LQ pixels")
    lq_perceptual: float = Field(default=0.0, ge=0, description="weight of the feature distance between enlarged LQ pictures")
    hq: float = Field(default=0.0, ge=0, description="weight of the pixel distance behind the restorer")
    hq_structure: float = Field(default=0.0, ge=0, description="weight of the structural dissimilarity behind the restorer")
    hq_perceptual: float = Field(default=0.0, ge=0, description="weight of the feature distance behind the restorer")
    hq_prior: float = Field(default=0.0, ge=0, description="weight of the prior over HQ pictures (beta)")
    gate: float = Field(default=0.05, ge=0, description="weight of the severity supervision")
    norm: Literal["l1", "l2"] = Field(default="l1", description="distance between pixels")

    @property
    def is_set(self) -> bool:
        """Whether any term has a weight."""
        return self.lq > 0 or self.lq_perceptual > 0 or self.uses_restorer

    @property
    def uses_restorer(self) -> bool:
        """Whether any term needs the restored picture."""
        return self.hq > 0 or self.hq_structure > 0 or self.hq_perceptual > 0 or self.hq_prior > 0

    @property
    def uses_features(self) -> bool:
        """Whether any term needs a feature network."""
        return self.lq_perceptual > 0 or self.hq_perceptual > 0


class Objective:
    """Terms of one batch.

    Args:
        config: the weights.
        features: network of the feature distances; None where their weights are zero.
        prior: over HQ pictures; None where its weight is zero.
    """

    def __init__(self, config: ObjectiveConfig, features: FeatureNet | None = None, prior: LatentPrior | None = None) -> None:
        self.config = config
        self._features = features
        self.prior = prior

    def lq_terms(self, estimate: Tensor, reference: Tensor, *, enlargement: int = 1) -> Terms:
        """Terms on the projector's grid, ``enlargement`` times as large as the LQ grid: (N, 3, H, W) twice."""
        c = self.config
        tau = c.tau * enlargement
        terms: Terms = {}
        if c.lq:
            terms["lq"] = c.lq * lq_reconstruction(estimate, reference, lambda_blur=c.lambda_blur, tau=tau, norm=c.norm)
        return terms

    def enlarged_terms(self, enlarged: Tensor, reference: Tensor) -> Terms:
        """Feature distance between enlarged LQ pictures: (N, 3, H, W) twice."""
        if not self.config.lq_perceptual:
            return {}
        return {"lq_perceptual": self.config.lq_perceptual * self._feature_distance(enlarged, reference)}

    def hq_terms(
        self,
        restored: Tensor,
        hq: Tensor,
        *,
        prompts: Sequence[Prompt | None] | None = None,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Terms behind the restorer: (N, 3, H, W) twice. Prompts and the source of randomness are for the prior."""
        c = self.config
        terms: Terms = {}
        if c.hq:
            terms["hq"] = c.hq * hq_fidelity(restored, hq, norm=c.norm)
        if c.hq_structure:
            terms["hq_structure"] = c.hq_structure * hq_structure(restored, hq)
        if c.hq_perceptual:
            terms["hq_perceptual"] = c.hq_perceptual * self._feature_distance(restored, hq)
        if c.hq_prior:
            if self.prior is None or generator is None:
                raise ValueError("the weights ask for a prior, but none was given, or no generator")
            terms["hq_prior"] = c.hq_prior * self.prior(restored, prompts, generator)
        return terms

    def gate_terms(self, severity: Tensor, label: Tensor) -> Terms:
        """Supervision of the gate: (N,) twice, see `gate_supervision`."""
        return {"gate": self.config.gate * gate_supervision(severity, label)} if self.config.gate else {}

    def _feature_distance(self, picture: Tensor, reference: Tensor) -> Tensor:
        if self._features is None:
            raise ValueError("the weights ask for feature distances, but no feature network was given")
        return feature_distance(self._features, picture.clamp(0, 1), reference.clamp(0, 1))


def total(terms: Terms) -> Tensor:
    """Mean over the pictures of the sum of the terms."""
    return torch.stack([value.mean() for value in terms.values()]).sum()
