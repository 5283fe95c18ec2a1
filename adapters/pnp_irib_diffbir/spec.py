"""Facts about the cleaners of DiffBIR as restorers of their own."""

from __future__ import annotations

from typing import Any

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["BSRNET", "BSRNET_FILE", "SCUNET", "SCUNET_FILE", "SWINIR", "SWINIR_FACE_V1", "SWINIR_FILE", "SWINIR_GENERAL_V1"]

_KAIR = "https://github.com/cszn/KAIR/releases/download/v1.0"
_DIFFBIR = Licence(name="Apache-2.0", commercial=None)
_ZHANG = Licence(name="https://github.com/cszn/KAIR/blob/master/LICENSE", commercial=None)
# The licences of the repositories; none is stated for the weights themselves.

SWINIR_FILE = WeightsFile(
    name="realesrgan_s4_swinir_100k.pth", places=("hf-hub:lxq007/DiffBIR-v2/realesrgan_s4_swinir_100k.pth",)
)
"""Of version 2.1, for super-resolution and denoising; about 89 MB."""

SWINIR_GENERAL_V1 = WeightsFile(name="general_swinir_v1.ckpt", places=("hf-hub:lxq007/DiffBIR/general_swinir_v1.ckpt",))
"""Of version 1, for super-resolution and denoising."""

SWINIR_FACE_V1 = WeightsFile(name="face_swinir_v1.ckpt", places=("hf-hub:lxq007/DiffBIR/face_swinir_v1.ckpt",))
"""Of all versions, for faces."""

BSRNET_FILE = WeightsFile(name="BSRNet.pth", places=(f"{_KAIR}/BSRNet.pth",))
"""Of version 2, for super-resolution; about 67 MB."""

SCUNET_FILE = WeightsFile(name="scunet_color_real_psnr.pth", places=(f"{_KAIR}/scunet_color_real_psnr.pth",))
"""Of version 2, for denoising; about 72 MB."""


def _spec(kind: str, title: str, **facts: Any) -> RestorerSpec:
    return RestorerSpec(
        name=f"diffbir-{kind}",
        title=title,
        factory=f"pnp_irib_diffbir.restorer:load_{kind}",
        safe_dtypes=("float32",),
        tiling="internal",
        differentiable=True,
        code_licence=Licence(name="Apache-2.0", commercial=True),
        **facts,
    )


BSRNET = _spec(
    "bsrnet",
    "BSRNet x4, the first stage of DiffBIR v2 (least error, no texture)",
    scale=4,
    bytes_per_pixel=7_400,
    weights_licence=_ZHANG,
    paper="https://arxiv.org/abs/2103.14006",
    weights=(BSRNET_FILE,),
)
SWINIR = _spec(
    "swinir",
    "SwinIR, the first stage of DiffBIR v2.1 and v1 (least error, no texture)",
    default_scale=4,
    lq_profile=PRESETS["standard"],  # of version 2.1; those of version 1 saw "codeformer"
    weights_licence=_DIFFBIR,
    paper="https://arxiv.org/abs/2308.15070",
    weights=(SWINIR_FILE,),
)
SCUNET = _spec(
    "scunet",
    "SCUNet, the denoiser of DiffBIR v2",
    default_scale=1,
    weights_licence=_ZHANG,
    paper="https://arxiv.org/abs/2203.13278",
    weights=(SCUNET_FILE,),
)
