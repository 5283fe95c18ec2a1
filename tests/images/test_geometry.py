"""Padding, tiling and checks of picture tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pnp_irib.errors import InputError
from pnp_irib.images.padding import pad_to, reflect_pad
from pnp_irib.images.tensors import check_picture, output_size
from pnp_irib.images.tiling import plan_tiles, tile_for_budget, tiled

sides = st.integers(1, 40)


def picture(height: int, width: int) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height * 100 + width))


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(1, 45), st.integers(0, 12))
def test_tiles_of_a_pointwise_function_are_exact(height: int, width: int, tile: int, halo: int) -> None:
    x = picture(height, width)

    def double(part: torch.Tensor) -> torch.Tensor:
        return F.interpolate(part * 0.5, scale_factor=2.0, mode="nearest")

    assert torch.equal(tiled(double, x, tile=tile, halo=halo, scale=2), double(x))


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.integers(1, 45))
def test_a_halo_as_wide_as_the_reach_is_exact(height: int, width: int, tile: int) -> None:
    x = picture(height, width)
    kernel = torch.ones(3, 1, 5, 5) / 25

    def blur(part: torch.Tensor) -> torch.Tensor:
        return F.conv2d(part, kernel, padding=2, groups=3)

    torch.testing.assert_close(tiled(blur, x, tile=tile, halo=2), blur(x), atol=1e-6, rtol=0)


@settings(max_examples=200, deadline=None)
@given(sides, sides, st.integers(1, 45), st.integers(0, 3), st.sampled_from([1, 2, 8]))
def test_cores_cover_every_pixel_once(height: int, width: int, tile: int, halo: int, multiple_of: int) -> None:
    seen = torch.zeros(height, width)
    for core, read in plan_tiles(height, width, tile=tile, halo=halo * multiple_of, multiple_of=multiple_of):
        seen[core[0] : core[1], core[2] : core[3]] += 1
        assert core[0] % multiple_of == core[2] % multiple_of == 0
        assert read[0] % multiple_of == read[2] % multiple_of == 0
        assert max(core[1] - core[0], core[3] - core[2]) < tile + multiple_of
        assert read[0] <= core[0] < core[1] <= read[1]
    assert (seen == 1).all()


def test_what_tiles_leave_behind_does_not_pile_up() -> None:
    held, sizes = [], []

    def wasteful(part: torch.Tensor) -> torch.Tensor:
        sizes.append(resident())
        blocks = [torch.zeros(16_000) for _ in range(1_000)]  # 64 MB in pieces that the allocator keeps
        held.append(blocks[-1])  # and that cannot go by shrinking the heap from its end
        return part

    tiled(wasteful, picture(8, 40), tile=8, halo=0)
    assert len(sizes) == 5
    assert max(sizes) < sizes[0] + 32e6


def resident() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_tile_options_are_checked() -> None:
    with pytest.raises(InputError, match="tile=0"):
        tiled(lambda x: x, picture(4, 4), tile=0, halo=0)


def test_budget() -> None:
    assert tile_for_budget(100, 100, bytes_per_pixel=10, budget=100_000, halo=8) is None
    side = tile_for_budget(1000, 1000, bytes_per_pixel=10, budget=400_000, halo=8)
    assert side == 200 - 16


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), *[st.integers(0, 25)] * 4)
def test_padding_keeps_the_picture_and_reflects_where_it_can(h: int, w: int, a: int, b: int, c: int, d: int) -> None:
    x = picture(h, w)
    padded = reflect_pad(x, (a, b, c, d))
    assert padded.shape[-2:] == (h + c + d, w + a + b)
    assert torch.equal(padded[..., c : c + h, a : a + w], x)
    # Reflection reaches one pixel less than the picture is wide; from there on the last value goes on.
    across = np.clip(np.arange(-a, w + b), 1 - w, 2 * w - 2)
    down = np.clip(np.arange(-c, h + d), 1 - h, 2 * h - 2)
    columns, rows = (w - 1 - abs(w - 1 - abs(across))), (h - 1 - abs(h - 1 - abs(down)))
    assert torch.equal(padded, x[..., rows, :][..., columns])
    if max(a, b) < w and max(c, d) < h:
        assert torch.equal(padded, F.pad(x, (a, b, c, d), mode="reflect"))


def test_pad_to() -> None:
    x = picture(9, 16)
    assert pad_to(x) is x
    assert pad_to(x, multiple_of=8).shape[-2:] == (16, 16)
    assert pad_to(x, multiple_of=8, min_size=17).shape[-2:] == (24, 24)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        (torch.zeros(3, 4, 4), r"shape \(N, 3, H, W\)"),
        (torch.zeros(1, 4, 4, 3), "permute"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "float"),
        (torch.full((1, 3, 4, 4), -0.5), r"\(picture \+ 1\) / 2"),
        (torch.full((1, 3, 4, 4), 200.0), "picture / 255"),
        (torch.full((1, 3, 4, 4), float("nan")), "nan"),
        (torch.zeros(1, 3, 0, 4), "empty"),
    ],
)
def test_wrong_tensors_get_advice(wrong: torch.Tensor, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        check_picture(wrong)


def test_output_size_rounds_as_python_does() -> None:
    assert output_size(5, 7, 1.5) == (round(7.5), round(10.5))
    assert output_size(1, 1, 0.1) == (1, 1)
