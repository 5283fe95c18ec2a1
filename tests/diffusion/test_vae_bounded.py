"""The VAE in tiles that go by a sample of the picture: close to the whole, without seams, in bounded memory."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pnp_irib.diffusion import vae_bounded
from pnp_irib.diffusion.offload import vae_bytes
from pnp_irib.diffusion.vae import BoundedTiles, PublishedTiles, VaeMode, decode, encode, mode_within
from pnp_irib.errors import ConfigError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.images.tiling import Tile, plan_tiles

TILES = BoundedTiles((4 * 32) ** 2)  # 32 latent pixels on a side, 16 of them the tile's own


@pytest.fixture(scope="module")
def vae() -> Any:
    """Three levels; what the attention finds is not lost beside what it is added to."""
    torch.manual_seed(0)
    model: Any = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=4,
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(1.5)
    return model.double().eval()


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """(1, 3, 256, 192) in [-1, 1]."""
    found = read_picture(shared_dir / "data" / "dev" / "kodak_05.webp").rgb
    return resize(found, (256, 192)).clamp(0, 1).double() * 2 - 1


def latents(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(vae: Any, given: Tensor, mode: VaeMode, decoder: bool) -> Tensor:
    return decode(vae, given, mode) if decoder else encode(vae, given, mode)[0]


@torch.no_grad()
def test_tiles_are_closer_to_the_whole_than_the_published_ones_and_show_no_seams(vae: Any, photo: Tensor) -> None:
    whole, tiles = (encode(vae, photo, mode)[0] for mode in ("whole", TILES))
    published = encode(vae, photo, PublishedTiles(encoder=64, decoder=16))[0]
    error = (tiles - whole).abs()
    assert 0 < error.mean() < (published - whole).abs().mean()

    edges = {core[0] for core, _ in plan_tiles(64, 48, tile=16, halo=8)} - {0}
    jumps = (tiles - whole).diff(dim=2).abs().mean((0, 1, 3))
    at_edges = torch.tensor([row in edges for row in range(1, len(jumps) + 1)])
    assert at_edges.sum() == 3
    assert jumps[at_edges].mean() < 1.2 * jumps[~at_edges].mean()


def _whole(height: int, width: int, area: int) -> Tile:
    return Tile((0, height, 0, width), (0, height, 0, width))


@pytest.mark.parametrize("decoder", [False, True])
@torch.no_grad()
def test_with_the_moments_of_the_whole_tiles_are_the_whole(vae: Any, decoder: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    vae = copy.deepcopy(vae)
    vae.encoder.mid_block.attentions[0] = vae.decoder.mid_block.attentions[0] = None
    monkeypatch.setattr(vae_bounded, "HALO", 16)  # more than any pixel is seen from
    monkeypatch.setattr(vae_bounded, "_batches", lambda *size_and_area: [[_whole(*size_and_area)]])
    given = latents(2, 4, 45, 40) if decoder else latents(2, 3, 180, 160)
    mode = BoundedTiles((4 * 44) ** 2)
    torch.testing.assert_close(run(vae, given, mode, decoder), run(vae, given, "whole", decoder), atol=1e-9, rtol=0)


@torch.no_grad()
def test_what_fits_into_a_tile_is_in_strips_and_pictures_are_apart(vae: Any) -> None:
    given = latents(2, 4, 40, 24)
    whole = decode(vae, given)
    torch.testing.assert_close(decode(vae, given, BoundedTiles(160 * 96)), whole, atol=1e-9, rtol=0)
    small = BoundedTiles(160 * 96 - 1)
    both = decode(vae, given, small)
    assert (both - whole).abs().max() > 1e-4
    for one, alone in zip(both, given.split(1), strict=True):
        torch.testing.assert_close(one[None], decode(vae, alone, small))
    picture = whole.clamp(-1, 1)
    for one, other in zip(encode(vae, picture, BoundedTiles(160 * 96)), encode(vae, picture), strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [(64, 64), (512, 300), (20, 700), (7, 4000), (33, 30)])
@pytest.mark.parametrize("area", [24**2, 48**2, 128**2])
def test_each_batch_of_crops_is_spread_over_the_picture(size: tuple[int, int], area: int) -> None:
    batches = vae_bounded._batches(*size, area)
    assert len(batches) <= vae_bounded.BATCHES
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    counted = torch.zeros(size)
    for crops in batches:
        cores, reads = (torch.tensor(boxes) for boxes in zip(*crops, strict=True))
        tall, wide = reads[:, 1] - reads[:, 0], reads[:, 3] - reads[:, 2]
        assert tall.unique().numel() == wide.unique().numel() == 1
        assert (tall * wide).sum() <= area
        for top, bottom, left, right in cores:
            counted[top:bottom, left:right] += 1
        inside = [cores[:, i] - reads[:, i] for i in (0, 2)] + [reads[:, i] - cores[:, i] for i in (1, 3)]
        borders = [cores[:, 0] == 0, cores[:, 2] == 0, cores[:, 1] == size[0], cores[:, 3] == size[1]]
        for margin, border in zip(inside, borders, strict=True):
            assert (margin[border] == 0).all()
            assert (margin[~border] >= vae_bounded.MARGIN).all()
        if len(crops) >= 8:
            assert all(0.35 < cores[:, i : i + 2].float().mean() / size[i // 2] < 0.65 for i in (0, 2))
    assert counted.max() == 1  # none twice
    if len(batches) < vae_bounded.BATCHES:
        assert counted.min() == 1


def test_the_mode_is_chosen_by_the_room_that_there_is(vae: Any) -> None:
    needed = vae_bytes(vae, 512**2, 4, decoder=True)
    assert mode_within(vae, 512**2, 4, decoder=True, room=needed) == ("strips", needed)
    mode, working = mode_within(vae, 512**2, 4, decoder=True, room=needed // 3)
    assert isinstance(mode, BoundedTiles)
    assert 0.98 * (needed // 3) < working <= needed // 3
    assert working == vae_bytes(vae, mode.pixels, 4, decoder=True)
    least, working = mode_within(vae, 512**2, 4, decoder=True, room=-5)
    assert least == BoundedTiles((4 * 24) ** 2)
    assert working == vae_bytes(vae, (4 * 24) ** 2, 4, decoder=True)
    with pytest.raises(ConfigError, match="VAE tiles of 0 pixels: expected at least 1"):
        BoundedTiles(0)
