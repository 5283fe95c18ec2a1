"""Colours taken from a reference."""

from __future__ import annotations

import pytest
import torch

from pnp_irib.images import color


def test_wavelet_in_strips_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    picture, reference = torch.rand(2, 2, 3, 300, 40, generator=torch.Generator().manual_seed(0))
    whole = color.wavelet(picture, reference)
    monkeypatch.setattr(color, "_STRIP_PIXELS", 40)
    strips = color.wavelet(picture, reference)
    torch.testing.assert_close(strips, whole, atol=1e-6, rtol=0)
    assert not torch.equal(strips, picture)
