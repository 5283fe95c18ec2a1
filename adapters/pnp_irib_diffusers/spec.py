"""Which pipelines of diffusers are restorers, and how each is given its picture. Imports neither torch nor diffusers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["KINDS", "Kind", "is_pipeline", "kind_of"]


@dataclass(frozen=True)
class Kind:
    """One class of pipelines.

    Attributes:
        name: for specs.
        picture: arguments that take the picture.
        scale: how much it enlarges; None: not at all, and it is given the picture enlarged already.
        strength: it starts from the noised picture, and a strength says how much noise.
        halving: its network halves latents as they are, where others pad them.
    """

    name: str
    picture: tuple[str, ...]
    scale: int | None = None
    strength: bool = False
    halving: bool = False


KINDS = {
    "StableDiffusionUpscalePipeline": Kind("diffusers-upscale-x4", ("image",), scale=4),
    "StableDiffusionLatentUpscalePipeline": Kind("diffusers-upscale-x2", ("image",), scale=2, halving=True),
    "StableDiffusionImg2ImgPipeline": Kind("diffusers-img2img", ("image",), strength=True),
    "StableDiffusionXLImg2ImgPipeline": Kind("diffusers-img2img-xl", ("image",), strength=True),
    "StableDiffusionControlNetImg2ImgPipeline": Kind(
        "diffusers-controlnet-img2img", ("image", "control_image"), strength=True
    ),
    "StableDiffusionControlNetPipeline": Kind("diffusers-controlnet", ("image",)),  # the picture is the control
}
"""By the name of the class; a subclass is what its nearest class here is."""


def is_pipeline(model: Any) -> bool:
    """Whether ``model`` is any pipeline of diffusers."""
    return any(kind.__name__ == "DiffusionPipeline" and _of_diffusers(kind) for kind in type(model).__mro__)


def kind_of(model: Any) -> Kind | None:
    """How ``model`` is used; None: it is no restorer."""
    names = (kind.__name__ for kind in type(model).__mro__ if _of_diffusers(kind))
    return next((KINDS[name] for name in names if name in KINDS), None)


def _of_diffusers(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "diffusers"
