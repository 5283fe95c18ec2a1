"""Projectors: small trained networks that map extremely degraded pictures onto what a restorer knows."""

from pnp_irib.projectors.base import Projector, Provenance
from pnp_irib.projectors.latent import LatentArchitecture, LatentProjector
from pnp_irib.projectors.pixel import PixelArchitecture, PixelProjector

__all__ = ["LatentArchitecture", "LatentProjector", "PixelArchitecture", "PixelProjector", "Projector", "Provenance"]
