from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.errors import ConfigError, ImageFileError, InputError
from pnp_irib.projectors import PixelProjector
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import Restorer
from pnp_irib.result import Restoration, Restorations
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Doubler, Stated, draw


def test_every_kind_of_input_is_the_same_picture(projector: PixelProjector, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    path = tmp_path / "picture.png"
    Image.fromarray(levels).save(path)
    tensor = torch.from_numpy(levels).permute(2, 0, 1) / 255
    sources: list[Any] = [
        path,
        str(path),
        Image.fromarray(levels),
        levels,
        levels.astype(np.uint16) * 257,
        levels.astype(np.float32) / 255,
        levels[None],
        tensor,
        tensor[None],
        tensor.double(),
    ]
    robust = wrap(Doubler(), scale=2, projector=projector)
    expected = robust(tensor)
    assert isinstance(expected, Restoration)
    many = robust(sources)
    assert isinstance(many, Restorations)
    for source, among in zip(sources, many, strict=True):
        alone = robust(source)
        assert isinstance(alone, Restoration)
        assert torch.equal(alone.restored, among.restored)
        torch.testing.assert_close(alone.restored, expected.restored, atol=1e-6, rtol=0)
    assert [image.size for image in many.images] == [(10, 12)] * len(sources)
    assert expected.images[0].size == (10, 12)


def test_a_tensor_of_several_is_several(projector: PixelProjector) -> None:
    batch = torch.cat([draw(6, 7, seed) for seed in range(3)])
    robust = wrap(Doubler(), scale=2, projector=projector)
    many = robust(batch)
    assert isinstance(many, Restorations)
    for i in range(3):
        assert torch.equal(many[i].restored, robust(batch[i]).restored)
    arrays = robust(batch.permute(0, 2, 3, 1).numpy())
    assert len(arrays) == 3
    assert robust([]) == []


def test_alone_is_the_same_as_in_a_list(compact: Restorer, projector: PixelProjector, photo: Tensor) -> None:
    robust = wrap(compact, projector=projector, extractor=lambda pictures: [f"level {round(float(pictures.mean()) * 50)}"])
    pictures = [photo[..., :12, :9], photo[..., 30:47, 30:41], photo[..., :1, :1]]
    prompts = ["a house", None, Prompt("sea")]
    together = robust(pictures, prompt=prompts, lfo=1, seed=3)
    for picture, prompt, one in zip(pictures, prompts, together, strict=True):
        alone = robust(picture, prompt=prompt, lfo=1, seed=3)
        assert torch.equal(alone.restored, one.restored)
        assert torch.equal(alone.lq, one.lq)
        assert alone.prompt == one.prompt


def test_alpha_and_grey_come_through(tmp_path: Path) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    result = wrap(Stated(), projector=None)(Image.fromarray(rgba))
    assert result.alpha is not None
    assert result.alpha.shape == (1, 1, 12, 10)
    assert result.image.mode == "RGBA"
    assert wrap(Stated(), projector=None)(rgba[..., 0]).image.mode == "L"


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (torch.rand(2, 5, 5), r"\(N, 3, H, W\)"),
        (torch.rand(3, 5, 5) * 255, "picture / 255"),
        (torch.rand(3, 5, 5) - 0.5, r"\(picture \+ 1\) / 2"),
        (torch.full((3, 5, 5), float("nan")), "nan"),
        (torch.zeros(3, 0, 5), "empty"),
        (torch.zeros(3, 5, 5, dtype=torch.uint8), "From 8 bit"),
        (np.zeros((3, 5, 5), np.float32), r"array.transpose\(1, 2, 0\)"),
        (np.full((5, 5, 3), 200.0), "array / 255"),
        (np.zeros((5, 5, 3), np.int32), "expected uint8"),
        (12, "Give a path, a PIL image"),
        (None, "Give a path, a PIL image"),
        ([draw(3, 3), 12], "Give a path, a PIL image"),
    ],
)
def test_what_is_no_picture_is_refused_with_advice(source: Any, advice: str) -> None:
    with pytest.raises(InputError, match=advice):
        wrap(Stated(), projector=None)(source)


