from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from pnp_irib.degrade import Kernel
from pnp_irib.degrade.kernels import draw_kernel
from pnp_irib.degrade.stream import Stream
from pnp_irib.profile import PRESETS


def second_moments(taps: Tensor) -> Tensor:
    """Covariance matrix of a kernel read as a density, axes (x, y)."""
    offsets = torch.arange(taps.shape[0], dtype=torch.float64) - taps.shape[0] // 2
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    return torch.stack([(taps * x * x).sum(), (taps * x * y).sum(), (taps * x * y).sum(), (taps * y * y).sum()]).view(2, 2)


@pytest.mark.parametrize("name", list(PRESETS))
def test_every_drawn_kernel_sums_to_one_and_is_point_symmetric(name: str) -> None:
    for seed in range(150):
        for order in PRESETS[name].orders:
            kernel = draw_kernel(order.blur, Stream(seed))
            taps = kernel.taps()
            assert taps.shape == (kernel.size, kernel.size)
            assert kernel.size % 2 == 1
            assert float(taps.sum()) == pytest.approx(1)
            torch.testing.assert_close(taps, taps.flip(0, 1))


@pytest.mark.parametrize("sigma", [1.0, 2.0, 3.5])
def test_isotropic_gaussian_has_its_variance(sigma: float) -> None:
    moments = second_moments(Kernel("iso", 41, sigma=(sigma, sigma)).taps())
    torch.testing.assert_close(moments, sigma**2 * torch.eye(2, dtype=torch.float64), rtol=1e-3, atol=1e-6)


def test_anisotropic_gaussian_has_the_covariance_of_its_ellipse() -> None:
    sx, sy, theta = 4.0, 1.5, 0.5
    moments = second_moments(Kernel("aniso", 61, sigma=(sx, sy), theta=theta).taps())
    turn = torch.tensor([[math.cos(theta), -math.sin(theta)], [math.sin(theta), math.cos(theta)]], dtype=torch.float64)
    expected = turn @ torch.diag(torch.tensor([sx**2, sy**2], dtype=torch.float64)) @ turn.T
    torch.testing.assert_close(moments, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_generalised_and_plateau_profiles(beta: float) -> None:
    sigma = 2.0
    for offset in (1, 3):
        q = (offset / sigma) ** 2
        gaussian = Kernel("generalized_iso", 21, sigma=(sigma, sigma), beta=beta).taps()
        plateau = Kernel("plateau_iso", 21, sigma=(sigma, sigma), beta=beta).taps()
        assert float(gaussian[10, 10 + offset] / gaussian[10, 10]) == pytest.approx(math.exp(-(q**beta) / 2))
        assert float(plateau[10 + offset, 10] / plateau[10, 10]) == pytest.approx(1 / (1 + q**beta))


@pytest.mark.parametrize(("size", "cutoff"), [(7, math.pi / 3), (21, math.pi / 5), (13, math.pi)])
def test_sinc_formula(size: int, cutoff: float) -> None:
    offsets = np.arange(size) - size // 2
    r = np.hypot(*np.meshgrid(offsets, offsets))
    with np.errstate(invalid="ignore"):
        expected = cutoff * scipy.special.j1(cutoff * r) / (2 * np.pi * r)
    expected[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    expected /= expected.sum()
    np.testing.assert_allclose(Kernel("sinc", size, cutoff=cutoff).taps().numpy(), expected, atol=1e-6)


def test_sinc_passes_below_its_cutoff_and_stops_above() -> None:
    cutoff = 1.2
    taps = Kernel("sinc", 61, cutoff=cutoff).taps()
    offsets = torch.arange(61, dtype=torch.float64) - 30
    low, high = ((taps.sum(0) * torch.cos(w * offsets)).sum() for w in (0.7 * cutoff, 1.3 * cutoff))
    assert float(low) == pytest.approx(1, abs=0.05)
    assert float(high) == pytest.approx(0, abs=0.05)
