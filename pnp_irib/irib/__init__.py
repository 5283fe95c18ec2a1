"""The objective that trains projectors."""

from pnp_irib.irib.objective import Objective, ObjectiveConfig, Terms
from pnp_irib.irib.prior import LatentPrior, PriorConfig
from pnp_irib.irib.terms import gate_supervision, hq_fidelity, hq_structure, lq_reconstruction

__all__ = [
    "LatentPrior",
    "Objective",
    "ObjectiveConfig",
    "PriorConfig",
    "Terms",
    "gate_supervision",
    "hq_fidelity",
    "hq_structure",
    "lq_reconstruction",
]
