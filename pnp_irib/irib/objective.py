"""The weighted sum of the terms, by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from pnp_irib.irib.perceptual import Perceptual, PerceptualName
from pnp_irib.irib.terms import GateSupervision, HQFidelity, HQPerceptual, HQStructure, LQReconstruction, Norm
from pnp_irib.priors import Prior
from pnp_irib.prompts import Prompt

__all__ = ["HQ_TERMS", "TERMS", "Objective", "ObjectiveConfig", "Terms"]

Terms = dict[str, Tensor]
"""Named terms, a value for each picture that they were computed on, weights applied."""

HQ_TERMS = ("hq", "hq_structure", "hq_perceptual", "hq_prior", "lq_cycle")
TERMS = ("lq", "lq_perceptual", *HQ_TERMS, "gate")
"""Names of all terms; each is the name of its weight."""


class ObjectiveConfig(BaseModel):
    """Weights of the terms; a weight of zero switches a term off and its computation too."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    lq: float = Field(default=1.0, ge=0, description="weight of the LQ reconstruction against the paired reference, D(z)")
    lq_cycle: float = Field(default=0.0, ge=0, description="weight of the LQ reconstruction against the cycle one, D(g(x))")
    lambda_blur: float = Field(default=1.0, ge=0, description="weight of their blurred comparison")
    tau: float = Field(default=2.0, gt=0, le=64, description="standard deviation of that blur, LQ pixels")
    lq_perceptual: float = Field(default=0.0, ge=0, description="weight of the feature distance between enlarged LQ pictures")
    hq: float = Field(default=0.0, ge=0, description="weight of the pixel distance behind the restorer")
    hq_structure: float = Field(default=0.0, ge=0, description="weight of the structural dissimilarity behind the restorer")
    hq_perceptual: float = Field(default=0.0, ge=0, description="weight of the perceptual distance behind the restorer")
    hq_prior: float = Field(default=0.0, ge=0, description="weight of the prior over HQ pictures (beta)")
    gate: float = Field(default=0.05, ge=0, description="weight of the severity supervision")
    norm: Norm = Field(default="l1", description="distance between pixels")
    perceptual: PerceptualName = Field(default="efficientnet-lite0", description="network of the perceptual distances")

    @property
    def is_set(self) -> bool:
        """Whether any term but the gate's has a weight."""
        return self.lq > 0 or self.lq_perceptual > 0 or self.uses_restorer

    @property
    def uses_restorer(self) -> bool:
        """Whether any term needs the restored picture."""
        return any(getattr(self, name) > 0 for name in HQ_TERMS)

    @property
    def uses_perceptual(self) -> bool:
        """Whether any term needs the network of the perceptual distances."""
        return self.lq_perceptual > 0 or self.hq_perceptual > 0

    def without_restorer(self) -> ObjectiveConfig:
        """The terms that need no restored picture."""
        update: dict[str, Any] = dict.fromkeys(HQ_TERMS, 0.0)
        return self.model_copy(update=update)


class Objective:
    """L = L_LQ-recon + beta L_HQ-prior + gamma L_HQ-fid (arXiv 2510.00728), and the terms that help it.

    Args:
        config: the weights.
        perceptual: distance of the perceptual terms; None where their weights are zero.
        prior: over HQ pictures; None where its weight is zero.

    Raises:
        ValueError: a weight is set, but not what it needs.
    """

    def __init__(self, config: ObjectiveConfig, perceptual: Perceptual | None = None, prior: Prior | None = None) -> None:
        if (config.uses_perceptual and perceptual is None) or (config.hq_prior > 0 and prior is None):
            raise ValueError("the weights ask for a perceptual distance or a prior that was not given")
        self.config = config
        self.prior = prior
        self._perceptual = HQPerceptual(perceptual) if perceptual is not None else None

    def lq_terms(self, estimate: Tensor, reference: Tensor, *, enlargement: int = 1) -> Terms:
        """Term on the projector's grid, ``enlargement`` times as large as the LQ grid: (N, 3, H, W) twice."""
        return {"lq": self.config.lq * self._reconstruction(enlargement)(estimate, reference)} if self.config.lq else {}

    def cycle_terms(self, estimate: Tensor, degraded_back: Tensor, *, enlargement: int = 1) -> Terms:
        """The same against the restored pictures, degraded: gradients reach both, through the restorer too."""
        if not self.config.lq_cycle:
            return {}
        return {"lq_cycle": self.config.lq_cycle * self._reconstruction(enlargement)(estimate, degraded_back)}

    def enlarged_terms(self, enlarged: Tensor, reference: Tensor) -> Terms:
        """Perceptual distance between enlarged LQ pictures: (N, 3, H, W) twice."""
        if not self.config.lq_perceptual or self._perceptual is None:
            return {}
        return {"lq_perceptual": self.config.lq_perceptual * self._perceptual(enlarged, reference)}

    def hq_terms(self, restored: Tensor, hq: Tensor) -> Terms:
        """Fidelity behind the restorer: (N, 3, H, W) twice."""
        c = self.config
        terms: Terms = {}
        if c.hq:
            terms["hq"] = c.hq * HQFidelity(c.norm)(restored, hq)
        if c.hq_structure:
            terms["hq_structure"] = c.hq_structure * HQStructure()(restored, hq)
        if c.hq_perceptual and self._perceptual is not None:
            terms["hq_perceptual"] = c.hq_perceptual * self._perceptual(restored, hq)
        return terms

    def prior_terms(
        self, restored: Tensor, *, prompts: Sequence[Prompt | None] | None, generators: Sequence[torch.Generator]
    ) -> Terms:
        """Term of the prior: (N, 3, H, W), one prompt and one generator a picture."""
        if not self.config.hq_prior or self.prior is None:
            return {}
        return {"hq_prior": self.config.hq_prior * self.prior(restored, prompts, generators)}

    def gate_terms(self, severity: Tensor, label: Tensor) -> Terms:
        """Supervision of the gate: (N,) twice, see `GateSupervision`."""
        return {"gate": self.config.gate * GateSupervision()(severity, label)} if self.config.gate else {}

    def _reconstruction(self, enlargement: int) -> LQReconstruction:
        return LQReconstruction(self.config.lambda_blur, self.config.tau * enlargement, self.config.norm)