def test_missing_file() -> None:
    with pytest.raises(ImageFileError, match=r"absent\.png cannot be read: No such file"):
        wrap(Stated(), projector=None)("absent.png")


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"scale": 0}, "above 0, at most 64"),
        ({"scale": float("nan")}, "above 0, at most 64"),
        ({"scale": 65}, "above 0, at most 64"),
        ({"scale": "2"}, "above 0, at most 64"),
        ({"scale": True}, "above 0, at most 64"),
        ({"strength": 1.1}, "0 is the restorer alone, 1 the full projection"),
        ({"strength": float("nan")}, "0 is the restorer alone"),
        ({"strength": "1"}, "0 is the restorer alone"),
        ({"seed": -1}, "whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"color": "sepia"}, "adain, wavelet, none"),
        ({"color": "adain", "color_reference": "hq"}, "the projector's estimate"),
        ({"tile": 8}, "at least 16 pixels"),
        ({"tile": "big"}, "expected 'auto', None"),
        ({"tile": True}, "expected 'auto', None"),
        ({"lfo": -1}, "whole number from 0"),
        ({"prompt": ["a", "b"]}, "2 prompts for 1 pictures; give one for all, or one each"),
        ({"prompt": 3}, "expected a string, a Prompt"),
        ({"max_pixels": 20}, "above the cap of 20"),
        ({"max_output_pixels": 99}, "raise max_output_pixels"),
    ],
)
def test_options_out_of_range_are_refused_with_advice(projector: PixelProjector, options: dict[str, Any], advice: str) -> None:
    with pytest.raises((InputError, ConfigError), match=advice):
        wrap(Stated(), projector=projector)(draw(5, 5), **options)


def test_as_a_restorer_too_it_refuses_an_impossible_scale(projector: PixelProjector) -> None:
    with pytest.raises(InputError, match="above 0, at most 64"):
        wrap(Stated(), projector=projector).restore(draw(5, 5), scale=-1)


def test_every_source_keeps_the_cap(tmp_path: Path) -> None:
    levels = np.zeros((5, 5, 3), np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", Image.fromarray(levels), levels, torch.zeros(3, 5, 5)):
        with pytest.raises(InputError, match=r"cap of 24|pixels"):
            wrap(Stated(), projector=None)(source, max_pixels=24)
        assert wrap(Stated(), projector=None)(source, max_pixels=25).restored.shape == (1, 3, 10, 10)


def test_prompts_that_do_not_match(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    with pytest.raises(InputError, match="1 prompts for 2 pictures; give one for all, or one each"):
        robust([draw(3, 3), draw(3, 3)], prompt=["a"])
    with pytest.raises(InputError, match="1 prompts for 2 pictures; give one for all"):
        robust.restore(draw(3, 3).repeat(2, 1, 1, 1), prompts=[Prompt("a")])


def test_numbers_and_arrays_of_numpy(projector: PixelProjector) -> None:
    robust = wrap(Stated(), projector=projector)
    picture = np.random.default_rng(0).integers(0, 2**16, (5, 6, 3), dtype=np.uint16)
    given: Any = {
        "strength": np.float32(0.5),
        "seed": np.int64(3),
        "scale": np.int64(2),
        "tile": np.int64(32),
        "lfo": np.int64(0),
    }
    expected = robust(picture, strength=0.5, seed=3, scale=2).restored
    assert torch.equal(robust(picture, **given).restored, expected)
    assert torch.equal(robust(picture.astype(">u2"), **given).restored, expected)


def test_an_output_that_would_be_too_large_is_told_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (60, 40)).save(path)
    path.write_bytes(path.read_bytes()[:50])  # its pixels are missing
    with pytest.raises(InputError, match="the output would be 120x80"):
        wrap(Doubler(), scale=2, projector=None)(path, max_output_pixels=9_599)
