"""Does a restored picture still say what its input said? What a restorer invents is made visible here."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pnp_irib.images.blur import gaussian_blur
from pnp_irib.images.resize import resize

__all__ = ["Consistency", "consistency", "heat_map"]

TAU = 2.0  # ours: standard deviation of the regions, input pixels; noise of the input averages out to a seventh
BLURS = tuple(0.25 * step for step in range(17))  # standard deviations that are tried for the mean channel, input pixels
FULL = 48 / 255  # ours: difference that gets the last colour; fixed, so that maps can be compared
RAMP = ((0.0, 0.0, 0.0), (0.34, 0.06, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.64))  # dark to light


@dataclass(frozen=True, eq=False)
class Consistency:
    """How far a restored picture, degraded back, is from its input.

    Attributes:
        difference: (1, 1, H, W) on the grid of the input, in [0, 1]: 0 where the restored picture, seen as badly as the input,
            shows what the input shows.
        blur: standard deviation of the fitted blur, input pixels.
    """

    difference: Tensor
    blur: float

    @property
    def mean(self) -> float:
        """Mean difference over the picture, in [0, 1]."""
        return self.difference.mean().item()

    @property
    def worst(self) -> float:
        """Difference of the worst region, in [0, 1]."""
        return self.difference.max().item()


@torch.no_grad()
def consistency(restored: Tensor, elq: Tensor) -> Consistency:
    r"""Degrade a restored picture back and compare it with the input, region by region.

    $$ m = \frac{1}{3} \sum_{RGB} \left| G_\tau * (G_\sigma * {\downarrow}\hat z_H - x_E) \right| $$

    The mean channel (blur and resizing; noise and compression have no part in it) is fitted to the input: $\sigma$ is the
    blur at which the squared difference is least. Small values say that nothing contradicts the input, not that the details
    are true: a bad input agrees with many pictures.

    Args:
        restored: (1, 3, h, w) in [0, 1].
        elq: the input, (1, 3, H, W) in [0, 1].
    """
    elq = elq.float().cpu()
    reduced = resize(restored.float().cpu(), (elq.shape[-2], elq.shape[-1]))
    tried = [gaussian_blur(reduced, sigma) if sigma else reduced for sigma in BLURS]
    errors = torch.stack([(back - elq).square().mean() for back in tried])
    best = int(errors.argmin())
    difference = gaussian_blur(tried[best] - elq, TAU).abs().mean(1, keepdim=True).clamp(max=1)
    return Consistency(difference, BLURS[best])


def heat_map(found: Consistency, restored: Tensor) -> Tensor:
    """The differences in colour over the grey restored picture, (1, 3, h, w): dark is consistent, yellow 48/255 and more."""
    size = (restored.shape[-2], restored.shape[-1])
    level = (resize(found.difference, size) / FULL).clamp(0, 1) * (len(RAMP) - 1)
    below = level.floor().clamp(max=len(RAMP) - 2)
    part = level - below
    ramp = torch.tensor(RAMP, dtype=torch.float32)
    index = below[0, 0].long()
    colour = torch.lerp(ramp[index], ramp[index + 1], part[0, 0, ..., None]).permute(2, 0, 1)[None]
    grey = restored.float().cpu().mean(1, keepdim=True)
    return 0.75 * colour + 0.25 * grey
