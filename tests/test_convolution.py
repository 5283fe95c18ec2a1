"""Convolutions in Winograd's form against the plain ones."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pnp_irib.convolution import Winograd, fewer_products, in_fewer_products, transformed_kernel


def conv(read: int, made: int, *, bias: bool = True, **options: object) -> nn.Conv2d:
    layer = nn.Conv2d(read, made, 3, **{"padding": 1, "bias": bias} | options)  # type: ignore[arg-type]
    return layer.requires_grad_(False)


def same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=3e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4), (7, 1100), (29, 30), (66, 41)])
@pytest.mark.parametrize(("read", "made", "bias"), [(5, 3, True), (64, 80, False)])
def test_it_is_the_convolution(height: int, width: int, read: int, made: int, bias: bool) -> None:
    layer = conv(read, made, bias=bias)
    pictures = torch.randn(2, read, height, width)
    given = pictures.clone()
    same(Winograd(layer)(pictures), layer(pictures))
    assert torch.equal(pictures, given)


@pytest.mark.parametrize("above", [0, 1])
@pytest.mark.parametrize("below", [0, 1])
def test_rows_may_be_neighbours_only(above: int, below: int) -> None:
    layer = conv(6, 4)
    rows = torch.randn(1, 6, 11, 9)
    same(Winograd(layer)(rows, above, below), layer(rows)[:, :, above : 11 - below])


def test_the_kernel_in_its_domain_is_exact_in_double_precision() -> None:
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    domain = transformed_kernel(weight)
    assert domain.shape == (36, 3, 2)
    torch.testing.assert_close(domain[0], weight[:, :, 0, 0].T / 16)  # at the point 0 in both directions
    torch.testing.assert_close(domain[35], weight[:, :, 2, 2].T)  # at infinity in both
    torch.testing.assert_close(domain[7], weight.sum((2, 3)).T / 36)  # at 1 in both


def test_only_plain_layers_on_large_pictures_are_put_in_this_form() -> None:
    assert isinstance(fewer_products(conv(64, 64), 24, 24), Winograd)
    assert fewer_products(conv(64, 64), 10, 10) is None
    assert isinstance(fewer_products(conv(1280, 640), 16, 16), Winograd)
    assert fewer_products(conv(512, 512), 16, 16) is None
    assert fewer_products(conv(1280, 1280), 15, 16) is None
    assert fewer_products(conv(63, 64), 99, 99) is None
    assert fewer_products(nn.Identity(), 99, 99) is None
    assert fewer_products(conv(64, 64).double(), 99, 99) is None
    for options in ({"padding": 0}, {"stride": 2}, {"dilation": 2, "padding": 2}, {"groups": 2}, {"padding_mode": "reflect"}):
        assert fewer_products(conv(128, 128, **options), 99, 99) is None
    hooked = conv(64, 64)
    hooked.register_forward_hook(lambda module, given, found: found * 2)
    assert fewer_products(hooked, 99, 99) is None


def test_later_weights_are_seen_when_it_is_made_anew() -> None:
    layer = conv(64, 64)
    pictures = torch.randn(1, 64, 25, 24)
    first = fewer_products(layer, 25, 24)
    assert first is not None
    before = layer(pictures)
    layer.weight.mul_(2)
    again = fewer_products(layer, 25, 24)
    assert again is not None
    same(first(pictures), before)
    same(again(pictures), layer(pictures))


def network() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers = [conv(3, 64), conv(64, 96), nn.SiLU(), conv(96, 64), nn.Conv2d(64, 64, 3, stride=2, padding=1), conv(64, 4)]
        return nn.Sequential(*layers).requires_grad_(False)


def test_a_network_in_fewer_products_says_the_same_and_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    inner, made = network(), []
    pictures = torch.randn(2, 3, 40, 37, generator=torch.Generator().manual_seed(0))
    winograd = Winograd.__call__

    def counted(self: Winograd, x: Tensor) -> Tensor:
        made.append(x.shape)
        return winograd(self, x)

    monkeypatch.setattr(Winograd, "__call__", counted)
    with torch.no_grad():
        expected = inner(pictures)
        with in_fewer_products(inner):
            same(inner(pictures), expected)
    assert [shape[1] for shape in made] == [64, 96]  # the first has too few channels, the last sees too few pixels
    assert not any("forward" in vars(layer) for layer in inner)


def test_gradients_are_those_of_the_plain_network() -> None:
    inner = network()
    pictures = torch.randn(1, 3, 30, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (expected,) = torch.autograd.grad(inner(pictures).square().sum(), pictures)
    with in_fewer_products(inner):
        (found,) = torch.autograd.grad(inner(pictures).square().sum(), pictures)
    assert torch.equal(found, expected)


def test_a_layer_that_does_more_is_left_alone() -> None:
    inner, seen = network(), []
    inner[1].register_forward_hook(lambda module, given, result: seen.append(result.shape))
    with torch.no_grad(), in_fewer_products(inner):
        assert "forward" not in vars(inner[1])
        inner(torch.zeros(1, 3, 30, 30))
    assert len(seen) == 1
    with pytest.raises(ZeroDivisionError), in_fewer_products(inner):
        raise ZeroDivisionError
    assert not any("forward" in vars(layer) for layer in inner)
