"""Facts about SUPIR."""

from __future__ import annotations

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["FILES", "SUPIR"]

FILES = {
    variant: WeightsFile(name=f"SUPIR-v0{variant}.ckpt", places=(f"hf-hub:camenduru/SUPIR/SUPIR-v0{variant}.ckpt",))
    for variant in ("Q", "F")
}
"""By variant; 5.3 GB each. The place is a mirror of the authors' file hosts."""

SUPIR = RestorerSpec(
    name="supir",
    title="SUPIR (50 steps of Stable Diffusion XL)",
    factory="pnp_irib_supir.loading:load_supir",
    default_scale=1,
    safe_dtypes=("float32", "bfloat16"),
    tiling="internal",
    prompts="optional",
    differentiable=True,
    deterministic=False,
    lq_profile=PRESETS["standard"],  # of Real-ESRGAN, by the paper; its training code is not published
    code_licence=Licence(name="Apache-2.0", commercial=True),
    weights_licence=Licence(name="https://github.com/Fanghua-Yu/SUPIR/blob/master/LICENSE", commercial=False),
    paper="https://arxiv.org/abs/2401.13627",
    weights=(FILES["Q"],),
)
