from __future__ import annotations

import torch
from scipy.ndimage import gaussian_filter

from pnp_irib.images.blur import gaussian_blur


def test_blur_agrees_with_scipy() -> None:
    picture = torch.rand(2, 3, 21, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = gaussian_blur(picture, 1.5)
    # scipy calls reflection without the edge pixel "mirror"; radius ceil(3 sigma)
    theirs = gaussian_filter(picture.numpy(), (0, 0, 1.5, 1.5), mode="mirror", radius=(0, 0, 5, 5))
    torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-12, rtol=0)
