"""Random streams that belong to one picture."""

from __future__ import annotations

import pytest
import torch

from pnp_irib.noise import SeededNoise, picture_seed


def test_the_seed_of_a_picture_depends_on_seed_and_name_alone() -> None:
    assert picture_seed(0, "a.png") == 55796236582036493
    assert len({picture_seed(seed, name) for seed in range(3) for name in ("a.png", "b.png", "A.png")}) == 9


def test_accents_are_the_same_however_they_are_stored() -> None:
    assert picture_seed(0, "caf\u00e9.png") == picture_seed(0, "cafe\u0301.png")
    assert picture_seed(0, "caf\udce9.png") != picture_seed(0, "caf\u00e9.png")  # a byte that is no Unicode


def test_noise_does_not_depend_on_the_neighbours() -> None:
    def drawn(*seeds: int) -> torch.Tensor:
        return SeededNoise(seeds).normal((len(seeds), 3, 4, 5), device=torch.device("cpu"), dtype=torch.float32)

    assert torch.equal(drawn(7, 8)[1], drawn(8)[0])
    assert not torch.equal(drawn(7)[0], drawn(8)[0])
    with pytest.raises(ValueError, match="3 pictures"):
        SeededNoise([1, 2]).normal((3, 1), device=torch.device("cpu"), dtype=torch.float32)
