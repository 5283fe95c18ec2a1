from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnp_irib.consistency import BLURS, TAU, consistency, heat_map
from pnp_irib.images.blur import gaussian_blur
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.wrapper import wrap


@pytest.fixture(scope="module")
def hq(shared_dir: Path) -> Tensor:
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[2]).rgb[..., :256, :256]


def degraded(hq: Tensor, sigma: float, noise: float = 0.0) -> Tensor:
    reduced = resize(hq, (64, 64))
    blurred = gaussian_blur(reduced, sigma) if sigma else reduced
    return blurred + noise * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sigma", [0.0, 0.75, 2.5])
def test_the_true_picture_is_consistent_and_its_blur_is_found(hq: Tensor, sigma: float) -> None:
    found = consistency(hq, degraded(hq, sigma))
    assert found.blur == sigma
    assert found.worst < 1e-6
    assert found.difference.shape == (1, 1, 64, 64)


def test_noise_of_the_input_is_no_contradiction(hq: Tensor) -> None:
    noise = 0.1
    found = consistency(hq, degraded(hq, 1.0, noise))
    left = noise / (2 * TAU * math.sqrt(math.pi))  # standard deviation behind the blur
    assert found.mean == pytest.approx(left * math.sqrt(2 / math.pi), rel=0.15)
    assert abs(found.blur - 1.0) <= 0.25


def test_what_was_put_in_or_tinted_shows_where_it_is(hq: Tensor) -> None:
    elq = degraded(hq, 1.0)
    changed = hq.clone()
    changed[..., 40:100, 160:220] = 1 - changed[..., 40:100, 160:220]
    difference = consistency(changed, elq).difference[0, 0]
    place = divmod(int(difference.argmax()), 64)
    assert 10 <= place[0] < 25
    assert 40 <= place[1] < 55
    assert difference[40:, :30].max() < 0.1 * difference.max()
    tinted = hq + torch.tensor([0.1, 0.0, 0.0]).view(1, 3, 1, 1)
    assert consistency(tinted, elq).mean == pytest.approx(0.1 / 3, abs=0.005)


def test_the_map_is_dark_where_all_is_well_and_light_where_not(hq: Tensor) -> None:
    elq = degraded(hq, BLURS[3])
    elq[..., 16:48, 40:60] -= 0.5
    shown = heat_map(consistency(hq, elq), hq)
    assert shown.shape == hq.shape
    assert shown.min() >= 0
    assert shown.max() <= 1
    grey = hq.mean(1, keepdim=True)
    torch.testing.assert_close(shown[..., 100:, :80], 0.25 * grey.expand(-1, 3, -1, -1)[..., 100:, :80], atol=0.02, rtol=0)
    assert (shown[0, 1, 100:150, 180:220] > 0.7).all()


def test_a_result_carries_it(hq: Tensor) -> None:
    result = wrap(lambda lq: torch.nn.functional.interpolate(lq, scale_factor=2.0), scale=2, projector=None)(hq[..., :60, :50])
    assert result.consistency().mean < 1 / 255
    assert result.consistency_image.size == (100, 120)
    assert result.comparison(consistency=True).size == (4 * 100 + 3 * 8, 120)
