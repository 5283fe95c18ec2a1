from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from pnp_irib.diffusion import latents
from pnp_irib.diffusion.latents import Cuts, gaussian_window, plan_latent_tiles, predict_in_tiles
from pnp_irib.errors import ConfigError


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("compat", [False, True])
@pytest.mark.parametrize("size", [(9, 40), (40, 9), (31, 33), (17, 17)])
def test_a_pointwise_denoiser_is_the_same_in_tiles(size: tuple[int, int], compat: bool, batch: int) -> None:
    latent = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(0))
    tiles = plan_latent_tiles(*size, tile=12, overlap=5, compat=compat)
    assert tiles is not None
    seen: list[Tensor] = []

    def predict(part: Tensor, cuts: Cuts) -> Tensor:
        seen.append(cuts.pictures)
        return part * (cuts.pictures + 1).view(-1, 1, 1, 1)

    found = predict_in_tiles(predict, latent, tiles, batch=batch)
    torch.testing.assert_close(found, latent * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
    assert all(len(of) <= batch for of in seen)
    assert sum(len(of) for of in seen) == 2 * len(tiles.corners)


def test_devices_without_float64_have_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    latent = torch.randn(1, 4, 9, 20, generator=torch.Generator().manual_seed(0))
    tiles = plan_latent_tiles(9, 20, tile=12, overlap=5)
    expected = predict_in_tiles(lambda part, _: part.square(), latent, tiles)
    monkeypatch.setattr(latents, "widest_float", lambda _: torch.float32)
    kinds: list[torch.dtype] = []
    multiply = Tensor.__mul__

    def watched(x: Tensor, y: Tensor) -> Tensor:
        if x.ndim == 3:  # a tile by its window
            kinds.append(y.dtype)
        return multiply(x, y)

    monkeypatch.setattr(Tensor, "__mul__", watched)
    found = predict_in_tiles(lambda part, _: part.square(), latent, tiles)
    torch.testing.assert_close(found, expected)
    assert set(kinds) == {torch.float32}


def test_tiles_do_not_depend_on_the_batch() -> None:
    latent = torch.randn(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    tiles = plan_latent_tiles(20, 30, tile=12, overlap=4)
    weight = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(1))

    def predict(part: Tensor, cuts: Cuts) -> Tensor:
        return torch.nn.functional.conv2d(part, weight, padding=1)

    one = predict_in_tiles(predict, latent, tiles, batch=1)
    torch.testing.assert_close(predict_in_tiles(predict, latent, tiles, batch=5), one)
    torch.testing.assert_close(predict_in_tiles(predict, latent[1:], tiles), one[1:])


def test_a_side_above_the_tile_is_cut_and_thin_latents_keep_their_overlap() -> None:
    assert plan_latent_tiles(96, 96, tile=96, overlap=32) is None
    tiles = plan_latent_tiles(48, 190, tile=96, overlap=32)  # its area is below that of a tile
    assert tiles is not None
    assert (tiles.height, tiles.width) == (48, 88)  # three tiles of 96 would overlap more than they need
    assert [x for _, x in tiles.corners] == [0, 51, 102]
    narrow = plan_latent_tiles(10, 300, tile=96, overlap=95)  # the published code would take hundreds
    assert narrow is not None
    assert len(narrow.corners) == 6


@pytest.mark.parametrize("size", [(97, 128), (100, 300), (256, 513), (40, 1000)])
def test_tiles_cover_the_latent_and_overlap_enough(size: tuple[int, int]) -> None:
    tiles = plan_latent_tiles(*size, tile=96, overlap=32)
    assert tiles is not None
    for length, side, starts in (
        (size[0], tiles.height, sorted({y for y, _ in tiles.corners})),
        (size[1], tiles.width, sorted({x for _, x in tiles.corners})),
    ):
        assert side <= min(96, length)
        assert starts[0] == 0
        assert starts[-1] == length - side
        assert all(b - a <= side - min(32, side // 2) for a, b in itertools.pairwise(starts))


def test_windows() -> None:
    window = gaussian_window(7, 12)
    assert torch.equal(window, window.flip(0))
    assert torch.equal(window, window.flip(1))
    assert window.min() > 0
    assert not torch.equal(*(gaussian_window(7, 12, symmetric=False).flip(0), gaussian_window(7, 12, symmetric=False)))


def test_sizes_without_a_step_are_refused() -> None:
    with pytest.raises(ConfigError, match="leaves no step between tiles of 4"):
        plan_latent_tiles(4, 200, tile=12, overlap=4, compat=True)
    with pytest.raises(ConfigError, match="latent tiles of 0"):
        plan_latent_tiles(4, 200, tile=0, overlap=4)
