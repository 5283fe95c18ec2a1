"""Colours of a result taken from a reference."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib import wrap
from pnp_irib.images.color import ColorMatch
from pnp_irib.options import ColorReference
from pnp_irib.projectors import PixelProjector


def blue(lq: Tensor) -> Tensor:
    """A restorer with a cast, times two."""
    shifted = lq * torch.tensor([0.6, 0.8, 1.0])[:, None, None]
    return torch.nn.functional.interpolate(shifted, scale_factor=2, mode="nearest")


@pytest.mark.parametrize("color", ["adain", "wavelet"])
@pytest.mark.parametrize("reference", ["elq", "lq"])
def test_the_cast_is_taken_back(
    projector: PixelProjector, photo: Tensor, color: ColorMatch, reference: ColorReference
) -> None:
    robust = wrap(blue, projector=projector, scale=2)
    result = robust(photo[..., :40, :48], color=color, color_reference=reference)
    wanted = {"elq": result.picture.rgb, "lq": result.lq}[reference].mean((2, 3))
    assert (result.picture.rgb.mean((2, 3)) - result.lq.mean((2, 3))).abs().max() > 0.01  # else both would pass
    torch.testing.assert_close(result.restored.mean((2, 3)), wanted, atol=0.01, rtol=0)
    assert result.used.color == f"{color} to {reference}"
    assert f"{color} to {reference}" in repr(result)


def test_without_being_asked_nothing_is_changed(projector: PixelProjector, photo: Tensor) -> None:
    robust = wrap(blue, projector=projector, scale=2)
    crop = photo[..., :20, :24]
    plain = robust(crop)
    assert plain.used.color is None
    assert torch.equal(plain.restored, blue(plain.lq).clamp(0, 1))
    none = robust(crop, color="none")
    assert none.used.color is None
    assert torch.equal(none.restored, plain.restored)
