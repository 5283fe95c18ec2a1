"""The VAE in strips and in tiles against the whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.upsampling import Upsample2D
from torch import Tensor, nn

from pnp_irib.convolution import Winograd, fewer_products
from pnp_irib.diffusion import vae_strips
from pnp_irib.diffusion.lora import active, add_adapter, layers_named
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode
from pnp_irib.errors import ConfigError


def values(*size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("size", [(2, 150), (31, 9), (1, 1), (24, 26)])
@pytest.mark.parametrize("elements", [1, 3000, 2**30])
def test_strips_are_the_whole(vae: Any, size: tuple[int, int], elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vae_strips.STRIP_ELEMENTS, "cpu", elements)
    latents = values(*size)
    given = latents.clone()
    with torch.no_grad():
        whole = decode(vae, latents)
        torch.testing.assert_close(decode(vae, latents, "strips"), whole, atol=1e-9, rtol=0)
        pictures = whole.clamp(-1, 1)
        seen = pictures.clone()
        for one, other in zip(encode(vae, pictures, "strips"), encode(vae, pictures), strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=0)
    assert torch.equal(latents, given)
    assert torch.equal(pictures, seen)


def test_strips_go_through_adapters_and_lower_precision(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vae_strips.STRIP_ELEMENTS, "cpu", 2000)
    plain = copy.deepcopy(vae).float()
    adapted = copy.deepcopy(plain)
    add_adapter(adapted, "a", layers_named(adapted, ("conv1", "conv", "conv_in", "to_q", "conv_shortcut")), rank=2, alpha=8)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(2))
    latents = values(9, 12, dtype=torch.float32)
    with torch.no_grad(), active(adapted, ["a"]):
        whole = decode(adapted, latents)
        assert (whole - decode(plain, latents)).abs().max() > 1e-3
        torch.testing.assert_close(decode(adapted, latents, "strips"), whole, atol=1e-4, rtol=1e-4)
        half = adapted.bfloat16()
        low = decode(half, latents.bfloat16(), "strips")
        assert low.dtype == torch.bfloat16
        assert (low.float() - whole).abs().mean() < 0.1 * whole.std()


@pytest.mark.parametrize("elements", [20_000, 2**30])
@torch.no_grad()
def test_strips_of_wide_layers_are_the_whole(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vae_strips.STRIP_ELEMENTS, "cpu", elements)
    wide: Any = AutoencoderKL(
        block_out_channels=(32, 64, 128),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=16,
    )
    wide.eval().requires_grad_(False)
    forms: list[Winograd | None] = []

    def chosen(*given: Any) -> Winograd | None:
        forms.append(fewer_products(*given))
        return forms[-1]

    monkeypatch.setattr(vae_strips, "fewer_products", chosen)
    latents = values(25, 31, dtype=torch.float32)
    whole = decode(wide, latents)
    torch.testing.assert_close(decode(wide, latents, "strips"), whole, atol=1e-4 * whole.abs().max().item(), rtol=0)
    pictures = values(100, 124, dtype=torch.float32)[:, :3]
    for one, other in zip(encode(wide, pictures, "strips"), encode(wide, pictures), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * other.abs().max().item(), rtol=0)
    assert any(forms)
    assert not all(forms)  # both forms were met


@torch.no_grad()
def test_under_autocast_strips_are_as_good_as_the_whole() -> None:
    wide: Any = AutoencoderKL(block_out_channels=(64, 64), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=16,
                              up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4)  # fmt: skip
    pictures = values(60, 60, dtype=torch.float32)[:, :3]
    exact = encode(wide, pictures)[0]
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(encode(wide, pictures, mode)[0].float() - exact).abs().mean() for mode in ("whole", "strips")]
    assert errors[1] < 2 * errors[0]


@torch.no_grad()
def test_upsampling_by_four_small_convolutions_unless_it_is_hooked() -> None:
    layer: Any = Upsample2D(6, use_conv=True, out_channels=5)
    x = torch.randn(2, 6, 7, 9)

    def of(x: Tensor) -> vae_strips.FeatureMap:
        return vae_strips.FeatureMap(x, vae_strips.Scope())

    assert vae_strips._corners(layer) is not None
    found = vae_strips._upsampled(layer, of(x)).pixels
    torch.testing.assert_close(found, layer(x), atol=1e-5, rtol=1e-5)
    handle = layer.register_forward_hook(lambda module, given, out: out * 0)
    assert vae_strips._upsampled(layer, of(x)).pixels.abs().max() == 0
    handle.remove()
    pointwise = nn.Conv2d(6, 4, 1)
    pointwise.register_forward_hook(lambda module, given, out: out * 0)
    assert vae_strips._pointwise(pointwise, x).abs().max() == 0


def test_published_statistics_are_others(vae: Any) -> None:
    latents = torch.randn(1, 4, 60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        whole = decode(vae, latents)
        tiles = decode(vae, latents, PublishedTiles(decoder=16))
    assert (tiles - whole).abs().max() > 1e-3
    assert tiles.dtype == torch.float32


def test_with_gradients_it_stays_in_one_piece(vae: Any) -> None:
    latents = torch.randn(1, 4, 20, 20, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        decode(vae, latents, "strips").sum().backward()
    assert latents.grad is not None


def test_the_vae_of_diffusers_is_followed(vae: Any) -> None:
    picture = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        posterior = vae.encode(picture).latent_dist
        mean, logvar = encode(vae, picture)
        assert torch.equal(mean, posterior.mean)
        assert torch.equal(logvar, posterior.logvar)
        assert torch.equal(decode(vae, mean), vae.decode(mean).sample)


def test_impossible_tiles_are_refused() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"encoder": value}, rf"^VAE tiles of {value!r} pixels: expected a whole number, at least 8, or None")
        for value in (4, "9", 9.5, True)
    ]
    wrong += [
        ({"decoder": value}, rf"^VAE tiles of {value!r} latent pixels: expected a whole number, at least 1")
        for value in (0, "", True)
    ]
    wrong += [
        ({"narrow_whole": value}, rf"^narrow_whole={value!r} of VAE tiles: expected True or False")
        for value in (1, "no", None)
    ]
    for options, message in wrong:
        with pytest.raises(ConfigError, match=message):
            PublishedTiles(**options)


@pytest.mark.parametrize(("sizes", "tiled"), [(PublishedTiles(16, None), "encoder"), (PublishedTiles(None, 8), "decoder")])
@torch.no_grad()
def test_one_half_alone_can_be_tiled(vae: Any, sizes: PublishedTiles, tiled: str) -> None:
    latents = torch.randn(1, 4, 60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pictures = decode(vae, latents)
    assert torch.equal(decode(vae, latents, sizes), pictures) == (tiled != "decoder")
    assert torch.equal(encode(vae, pictures, sizes)[0], encode(vae, pictures)[0]) == (tiled != "encoder")
