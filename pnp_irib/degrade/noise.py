"""Gaussian and Poisson noise from seeded fields."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from pnp_irib.degrade.stream import generator_for

__all__ = ["gaussian_noise", "luma", "poisson_noise"]

_UNIFORM_BITS = 22  # 8 bits of grey level on top of them still fit a 32-bit key


def luma(picture: Tensor) -> Tensor:
    """Luma (BT.601 weights) of RGB: (N, 3, H, W) -> (N, 1, H, W)."""
    weights = torch.tensor((0.299, 0.587, 0.114), dtype=picture.dtype, device=picture.device)
    return (picture * weights[:, None, None]).sum(dim=1, keepdim=True)


def gaussian_noise(picture: Tensor, *, sigma: float, grey: bool, seed: int) -> Tensor:
    """Normal noise for ``picture``.

    Args:
        picture: (1, 3, H, W); only its shape, dtype and device count.
        sigma: standard deviation, grey levels of 255.
        grey: one plane for all channels instead of independent channels.
        seed: address of the field; drawn on the CPU, so that it does not depend on the device.

    Returns:
        The noise alone, (1, 1 or 3, H, W).
    """
    shape = (1, 1 if grey else 3, *picture.shape[-2:])
    field = torch.randn(shape, generator=generator_for(seed), dtype=torch.float32, device="cpu")
    return field.to(picture) * (sigma / 255)


@torch.no_grad()
def poisson_noise(picture: Tensor, *, scale: float, grey: bool, seed: int) -> Tensor:
    """Photon noise for ``picture``: scale * (Poisson(L v) / L - v), of variance scale^2 v / L.

    v is the picture rounded to 8 bits (for grey noise: its luma) and L the number of distinct values in v, over all channels,
    rounded up to a power of two: the fewer values, the stronger the noise.

    The counts are quantiles of one uniform field, so equal seeds give noise that varies with v only where v does. They are
    constants to autograd: the derivative of the noise with respect to the picture is left out.

    Args:
        picture: (1, 3, H, W) in [0, 1]; values outside are clamped.
        scale: factor on the noise.
        grey: one plane for all channels instead of independent channels.
        seed: address of the uniform field, drawn on the CPU.

    Returns:
        The noise alone, (1, 1 or 3, H, W).
    """
    source = luma(picture) if grey else picture
    levels = (source.float().clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.int32)
    distinct = int(torch.bincount(levels.flatten(), minlength=256).count_nonzero())
    rate = 1 << (distinct - 1).bit_length()
    generator = generator_for(seed)
    field = torch.randint(1 << _UNIFORM_BITS, levels.shape, generator=generator, dtype=torch.int32, device="cpu")
    counts = _quantiles(levels, field, rate)
    return (counts / rate - levels / 255).to(picture) * scale


def _quantiles(levels: Tensor, field: Tensor, rate: int) -> Tensor:
    """Poisson counts of mean rate * levels / 255 at the quantiles (``field`` + 1/2) / 2**_UNIFORM_BITS; all int32."""
    keys, row = _quantile_table(rate)
    # To the right of equal keys: the full probability of the level below is the same key as quantile zero of this one.
    return torch.searchsorted(keys, field + (levels << _UNIFORM_BITS), right=True, out_int32=True) - levels * row


@functools.lru_cache(maxsize=9)
def _quantile_table(rate: int) -> tuple[Tensor, int]:
    """Poisson distribution functions of all 256 grey levels as one ascending list of keys, and the number of keys of a level.

    The key of level l and count k is (l + P(count <= k)) in units of 2**-_UNIFORM_BITS. Rounded, not cut: sums of
    probabilities end a little below one, and cut, the last quantile would lie beyond the whole list.
    """
    means = rate * torch.arange(256, dtype=torch.float64, device="cpu")[:, None] / 255
    row = rate + int(5.5 * rate**0.5) + 12  # 5.5 standard deviations: beyond what 22 bits resolve
    counts = torch.arange(row, dtype=torch.float64, device="cpu")
    below = torch.exp(torch.xlogy(counts, means) - means - torch.lgamma(counts + 1)).cumsum(1).clamp(max=1)
    unit = 1 << _UNIFORM_BITS
    levels = torch.arange(256, dtype=torch.int64, device="cpu")[:, None]
    return (levels * unit + (below * unit).round().long()).flatten().int(), row
