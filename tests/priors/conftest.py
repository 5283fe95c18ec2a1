"""Small denoisers."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch

from pnp_irib.priors import DenoiserArchitecture, PixelDenoiser

SMALL = DenoiserArchitecture(widths=(8, 16), attention=True)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def _built() -> PixelDenoiser:
    denoiser = PixelDenoiser(SMALL)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return denoiser.eval()


@pytest.fixture
def denoiser(_built: PixelDenoiser) -> PixelDenoiser:
    """A denoiser of random weights, whose UNet matters."""
    return copy.deepcopy(_built)
