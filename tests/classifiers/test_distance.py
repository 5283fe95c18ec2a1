from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.errors import InputError


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite:
    return EfficientNetLite.from_package("lite0")


class TwoStages:
    """Features known by hand: the picture, and its upper left pixel."""

    def features(self, rgb: Tensor) -> list[Tensor]:
        return [rgb, rgb[..., :1, :1]]


def test_equals_the_formula() -> None:
    a = torch.tensor([3.0, 0, 0])[None, :, None, None].expand(1, 3, 1, 2).clone()
    b = a.clone()
    b[..., 1] = torch.tensor([0.0, 0.5, 0])[:, None]  # orthogonal at one of two positions of stage 1, equal in stage 2
    assert feature_distance(TwoStages(), a, b).item() == pytest.approx((2 * 0.5 + 0) / 2, abs=1e-4)
    assert feature_distance(TwoStages(), a, -a).item() == pytest.approx(4, abs=1e-4)
    assert feature_distance(TwoStages(), a, 0.1 * a).item() == pytest.approx(0, abs=1e-4)


def test_is_a_distance_per_picture(lite0: EfficientNetLite) -> None:
    a, b = torch.rand(2, 3, 3, 48, 40, generator=torch.Generator().manual_seed(3))
    distance = feature_distance(lite0, a, b)
    assert distance.shape == (3,)
    assert (distance > 0.05).all()
    torch.testing.assert_close(feature_distance(lite0, b, a), distance)
    torch.testing.assert_close(feature_distance(lite0, a[1:2], b[1:2]), distance[1:2], atol=1e-5, rtol=1e-4)
    assert torch.equal(feature_distance(lite0, a, a), torch.zeros(3))


def test_grows_with_the_damage(lite0: EfficientNetLite) -> None:
    generator = torch.Generator().manual_seed(4)
    ramp = torch.linspace(0.2, 0.8, 64).expand(1, 3, 64, 64)
    noise = torch.randn(1, 3, 64, 64, generator=generator)
    small, large = (feature_distance(lite0, ramp, ramp + level * noise) for level in (0.01, 0.1))
    assert 0 < small < large < 4


def test_gradients_descend(lite0: EfficientNetLite) -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.rand(1, 3, 32, 32, generator=generator)
    picture = torch.rand(1, 3, 32, 32, generator=generator).requires_grad_()
    before = feature_distance(lite0, picture, target)
    (grad,) = torch.autograd.grad(before.sum(), picture)
    after = feature_distance(lite0, picture - 0.02 * grad.sign(), target)
    assert after < before
    assert feature_distance(lite0, target, picture).requires_grad


def test_black_pictures_have_finite_gradients() -> None:
    black = torch.zeros(1, 3, 4, 4, requires_grad=True)
    feature_distance(TwoStages(), black, torch.rand(1, 3, 4, 4)).sum().backward()
    assert black.grad is not None
    assert torch.isfinite(black.grad).all()


def test_refuses_different_shapes(lite0: EfficientNetLite) -> None:
    with pytest.raises(InputError, match="one shape"):
        feature_distance(lite0, torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))
