from __future__ import annotations

import pytest
import scipy.ndimage
import torch
from torch import Tensor

from pnp_irib.degrade.filtering import filter2d
from pnp_irib.degrade.resize import resize


@pytest.mark.parametrize(
    ("size", "taps", "border"), [((33, 40), 21, "mirror"), ((11, 30), 21, "mirror"), ((10, 30), 21, "nearest")]
)
def test_filter_matches_scipy_with_an_asymmetric_kernel(size: tuple[int, int], taps: int, border: str) -> None:
    generator = torch.Generator().manual_seed(1)
    picture = torch.rand((1, 3, *size), generator=generator)
    kernel = torch.rand((taps, taps), generator=generator, dtype=torch.float64)
    kernel /= kernel.sum()
    filtered = filter2d(picture, kernel)
    for channel in range(3):
        expected = scipy.ndimage.correlate(picture[0, channel].double().numpy(), kernel.numpy(), mode=border)
        torch.testing.assert_close(filtered[0, channel], torch.from_numpy(expected).float(), rtol=0, atol=2e-6)


def test_area_is_the_mean_of_the_pixels_below() -> None:
    picture = torch.rand((1, 3, 12, 8), generator=torch.Generator().manual_seed(1))
    expected = picture.reshape(1, 3, 3, 4, 2, 4).mean(dim=(3, 5))
    torch.testing.assert_close(resize(picture, (3, 2), "area"), expected)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_shrinking_does_not_smooth_first(mode: str) -> None:
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::8] = 1  # an output pixel of an 8-fold reduction lies between columns 3 and 4 and never sees column 0
    shrunk: Tensor = resize(stripes, (8, 8), mode)  # type: ignore[arg-type]
    assert float(shrunk.abs().max()) < 1e-6


def test_bilinear_samples_between_pixel_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 3, 8, 8).contiguous()
    torch.testing.assert_close(resize(ramp, (8, 4), "bilinear")[0, 0, 0], torch.tensor([0.5, 2.5, 4.5, 6.5]))
