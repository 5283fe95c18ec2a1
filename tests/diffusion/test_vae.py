from __future__ import annotations

from typing import Any

import pytest
import torch

from pnp_irib.diffusion.vae import VaeTiling, decode, encode
from pnp_irib.errors import ConfigError


@pytest.mark.parametrize("size", [(2, 150), (97, 71), (64, 66)])
@pytest.mark.parametrize("tile", [8, 33, 64])
def test_tiles_are_the_whole(vae: Any, size: tuple[int, int], tile: int) -> None:
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        whole = decode(vae, latents)
        tiles = decode(vae, latents, VaeTiling(decoder_tile=tile))
        torch.testing.assert_close(tiles, whole, atol=1e-6, rtol=0)  # the result is put together in float32
        pictures = whole.clamp(-1, 1)
        expected = encode(vae, pictures)
        found = encode(vae, pictures, VaeTiling(encoder_tile=2 * tile))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_published_statistics_are_others(vae: Any) -> None:
    latents = torch.randn(1, 4, 60, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        whole = decode(vae, latents)
        tiles = decode(vae, latents, VaeTiling(decoder_tile=16, statistics="published"))
    assert (tiles - whole).abs().max() > 1e-3
    assert tiles.dtype == torch.float32


def test_with_gradients_nothing_is_tiled(vae: Any) -> None:
    latents = torch.randn(1, 4, 20, 20, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        decode(vae, latents, VaeTiling(decoder_tile=8)).sum().backward()
    assert latents.grad is not None


def test_the_vae_of_diffusers_is_followed(vae: Any) -> None:
    picture = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        posterior = vae.encode(picture).latent_dist
        mean, logvar = encode(vae, picture)
        assert torch.equal(mean, posterior.mean)
        assert torch.equal(logvar, posterior.logvar)
        assert torch.equal(decode(vae, mean), vae.decode(mean).sample)


def test_tiles_without_pixels_are_refused() -> None:
    with pytest.raises(ConfigError, match="VAE tiles of 4 pixels"):
        VaeTiling(encoder_tile=4)
