from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pnp_irib.degrade.jpeg import jpeg
from pnp_irib.degrade.noise import luma


def by_pillow(picture: Tensor, quality: int) -> Tensor:
    pixels = (picture[0].permute(1, 2, 0) * 255).round().byte().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)[None].float() / 255


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a - b).square().mean()))


@pytest.mark.parametrize("quality", [10, 20, 30, 50, 75, 95])
def test_agrees_with_a_file_codec(photographs: list[Tensor], quality: int) -> None:
    # What is left: the codec rounds its tables and interpolates chroma on the way back.
    for photograph in photographs[16:56:8]:
        ours, theirs = jpeg(photograph, torch.tensor([quality])), by_pillow(photograph, quality)
        assert psnr(ours, theirs) > 37
        assert psnr(luma(ours), luma(theirs)) > 42
        # The file codec also rounds YCbCr and RGB to whole grey levels, each 1/12 of a squared level; with tables of its own
        # rounding that is all that separates the two losses.
        our_loss, their_loss = (255**2 * float((luma(coded) - luma(photograph)).square().mean()) for coded in (ours, theirs))
        assert our_loss == pytest.approx(their_loss, rel=0.05, abs=0.25)
        small = [F.avg_pool2d(coded - luma(coded), 16) for coded in (ours, theirs)]  # colour without the interpolation
        assert psnr(small[0], small[1]) > 44


def test_qualities_of_a_batch_do_not_mix(scene: Tensor) -> None:
    pictures = torch.cat([scene, scene.flip(3), 1 - scene])
    qualities = torch.tensor([10.0, 55.5, 90.0])
    together = jpeg(pictures, qualities)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], jpeg(pictures[i : i + 1], qualities[i : i + 1]), rtol=0, atol=1e-6)
    assert psnr(together[:1], pictures[:1]) < psnr(together[2:], pictures[2:])


def test_a_flat_block_is_quantised_by_the_first_table_entry() -> None:
    # Mean 128 + 37 -> coefficient 8 * 37 = 296; quality 25 doubles the table: 296 / 32 = 9.25 -> 9 -> 36 above 128.
    grey = torch.full((1, 3, 16, 16), 165 / 255)
    torch.testing.assert_close(jpeg(grey, torch.tensor([25.0])), torch.full_like(grey, 164 / 255), rtol=0, atol=1e-5)


def test_chroma_is_halved_and_luma_is_not() -> None:
    stripes = torch.zeros(1, 1, 32, 32)
    stripes[..., ::2] = 1
    grey = 0.3 + 0.4 * stripes.expand(1, 3, 32, 32)
    assert float((jpeg(grey, torch.tensor([95.0])) - grey).abs().max()) < 0.05
    amplitude = torch.tensor([0.3, -0.3 * 0.299 / 0.587, 0.0]).view(1, 3, 1, 1)  # red against green, at constant luma
    colour = 0.5 + (stripes - 0.5) * amplitude
    coded = jpeg(colour, torch.tensor([95.0]))
    torch.testing.assert_close(coded, torch.full_like(coded, 0.5), rtol=0, atol=0.02)


@pytest.mark.parametrize("size", [(1, 1), (5, 17), (16, 15), (40, 33)])
def test_sides_are_filled_with_black(size: tuple[int, int]) -> None:
    height, width = size
    picture = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(2))
    filled = torch.zeros(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
    filled[..., :height, :width] = picture
    expected = jpeg(filled, torch.tensor([30.0]))[..., :height, :width]
    torch.testing.assert_close(jpeg(picture, torch.tensor([30.0])), expected, rtol=0, atol=1e-6)


def test_the_finest_quality_is_nearly_lossless_on_grey(scene: Tensor) -> None:
    grey = luma(scene).expand(1, 3, 64, 96)
    assert psnr(jpeg(grey, torch.tensor([100.0])), grey) > 55
