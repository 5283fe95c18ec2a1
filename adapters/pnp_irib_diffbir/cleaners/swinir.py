"""SwinIR with little memory: what enlarges its features again goes in strips."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SwinIRInStrips"]

STRIP_PIXELS = 2**17  # whose maps take about 100 MB at the published size
FEWEST_ROWS = 4  # of features in a strip: with fewer, most of the work is on rows that the next strip makes again
HALO = 3  # rows of features that the layers behind the trunk reach
KEPT = 2  # rows beside a strip that every further layer needs, at whatever size its map has


class SwinIRInStrips(nn.Module):
    """A SwinIR of spandrel that reduces by a factor and enlarges by nearest neighbours and convolutions.

    Where no gradient is recorded, features are enlarged strip by strip, with the rows around that matter: at full size they
    need many times the memory of all that comes before. The result is the same up to rounding.

    Args:
        network: as spandrel builds it.

    Attributes:
        strip_pixels: of the result that are made at a time.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.strip_pixels = STRIP_PIXELS
        self.reduced = int(network.start_unshuffle)
        self._doublings = [name for name in ("conv_up1", "conv_up2", "conv_up3") if hasattr(network, name)]

    def forward(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1], sides that the windows divide, to the same shape."""
        if torch.is_grad_enabled():
            return self.network(pictures)  # type: ignore[no-any-return]
        network: Any = self.network
        mean = network.mean.to(pictures)
        first = network.conv_first(F.pixel_unshuffle((pictures - mean) * network.img_range, self.reduced))
        features = network.conv_after_body(network.forward_features(first)) + first
        return self._enlarged(features).div_(network.img_range).add_(mean)

    def _enlarged(self, features: Tensor) -> Tensor:
        count, _, height, width = features.shape
        factor = self.reduced
        rows = max(FEWEST_ROWS, self.strip_pixels // (factor**2 * width))
        enlarged = features.new_empty((count, 3, factor * height, factor * width))
        for top in range(0, height, rows):
            bottom = min(height, top + rows)
            above, below = min(HALO, top), min(HALO, height - bottom)
            strip = self._strip(features[:, :, top - above : bottom + below], above, below)
            enlarged[:, :, factor * top : factor * bottom] = strip
        return enlarged

    def _strip(self, features: Tensor, above: int, below: int) -> Tensor:
        """The picture that belongs to features, without the ``above`` and ``below`` rows around them."""
        network: Any = self.network
        x = network.conv_before_upsample(features)
        for name in self._doublings:
            x, above, below = _cut(x, above, below, KEPT)
            x = network.lrelu(getattr(network, name)(F.interpolate(x, scale_factor=2.0, mode="nearest")))
            above, below = 2 * above, 2 * below
        x, above, below = _cut(x, above, below, KEPT)
        return _cut(network.conv_last(network.lrelu(network.conv_hr(x))), above, below, 0)[0]


def _cut(x: Tensor, above: int, below: int, kept: int) -> tuple[Tensor, int, int]:
    """``x`` with at most ``kept`` of the rows above and below, and how many these are."""
    new_above, new_below = min(above, kept), min(below, kept)
    return x[:, :, above - new_above : x.shape[2] - (below - new_below)], new_above, new_below
