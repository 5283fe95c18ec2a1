"""Blur kernels: Gaussian, generalised Gaussian and plateau shapes, and the circular low-pass (sinc)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from pnp_irib.degrade.stream import Stream
from pnp_irib.profile import Blur, Sinc

__all__ = ["Family", "Kernel", "draw_kernel", "draw_sinc"]

Family = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso", "sinc"]

_SMALL = 13  # below this many taps a sinc kernel takes its cut-off from ``Sinc.cutoff_small``
_FINAL_SINC_SIZE = (7, 21)


@dataclass(frozen=True)
class Kernel:
    """One blur kernel, by its numbers.

    Attributes:
        family: shape; ``sinc`` uses ``cutoff``, all others ``sigma``, ``theta`` and ``beta``.
        size: side in taps, odd.
        sigma: standard deviations along the axes of the ellipse, pixels.
        theta: angle of the first axis against the horizontal, radians.
        beta: exponent of the generalised Gaussian and plateau shapes; one gives exp(-q/2) and 1/(1 + q).
        cutoff: radians per pixel.
    """

    family: Family
    size: int
    sigma: tuple[float, float] = (0.0, 0.0)
    theta: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0

    def taps(self) -> Tensor:
        """The kernel as (size, size) in double precision on the CPU; it sums to one and is point-symmetric."""
        offsets = torch.arange(self.size, dtype=torch.float64, device="cpu") - self.size // 2
        y, x = offsets[:, None], offsets[None, :]
        values = self._sinc(x, y) if self.family == "sinc" else self._ellipse(x, y)
        return values / values.sum()

    def _ellipse(self, x: Tensor, y: Tensor) -> Tensor:
        # q = x^T Sigma^-1 x with Sigma = R diag(sx^2, sy^2) R^T: distances along the rotated axes, in standard deviations.
        cos, sin = math.cos(self.theta), math.sin(self.theta)
        q = ((cos * x + sin * y) / self.sigma[0]) ** 2 + ((cos * y - sin * x) / self.sigma[1]) ** 2
        if self.family.startswith("plateau"):
            return 1 / (1 + q**self.beta)
        return torch.exp(-0.5 * q**self.beta)

    def _sinc(self, x: Tensor, y: Tensor) -> Tensor:
        # k(r) = w J1(w r) / (2 pi r), and its limit w^2 / (4 pi) at the centre.
        r = torch.sqrt(x**2 + y**2)
        middle = self.size // 2
        r[middle, middle] = 1
        values: Tensor = self.cutoff * torch.special.bessel_j1(self.cutoff * r) / (2 * math.pi * r)
        values[middle, middle] = self.cutoff**2 / (4 * math.pi)
        return values

    def __str__(self) -> str:
        if self.family == "sinc":
            return f"sinc cutoff={self.cutoff:.2f} rad/px, {self.size} taps"
        sigma = f"{self.sigma[0]:.2f} px"
        if self.family.endswith("aniso"):
            sigma = f"{self.sigma[0]:.2f}/{self.sigma[1]:.2f} px at {math.degrees(self.theta):.0f} deg"
        beta = "" if self.family in ("iso", "aniso") else f", beta={self.beta:.2f}"
        return f"{self.family} sigma={sigma}{beta}, {self.size} taps"


def draw_kernel(blur: Blur, stream: Stream) -> Kernel:
    """Draw a kernel from the mixture of one order (``blur.p`` is not looked at)."""
    size = _odd(blur.size, stream)
    if blur.sinc is not None and stream.chance(blur.sinc.p):
        return _sinc_of_size(blur.sinc, size, stream)
    family = stream.weighted(blur.families)
    sx = stream.uniform(*blur.sigma)
    sy, theta = sx, 0.0
    if family.endswith("aniso"):
        sy = stream.uniform(*blur.sigma)
        theta = stream.uniform(-math.pi, math.pi)
    beta = 1.0
    if family.startswith("generalized"):
        beta = _beta(blur.beta_generalized, stream)
    elif family.startswith("plateau"):
        beta = _beta(blur.beta_plateau, stream)
    return Kernel(family, size, sigma=(sx, sy), theta=theta, beta=beta)


def draw_sinc(sinc: Sinc, stream: Stream) -> Kernel:
    """Draw the kernel of a final sinc filter (``sinc.p`` is not looked at); its size is uniform over 7, 9, ..., 21."""
    return _sinc_of_size(sinc, _odd(_FINAL_SINC_SIZE, stream), stream)


def _sinc_of_size(sinc: Sinc, size: int, stream: Stream) -> Kernel:
    cutoff = sinc.cutoff_small if sinc.cutoff_small is not None and size < _SMALL else sinc.cutoff
    return Kernel("sinc", size, cutoff=stream.uniform(*cutoff))


def _odd(bounds: tuple[int, int], stream: Stream) -> int:
    return stream.pick(range(bounds[0], bounds[1] + 1, 2))


def _beta(bounds: tuple[float, float], stream: Stream) -> float:
    # Half of the draws on either side of one, however far the bounds reach.
    return stream.uniform(bounds[0], 1.0) if stream.chance(0.5) else stream.uniform(1.0, bounds[1])
