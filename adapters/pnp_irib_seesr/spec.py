"""Facts about SeeSR."""

from __future__ import annotations

from pnp_irib import ram_files
from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["FILES", "SEESR", "SEESR_TURBO", "WEIGHTS"]

WEIGHTS = "diffusion_pytorch_model.safetensors"
FILES = tuple(f"{part}/{file}" for part in ("unet", "controlnet") for file in ("config.json", WEIGHTS))
_PLACE = "https://github.com/cswry/SeeSR"  # its README names the folders of two file hosts


def _spec(name: str, title: str, weights_licence: Licence) -> RestorerSpec:
    return RestorerSpec(
        name=name,
        title=title,
        factory=f"pnp_irib_seesr.loading:load_{name.replace('-', '_')}",
        default_scale=4,
        safe_dtypes=("float32", "bfloat16"),
        tiling="internal",
        prompts="optional",
        differentiable=True,
        deterministic=False,
        lq_profile=PRESETS["standard"],  # of the pairs that it was trained on, not of its option file
        code_licence=Licence(name="Apache-2.0", commercial=True),
        weights_licence=weights_licence,
        paper="https://arxiv.org/abs/2311.16518",
        weights=(*(WeightsFile(name=f"seesr/{file}", places=(_PLACE,)) for file in FILES), *ram_files.FILES),
    )


SEESR = _spec(
    "seesr",
    "SeeSR (50 steps of Stable Diffusion 2, tags and picture embedding)",
    Licence(name="OpenRAIL++-M", commercial=None),  # of the base model; its own are Apache-2.0; the tagger's are not stated
)
SEESR_TURBO = _spec(
    "seesr-turbo",
    "SeeSR on SD-Turbo (2 steps)",
    Licence(name="https://huggingface.co/stabilityai/sd-turbo/blob/main/LICENSE.md", commercial=None),  # of the base model
)
