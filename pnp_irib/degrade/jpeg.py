"""JPEG compression of tensors: baseline tables, 4:2:0, without the entropy coding (which loses nothing)."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.degrade.rounding import round_through

__all__ = ["jpeg"]

# ITU-T T.81, tables K.1 and K.2.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF: full-range BT.601. Chroma is kept around zero, luma shifted by 128 before the transform.
_TO_YCBCR = (
    (0.299, 0.587, 0.114),
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
_TO_RGB = (
    (1.0, 0.0, 1.402),
    (1.0, -0.344136286, -0.714136286),
    (1.0, 1.772, 0.0),
)


def jpeg(pictures: Tensor, quality: Tensor) -> Tensor:
    """Compress and decompress.

    The rounding of the coefficients is the true one forwards and the identity backwards (straight-through): the values are
    those of the codec, the gradient is that of clamping and chroma subsampling alone. Tables are real-valued multiples of the
    standard ones (factor 50/q below quality 50, 2 - q/50 from there), with one as the finest step. Sides are filled up to
    multiples of 16 with black; chroma is halved by averaging and repeated on the way back.

    Args:
        pictures: (N, 3, H, W), RGB, clamped to [0, 1] first.
        quality: (N,), in (0, 100].

    Returns:
        (N, 3, H, W) in [0, 1], not rounded to 8 bits.
    """
    count, _, height, width = pictures.shape
    dct, luma_table, chroma_table, to_ycbcr, to_rgb = _constants(pictures.dtype, pictures.device)
    filled = F.pad(pictures.clamp(0, 1) * 255, (0, -width % 16, 0, -height % 16))
    rows, columns = filled.shape[-2:]
    ycbcr = (to_ycbcr @ filled.flatten(2)).reshape(count, 3, rows, columns)
    chroma = F.avg_pool2d(ycbcr[:, 1:], 2)

    quality = quality.to(device=pictures.device, dtype=pictures.dtype)
    factor = torch.where(quality < 50, 50 / quality, 2 - quality / 50)[:, None, None, None]
    luma = _code(ycbcr[:, :1] - 128, (luma_table * factor).clamp(min=1), dct) + 128
    chroma = _code(chroma, (chroma_table * factor).clamp(min=1), dct)

    chroma = chroma[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(count, 2, rows, columns)
    rgb: Tensor = (to_rgb @ torch.cat((luma, chroma), dim=1).flatten(2)).reshape(count, 3, rows, columns)
    return (rgb[..., :height, :width] / 255).clamp(0, 1)


def _code(planes: Tensor, table: Tensor, dct: Tensor) -> Tensor:
    """Quantise the 8 x 8 block transforms of (N, C, H, W) with a (N, 1, 1, 64) table and transform back."""
    count, channels, height, width = planes.shape
    blocks = planes.reshape(count, channels, height // 8, 8, width // 8, 8).transpose(3, 4).reshape(count, channels, -1, 64)
    levels = round_through(blocks @ dct.T / table)
    decoded = (levels * table) @ dct
    return decoded.reshape(count, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(planes.shape)


@functools.lru_cache(maxsize=8)
def _constants(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Orthonormal 2-D transform of a flattened block (64, 64), both tables (64,), both colour matrices (3, 3)."""
    with torch.inference_mode(False):  # cached tensors must serve later calls that record gradients
        n = torch.arange(8, dtype=torch.float64, device="cpu")
        dct = 0.5 * torch.cos((2 * n[None, :] + 1) * n[:, None] * math.pi / 16)
        dct[0] /= math.sqrt(2)
        return (
            torch.kron(dct, dct).to(device, dtype),
            torch.tensor(_LUMA_TABLE, dtype=dtype, device=device).flatten(),
            torch.tensor(_CHROMA_TABLE, dtype=dtype, device=device).flatten(),
            torch.tensor(_TO_YCBCR, dtype=dtype, device=device),
            torch.tensor(_TO_RGB, dtype=dtype, device=device),
        )
