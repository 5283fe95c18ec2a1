"""Facts about DiffBIR, and about its cleaners as restorers of their own."""

from __future__ import annotations

from typing import Any

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = [
    "BSRNET",
    "BSRNET_FILE",
    "CONTROL_FACE_V1",
    "CONTROL_GENERAL_V1",
    "CONTROL_V2",
    "CONTROL_V21",
    "DIFFBIR",
    "SCUNET",
    "SCUNET_FILE",
    "SWINIR",
    "SWINIR_FACE_V1",
    "SWINIR_FILE",
    "SWINIR_GENERAL_V1",
    "ZERO_SNR_BASE",
]

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


def _of_second_stage(name: str) -> WeightsFile:
    return WeightsFile(name=name, places=(f"hf-hub:lxq007/DiffBIR-v2/{name}",))


ZERO_SNR_BASE = _of_second_stage("sd2.1-base-zsnr-laionaes5.ckpt")
"""Stable Diffusion 2.1-base fine-tuned to begin at pure noise, under version 2.1; about 5.2 GB."""

CONTROL_V21 = _of_second_stage("DiffBIR_v2.1.pt")
"""IRControlNet, about 1.5 GB, as all of them."""

CONTROL_V2 = _of_second_stage("v2.pth")
CONTROL_GENERAL_V1 = _of_second_stage("v1_general.pth")
CONTROL_FACE_V1 = _of_second_stage("v1_face.pth")


def _spec(kind: str, title: str, **facts: Any) -> RestorerSpec:
    return RestorerSpec(
        name=f"diffbir-{kind}",
        title=title,
        factory=f"pnp_irib_diffbir.cleaners.restorer:load_{kind}",
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

DIFFBIR = RestorerSpec(
    name="diffbir",
    title="DiffBIR v2.1 (a cleaner, then 10 steps of Stable Diffusion 2.1), or v2 or v1",
    factory="pnp_irib_diffbir.loading:load_diffbir",
    default_scale=4,
    safe_dtypes=("float32", "bfloat16"),
    tiling="internal",
    prompts="optional",
    differentiable=True,
    deterministic=False,
    lq_profile=PRESETS["standard"],
    code_licence=Licence(name="Apache-2.0", commercial=True),
    weights_licence=Licence(name="OpenRAIL++-M", commercial=None),  # of the base model; none is stated for its own
    paper="https://arxiv.org/abs/2308.15070",
    weights=(ZERO_SNR_BASE, CONTROL_V21, SWINIR_FILE),
)
"""As version 2.1 has it; the others differ, see `pnp_irib_diffbir.versions`."""
