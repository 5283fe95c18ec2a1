"""Metrics against values known by hand or from other implementations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pnp_irib.bench.metrics import METRICS, Judge, colour_error
from pnp_irib.errors import InputError
from pnp_irib.images.similarity import ms_ssim, psnr


def pattern_pair(height: int, width: int) -> tuple[Tensor, Tensor]:
    """A distorted pattern and the pattern, the same on every system."""
    y = torch.arange(height, dtype=torch.float64)[:, None]
    x = torch.arange(width, dtype=torch.float64)[None]
    hq = torch.stack(
        [
            0.5 + 0.3 * torch.sin(x / (7 + 3 * c)) * torch.cos(y / (11 - 2 * c)) + 0.1 * torch.sin((x * y) / (97 + c))
            for c in range(3)
        ]
    )[None]
    rough = 0.06 * torch.sin(1.7 * x + 0.9 * y) + 0.04 * torch.cos(0.31 * x - 0.23 * y)
    return (0.9 * hq + 0.03 + rough).clamp(0, 1), hq.clamp(0, 1)


def flat(value: float, height: int, width: int) -> Tensor:
    return torch.full((1, 3, height, width), value, dtype=torch.float64)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_psnr_of_known_errors() -> None:
    assert psnr(flat(0.4, 8, 8), flat(0.5, 8, 8)) == pytest.approx(20)  # error 0.1: 10 log10(1 / 0.01)
    one_wrong = flat(0.5, 10, 10)
    one_wrong[0, 0, 0, 0] = 1.0  # 0.25 in one of 300 values
    assert psnr(one_wrong, flat(0.5, 10, 10)) == pytest.approx(10 * math.log10(300 / 0.25))
    assert psnr(one_wrong, one_wrong) == math.inf


@pytest.mark.parametrize(("size", "expected"), [((256, 320), 0.9439409807310103), ((512, 352), 0.9405143935264423)])
def test_ms_ssim_agrees_with_another_implementation(size: tuple[int, int], expected: float) -> None:
    # expected: pytorch_msssim 1.0.0, ms_ssim(..., data_range=1.0), on the same pattern in double precision, its window too.
    # With the window in single precision, as it comes, it gives 0.94394114 and 0.94051458; torchmetrics 1.9.0 gives 0.943884.
    assert ms_ssim(*pattern_pair(*size)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("side", "scales"), [(176, 5), (175, 4), (88, 4), (87, 3), (44, 3), (43, 2), (22, 2), (21, 1), (11, 1), (5, 1), (1, 1)]
)
def test_ms_ssim_of_small_pictures_uses_the_scales_that_fit(side: int, scales: int) -> None:
    # Flat pictures have perfect structure; only the luminance term of the coarsest scale is left, to the power of its weight.
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    luminance = (2 * 0.4 * 0.6 + 1e-4) / (0.4**2 + 0.6**2 + 1e-4)
    power = weights[scales - 1] * sum(weights) / sum(weights[:scales])
    assert ms_ssim(flat(0.4, side, side + 30), flat(0.6, side, side + 30)) == pytest.approx(luminance**power, abs=1e-6)


def test_ms_ssim_of_a_negative_is_zero_and_of_itself_one() -> None:
    _, hq = pattern_pair(176, 176)
    assert ms_ssim(1 - hq, hq) == 0
    assert ms_ssim(hq, hq) == pytest.approx(1, abs=1e-12)


def test_colour_error_sees_casts_only() -> None:
    hq = flat(0.5, 6, 6)
    cast = hq.clone()
    cast[:, 0] += 30 / 255
    assert colour_error(cast, hq) == pytest.approx(10)  # a third of the channels is 30 off
    checkerboard = hq + 0.2 * ((torch.arange(6)[:, None] + torch.arange(6)[None]) % 2 * 2 - 1)
    assert colour_error(checkerboard, hq) == pytest.approx(0, abs=1e-9)


def test_shapes_must_agree() -> None:
    for metric in (psnr, ms_ssim, colour_error):
        with pytest.raises(InputError, match="one size"):
            metric(flat(0.5, 8, 8), flat(0.5, 8, 9))
        with pytest.raises(InputError, match="two pictures"):
            metric(torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8))


def test_the_judge_is_not_the_network_of_prompts_and_losses(judge: Judge) -> None:
    assert judge.network.variant.name == "lite2"


def test_judged_values_lie_in_their_ranges_and_order_as_stated(judge: Judge) -> None:
    hq = pattern_pair(192, 224)[1].float()
    noise = torch.randn(hq.shape, generator=torch.Generator().manual_seed(0))
    bad, worse = ((hq + level * noise + level).clamp(0, 1) for level in (0.03, 0.15))
    values = judge(hq, {"same": hq, "bad": bad, "worse": worse})
    assert values["same"]["psnr"] == 100  # capped, so that means stay finite
    assert values["same"]["feature_distance"] == pytest.approx(0, abs=1e-6)
    assert values["same"]["top1"] == 1
    for metric in METRICS:
        same, fair, poor = (values[name][metric.key] for name in ("same", "bad", "worse"))
        assert all(metric.range[0] <= value <= metric.range[1] for value in (same, fair, poor)), metric.key
        if metric.key != "top1":
            assert (same > fair > poor) if metric.higher_is_better else (same < fair < poor), metric.key


def test_half_precision_is_judged_like_float(judge: Judge) -> None:
    bad, hq = (picture.float() for picture in pattern_pair(64, 64))
    values = judge(hq, {"float": bad.half().float(), "half": bad.half()})
    assert values["float"] == values["half"]
