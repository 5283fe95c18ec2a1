"""Facts about SUPIR."""

from __future__ import annotations

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["FILES", "SUPIR"]

_FACTS: dict[str, tuple[int | None, str]] = {
    "Q": (5_329_810_432, "d7f418398bb024d0d3c779c4ee4e9f171eb072306093f5bcfb2bf096aa2738f8"),
    "F": (None, "9d8906255e2a2cc97b52d95d575461eca2a8971647d5e3e763291965c3a35314"),
}
FILES = {
    variant: WeightsFile(
        name=(name := f"SUPIR-v0{variant}.ckpt"), places=(f"hf-hub:camenduru/SUPIR/{name}",), size=size, sha256=sha256
    )
    for variant, (size, sha256) in _FACTS.items()
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
