"""Make any frozen blind image restoration model survive extreme degradation.

from pnp_irib import wrap
robust = wrap("realesrgan-x4plus")
robust("old_photo.jpg", lfo=1).image.save("restored.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pnp_irib.errors import PnPIribError
    from pnp_irib.look_forward import LookForwardOnce
    from pnp_irib.profile import PRESETS, DegradationProfile
    from pnp_irib.projectors import PixelProjector, Projector
    from pnp_irib.projectors.loading import load_projector
    from pnp_irib.prompts import Prompt, PromptExtractor, load_extractor
    from pnp_irib.registry import list_restorers, load_restorer
    from pnp_irib.restorer import NoiseSource, Restorer
    from pnp_irib.result import Restoration
    from pnp_irib.spec import RestorerSpec
    from pnp_irib.wrapper import WrappedRestorer, wrap

# Loaded when first used (PEP 562), so that importing the package stays cheap.
_PLACES = {
    "DegradationProfile": "profile",
    "LookForwardOnce": "look_forward",
    "NoiseSource": "restorer",
    "PRESETS": "profile",
    "PixelProjector": "projectors",
    "PnPIribError": "errors",
    "Projector": "projectors",
    "Prompt": "prompts",
    "PromptExtractor": "prompts",
    "Restoration": "result",
    "Restorer": "restorer",
    "RestorerSpec": "spec",
    "WrappedRestorer": "wrapper",
    "list_restorers": "registry",
    "load_extractor": "prompts",
    "load_projector": "projectors.loading",
    "load_restorer": "registry",
    "wrap": "wrapper",
}

__all__ = [
    "PRESETS",
    "DegradationProfile",
    "LookForwardOnce",
    "NoiseSource",
    "PixelProjector",
    "PnPIribError",
    "Projector",
    "Prompt",
    "PromptExtractor",
    "Restoration",
    "Restorer",
    "RestorerSpec",
    "WrappedRestorer",
    "list_restorers",
    "load_extractor",
    "load_projector",
    "load_restorer",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'pnp_irib' has no attribute {name!r}")
    value = getattr(import_module(f"pnp_irib.{_PLACES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
