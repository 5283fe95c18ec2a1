from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pnp_irib.noise import SeededNoise
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Stated, draw
from tests.wrapper.state import generators, same


def test_a_stochastic_model_follows_the_seed() -> None:
    def noisy(lq: Tensor) -> Tensor:
        return (lq + 0.1 * torch.randn_like(lq)).clamp(0, 1)

    robust = wrap(noisy, scale=1, projector=None)
    pictures, state = [draw(8, 8), draw(4, 4, 1), draw(8, 8)], generators()
    first, second = robust(pictures, seed=4), robust(pictures, seed=4)
    assert same(generators(), state)
    for a, b, picture in zip(first, second, pictures, strict=True):
        assert torch.equal(a.restored, b.restored)
        assert torch.equal(a.restored, robust(picture, seed=4).restored)
    assert not torch.equal(robust(pictures[0], seed=5).restored, first[0].restored)


def test_numpy_tells_large_seeds_apart() -> None:
    def noisy(lq: Tensor) -> Tensor:
        return (lq + 0.1 * np.random.standard_normal()).clamp(0, 1)  # noqa: NPY002 - what models of users draw from

    robust = wrap(noisy, scale=1, projector=None)
    assert not torch.equal(robust(draw(8, 8), seed=3).restored, robust(draw(8, 8), seed=3 + 2**32).restored)


def test_a_stochastic_model_follows_the_noise_source_in_a_batch() -> None:
    def noisy(lq: Tensor) -> Tensor:
        return lq + 0.1 * torch.randn_like(lq)

    robust = wrap(noisy, scale=1, projector=None)
    batch = torch.cat((draw(4, 4), draw(4, 4, 1)))
    together = robust.restore(batch, noise=SeededNoise([7, 8]))
    for i, seed in enumerate((7, 8)):
        assert torch.equal(together[i : i + 1], robust.restore(batch[i : i + 1], noise=SeededNoise([seed])))


def test_restorers_draw_from_the_seed() -> None:
    robust = wrap(Stated(deterministic=False), projector=None)
    by_hand = robust.restore(draw(5, 5), noise=SeededNoise([1])).clamp(0, 1)
    assert torch.equal(robust(draw(5, 5), seed=1).restored, by_hand)
    a, b, c = (robust(draw(5, 5), seed=seed).restored for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
