"""Facts about OSEDiff."""

from __future__ import annotations

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["OSEDIFF", "OSEDIFF_FACE"]

_FILES = "https://github.com/cswry/OSEDiff/raw/main/preset/models"


def _spec(name: str, title: str, file: str, profile: str, scale: int) -> RestorerSpec:
    return RestorerSpec(
        name=name,
        title=title,
        factory=f"pnp_irib_osediff.restorer:load_{name.replace('-', '_')}",
        converter="pnp_irib_osediff.checkpoint:convert",
        default_scale=scale,
        safe_dtypes=("float32", "bfloat16"),
        tiling="internal",
        prompts="optional",
        differentiable=True,
        deterministic=False,
        lq_profile=PRESETS[profile],
        code_licence=Licence(name="Apache-2.0", commercial=True),
        weights_licence=Licence(name="OpenRAIL++-M", commercial=True),  # of the base model; its own are Apache-2.0
        paper="https://arxiv.org/abs/2406.08177",
        weights=(WeightsFile(name=file, places=(f"{_FILES}/{file}",)),),
    )


OSEDIFF = _spec("osediff", "OSEDiff (one-step diffusion on Stable Diffusion 2.1)", "osediff.pkl", "standard", 4)
OSEDIFF_FACE = _spec("osediff-face", "OSEDiff for aligned faces", "osediff_face.pkl", "codeformer", 1)
