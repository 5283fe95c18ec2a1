"""Whatever a user calls a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_irib.errors import ImageFileError, InputError
from pnp_irib.images.sources import read_source, single_source


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Image.Image:
    with Image.open(shared_dir / "data" / "dev" / "bsd_005.webp") as image:
        return image.convert("RGB").crop((0, 0, 31, 22))


def test_all_ways_to_give_a_picture_agree(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    array = np.asarray(photo)
    tensor = torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)
    ways = [str(tmp_path / "a.png"), tmp_path / "a.png", photo, array, array[None], array / 255, tensor, tensor[None]]
    ways += [read_source(photo), np.asfortranarray(array), array.astype(np.uint16) * 257, tensor.double().requires_grad_()]
    for way in ways:
        rgb = read_source(way).rgb
        assert rgb.dtype == torch.float32
        assert not rgb.requires_grad
        assert torch.equal(rgb, tensor[None])


def test_the_result_is_a_copy() -> None:
    array, tensor = np.zeros((4, 5, 3), np.float32), torch.zeros(1, 3, 4, 5)
    of_array, of_tensor = read_source(array), read_source(tensor)
    array += 1
    tensor += 1
    assert of_array.rgb.max() == of_tensor.rgb.max() == 0


@pytest.mark.parametrize(
    ("array", "grey", "alpha", "bit_depth"),
    [
        (np.full((2, 3), 200, np.uint8), True, False, 8),
        (np.full((2, 3, 2), 200, np.uint8), True, True, 8),
        (np.full((2, 3, 4), 200, np.uint16), False, True, 16),
        (np.full((2, 3, 3), True), False, False, 8),
    ],
)
def test_arrays_say_what_they_are(array: np.ndarray[Any, Any], grey: bool, alpha: bool, bit_depth: int) -> None:
    picture = read_source(array)
    assert (picture.grey, picture.alpha is not None, picture.bit_depth) == (grey, alpha, bit_depth)
    top = {"u1": 255, "u2": 65535, "b1": 1}[array.dtype.str[1:]]
    assert torch.equal(picture.rgb, torch.full((1, 3, 2, 3), float(array.flat[0]) / top))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (torch.zeros(2, 3, 4, 4), "tensor of 2"),
        (torch.zeros(4, 4, 3), "permute"),
        (np.zeros((3, 6, 7), np.uint8), "transpose"),
        (b"bytes", "bytes is not a picture"),
        (None, "NoneType is not a picture"),
    ],
)
def test_what_is_no_picture(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_source(source)


def test_a_missing_file() -> None:
    with pytest.raises(ImageFileError, match="No such file"):
        read_source("absent.png")


@pytest.mark.parametrize("source", [np.zeros((5, 4, 3), np.uint8), torch.zeros(3, 5, 4), Image.new("RGB", (4, 5))])
def test_the_cap_holds_for_all(source: Any) -> None:
    assert read_source(source, max_pixels=20).rgb.shape[-2:] == (5, 4)
    with pytest.raises(InputError, match="above the cap"):
        read_source(source, max_pixels=19)


def test_one_or_several() -> None:
    image = Image.new("RGB", (4, 5))
    for one in ("a.png", image, np.zeros((5, 4, 3)), np.zeros((1, 5, 4, 3)), torch.zeros(3, 5, 4), torch.zeros(1, 3, 5, 4)):
        assert single_source(one)
    for several in ([image], (image, image), np.zeros((2, 5, 4, 3)), torch.zeros(2, 3, 5, 4)):
        assert not single_source(several)
