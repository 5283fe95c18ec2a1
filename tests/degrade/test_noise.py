from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from pnp_irib.degrade.noise import _UNIFORM_BITS, _quantiles, gaussian_noise, luma, poisson_noise


@pytest.mark.parametrize("grey", [False, True])
def test_gaussian_has_its_sigma(grey: bool) -> None:
    noise = gaussian_noise(torch.zeros(1, 3, 200, 200), sigma=20, grey=grey, seed=3)
    assert noise.shape == (1, 1 if grey else 3, 200, 200)
    assert float(noise.std()) * 255 == pytest.approx(20, rel=0.02)
    assert float(noise.mean()) * 255 == pytest.approx(0, abs=0.4)
    if not grey:
        assert abs(np.corrcoef(noise[0].flatten(1).numpy())[0, 1]) < 0.02


@pytest.mark.parametrize(
    ("levels", "rate"),
    [((51,), 1), ((51, 204), 2), ((20, 90, 250), 4), (tuple(range(0, 250, 10)), 32), (tuple(range(256)), 256)],
)
def test_poisson_variance_follows_the_number_of_distinct_values(levels: tuple[int, ...], rate: int) -> None:
    rows = 60_000 // len(levels)
    v = torch.tensor(levels) / 255
    picture = v.expand(1, 3, rows, len(levels)).contiguous()
    noise = poisson_noise(picture, scale=1.7, grey=False, seed=5)
    per_level = noise.permute(3, 0, 1, 2).flatten(1)
    variance = 1.7**2 * v / rate
    deviation = (per_level.var(dim=1) - variance) / variance.clamp(min=1e-6)
    sem = (variance / per_level.shape[1]).sqrt()
    # Few distinct values: each level has many pixels and must agree alone; many: on average.
    assert float(deviation.abs().mean() if len(levels) < 5 else deviation.mean().abs()) < 0.03
    assert bool((per_level.mean(dim=1).abs() <= 5 * sem + 1e-7).all())


def test_poisson_counts_are_poisson_distributed() -> None:
    picture = torch.tensor([100, 30, 200]).view(1, 3, 1, 1).expand(1, 3, 200, 200) / 255  # three values: L = 4
    noise = poisson_noise(picture, scale=1, grey=False, seed=9)
    counts = ((noise + picture)[0, 0] * 4).round().flatten().int()
    observed = torch.bincount(counts, minlength=9)[:9].numpy()
    expected = scipy.stats.poisson.pmf(np.arange(9), 4 * 100 / 255) * 40_000
    chi2 = ((observed[:7] - expected[:7]) ** 2 / expected[:7]).sum()
    assert chi2 < scipy.stats.chi2.ppf(0.9999, 7)
    assert torch.allclose((noise + picture)[0, 0] * 4, counts.view(200, 200).float(), atol=1e-4)


def test_values_are_counted_over_all_channels_and_for_grey_noise_in_the_luma() -> None:
    picture = torch.tensor([40, 120, 220]).view(1, 3, 1, 1).expand(1, 3, 300, 300) / 255
    colour = poisson_noise(picture, scale=1, grey=False, seed=1)
    torch.testing.assert_close(colour[0].flatten(1).var(1), picture[0, :, 0, 0] / 4, rtol=0.03, atol=0)
    grey = poisson_noise(picture, scale=1, grey=True, seed=1)
    assert grey.shape == (1, 1, 300, 300)
    v = round(255 * (0.299 * 40 + 0.587 * 120 + 0.114 * 220) / 255) / 255
    assert float(luma(picture)[0, 0, 0, 0]) == pytest.approx(v, abs=0.5 / 255)
    assert float(grey.var()) == pytest.approx(v, rel=0.03)


def test_black_stays_black_and_the_field_has_an_address() -> None:
    black = torch.zeros(1, 3, 8, 8)
    assert torch.equal(poisson_noise(black, scale=3, grey=False, seed=1), black)
    ramp = torch.rand((1, 3, 16, 16), generator=torch.Generator().manual_seed(0))
    first, again, other = (poisson_noise(ramp, scale=1, grey=False, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_changed_pixel_changes_only_its_own_poisson_noise() -> None:
    ramp = (torch.arange(256).view(1, 1, 16, 16) / 255).repeat(1, 3, 1, 1)
    changed = ramp.clone()
    changed[0, 0, 0, 5] = 200 / 255  # still 256 distinct values: the other channels keep the old one
    difference = poisson_noise(ramp, scale=1, grey=False, seed=4) != poisson_noise(changed, scale=1, grey=False, seed=4)
    assert difference.nonzero().tolist() in ([], [[0, 0, 0, 5]])


@pytest.mark.parametrize("rate", [1, 4, 32, 256])
@pytest.mark.parametrize("field", [0, 1, 1 << (_UNIFORM_BITS - 1), (1 << _UNIFORM_BITS) - 1])
def test_quantiles_match_scipy_to_the_ends_of_the_field(rate: int, field: int) -> None:
    levels = torch.arange(256, dtype=torch.int32)
    counts = _quantiles(levels, torch.full_like(levels, field), rate).numpy()
    expected = scipy.stats.poisson.ppf((field + 0.5) * 2.0**-_UNIFORM_BITS, rate * np.arange(256) / 255)
    np.testing.assert_array_equal(counts, expected)
