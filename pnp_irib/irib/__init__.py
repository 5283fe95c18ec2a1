"""The image restoration information bottleneck: the terms of its objective and their weighted sum."""

from pnp_irib.irib.objective import HQ_TERMS, TERMS, Objective, ObjectiveConfig, Terms
from pnp_irib.irib.perceptual import Perceptual, load_perceptual
from pnp_irib.irib.references import DegradeBack, ReferenceConfig
from pnp_irib.irib.terms import GateSupervision, HQFidelity, HQPerceptual, HQStructure, LQReconstruction

__all__ = [
    "HQ_TERMS",
    "TERMS",
    "DegradeBack",
    "GateSupervision",
    "HQFidelity",
    "HQPerceptual",
    "HQStructure",
    "LQReconstruction",
    "Objective",
    "ObjectiveConfig",
    "Perceptual",
    "ReferenceConfig",
    "Terms",
    "load_perceptual",
]
