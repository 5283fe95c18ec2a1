"""How hard each preset is: PSNR of the bicubic enlargement on photographs, against an independent implementation."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.degrade import degrade

# Mean and standard deviation in dB over 60 photographs with 2 or 3 draws each; the mean is known to about 0.15 dB.
BANDS = {
    "light": (21.21, 2.75),
    "standard": (20.11, 2.62),
    "codeformer": (19.28, 2.93),
    "extreme": (18.18, 2.20),
    "stress": (17.12, 2.07),
}


def enlarged_psnr(lq: Tensor, hq: Tensor) -> float:
    pixels = (lq[0].permute(1, 2, 0) * 255).round().byte().numpy()
    large = np.array(Image.fromarray(pixels).resize((hq.shape[3], hq.shape[2]), Image.Resampling.BICUBIC))
    error = torch.from_numpy(large).permute(2, 0, 1).double() / 255 - hq[0].double()
    return -10 * math.log10(float(error.square().mean()))


@pytest.mark.parametrize("name", list(BANDS))
def test_difficulty(name: str, photographs: list[Tensor]) -> None:
    values = [enlarged_psnr(degrade(hq, name, seeds=[seed]), hq) for i, hq in enumerate(photographs) for seed in (i, 1000 + i)]
    mean, sd = BANDS[name]
    assert statistics.mean(values) == pytest.approx(mean, abs=0.35)
    assert statistics.stdev(values) == pytest.approx(sd, abs=0.35)
