from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.errors import InputError
from pnp_irib.projectors import PixelProjector
from pnp_irib.restorer import Restorer
from pnp_irib.wrapper import WrappedRestorer, wrap
from tests.wrapper.models import Doubler, Stated, draw

SIDES = [(h, w) for h in range(1, 9) for w in range(1, 9)]
SIDES += [(1, 65), (65, 1), (65, 65), (64, 33), (9, 10), (11, 63), (13, 17), (16, 15), (31, 2), (3, 47), (48, 49), (50, 5)]
SIDES += [(23, 23), (57, 8), (40, 61)]


def check_sizes(robust: WrappedRestorer, sides: Sequence[tuple[int, int]], scales: Sequence[float]) -> None:
    for height, width in sides:
        for scale in scales:
            result = robust(draw(height, width), scale=scale)
            expected = (max(1, round(height * scale)), max(1, round(width * scale)))
            assert tuple(result.restored.shape) == (1, 3, *expected), (height, width, scale)
            assert result.image.size == expected[::-1]
            assert tuple(result.lq.shape) == (1, 3, height, width)


@pytest.mark.parametrize("scale", [4, 2, 1.5, 3.3, 0.3])
def test_every_size_gives_exactly_the_scaled_size(projector: PixelProjector, scale: float) -> None:
    check_sizes(wrap(Doubler(4), scale=4, multiple_of=8, min_size=16, projector=projector), SIDES, [scale])


def test_sizes_of_a_real_restorer(compact: Restorer, projector: PixelProjector) -> None:
    check_sizes(wrap(compact, projector=projector), [(1, 1), (1, 7), (5, 3), (33, 2), (17, 19)], [4, 3.3])


@pytest.mark.slow
def test_every_size_from_1_to_65(projector: PixelProjector) -> None:
    sides = [(h, w) for h in range(1, 66) for w in range(1, 66)]
    check_sizes(wrap(Doubler(4), scale=4, projector=projector), sides, [4, 2, 1.5, 3.3])


def test_padding_to_what_the_model_accepts() -> None:
    restorer = Stated(multiple_of=8, min_size=24)
    robust = wrap(restorer, projector=None)
    picture = draw(9, 30)
    result = robust(picture)
    assert restorer.seen[-1].shape[-2:] == (24, 32)
    assert torch.equal(restorer.seen[-1][..., :9, :30], picture)
    assert torch.equal(restorer.seen[-1][..., :9, 30], picture[..., 28])  # reflected
    # Nearest enlargement looks at nothing but the pixel: padding must not show.
    assert torch.equal(result.restored, F.interpolate(picture, scale_factor=2.0, mode="nearest"))
    assert torch.equal(robust.restore(picture), result.restored)


@pytest.mark.parametrize("scale", [None, 1, 2, 1.5, 3.3])
def test_padding_of_a_restorer_of_any_scale(scale: float | None) -> None:
    restorer = Stated(scale=None, multiple_of=8)
    for height, width in ((1, 1), (7, 13), (8, 16)):
        picture = draw(height, width)
        restored = wrap(restorer, projector=None)(picture, scale=scale).restored
        factor = scale or 1
        assert restored.shape[-2:] == (max(1, round(height * factor)), max(1, round(width * factor)))
    assert restorer.seen[-2].shape[-2:] == (8, 16)


def test_what_the_padding_hides_is_not_seen() -> None:
    def strict(lq: Tensor) -> Tensor:
        assert lq.shape[-2] % 8 == lq.shape[-1] % 8 == 0, "sides must be multiples of 8"
        return lq

    assert wrap(strict, scale=1, multiple_of=8)(draw(5, 11)).restored.shape == (1, 3, 5, 11)
    with pytest.raises(AssertionError, match="multiples of 8"):
        wrap(strict, scale=1)(draw(5, 11))


def test_tiles_of_a_pointwise_model_do_not_show(projector: PixelProjector) -> None:
    restorer = Stated(tiling="supported", tile_halo=3, multiple_of=4)
    robust = wrap(restorer, projector=None)
    picture = draw(45, 70)
    tiles = robust(picture, tile=16).restored
    assert max(side for seen in restorer.seen for side in seen.shape[-2:]) <= 24
    assert torch.equal(tiles, robust(picture, tile=None).restored)
    assert robust(picture, tile=16).used.tile == 16
    assert robust(picture, tile=70).used.tile is None  # it fits into one


def test_auto_tiles_where_the_budget_asks_for_it() -> None:
    small = wrap(Stated(tiling="supported", bytes_per_pixel=100_000), projector=None)
    assert small(draw(60, 60)).used.tile is None
    assert small(draw(90, 90)).used.tile == 64  # 810 MB untiled
    assert wrap(Stated(bytes_per_pixel=100_000), projector=None)(draw(90, 90)).used.tile is None  # tiling is discouraged
    with pytest.raises(InputError, match="cannot be tiled from outside; leave tile='auto'"):
        wrap(Stated(tiling="internal"), projector=None)(draw(90, 90), tile=32)


def test_a_tiled_photograph_is_within_1_of_untiled(compact: Restorer, photo: Tensor) -> None:
    robust = wrap(compact, projector=None)
    crop = photo[..., 20:130, 10:125]
    tiles = robust(crop, tile=64)
    assert tiles.used.tile == 64
    assert (tiles.restored - robust(crop, tile=None).restored).abs().max() < 1 / 255


def test_a_restorer_that_gives_another_size_is_told() -> None:
    class Wrong(Stated):
        def restore(self, lq: Tensor, **_: Any) -> Tensor:
            return lq

    with pytest.raises(InputError, match=r"stated gave \(1, 3, 4, 5\), expected \(1, 3, 8, 10\)"):
        wrap(Wrong(), projector=None)(draw(4, 5))


def test_the_scale_that_a_restorer_of_any_scale_chose_is_told() -> None:
    class Own(Stated):
        def restore(self, lq: Tensor, **options: Any) -> Tensor:
            return super().restore(lq, **(options | {"scale": 3}))

    result = wrap(Own(scale=None), projector=None)(draw(4, 5))
    assert result.used.scale == 3
