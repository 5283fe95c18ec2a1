"""16-bit files, in every layout that scanners and raw converters write, value for value."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_irib.errors import ImageFileError
from pnp_irib.images.io import Picture, picture_from_array, read_picture, write_picture

Array = np.ndarray[Any, Any]


def random_levels(channels: int, top: int = 65535) -> Array:
    return np.random.default_rng(0).integers(0, top + 1, (13, 17, channels), dtype=np.uint16)


def levels_of(picture: Picture) -> Array:
    assert picture.bit_depth == 16
    colour = picture.rgb[:, :1] if picture.grey else picture.rgb
    planes = colour if picture.alpha is None else torch.cat((colour, picture.alpha), 1)
    return (planes[0].permute(1, 2, 0).numpy() * 65535).round().astype(np.uint16)


def tiff(
    levels: Array,
    *,
    order: str = "<",
    compressed: bool = False,
    predictor: bool = False,
    planar: bool = False,
    rows: int = 5,
    orientation: int = 1,
    photometric: int | None = None,
) -> bytes:
    """A baseline TIFF of strips, written by hand, since Pillow cannot."""
    height, width, channels = levels.shape
    if predictor:  # each sample as the difference to its left neighbour
        levels = np.concatenate((levels[:, :1], levels[:, 1:] - levels[:, :-1]), 1)
    planes = [levels[..., c : c + 1] for c in range(channels)] if planar else [levels]
    strips = [plane[top : top + rows].astype(f"{order}u2").tobytes() for plane in planes for top in range(0, height, rows)]
    strips = [zlib.compress(strip) for strip in strips] if compressed else strips
    if photometric is None:
        photometric = 2 if channels > 2 else 1
    tags: dict[int, tuple[int, list[int]]] = {
        256: (3, [width]),
        257: (3, [height]),
        258: (3, [16] * channels),
        259: (3, [8 if compressed else 1]),
        262: (3, [photometric]),
        273: (4, []),
        274: (3, [orientation]),
        277: (3, [channels]),
        278: (3, [rows]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        317: (3, [2 if predictor else 1]),
    }
    if channels == 4:
        tags[338] = (3, [2])
    at = 8
    offsets = []
    for strip in strips:
        offsets.append(at)
        at += len(strip)
    tags[273] = (4, offsets)
    directory_at = at + at % 2
    beyond_at = directory_at + 2 + 12 * len(tags) + 4
    directory, beyond = struct.pack(f"{order}H", len(tags)), b""
    for tag, (kind, values) in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        if len(packed) > 4:
            place = struct.pack(f"{order}I", beyond_at + len(beyond))
            beyond += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        directory += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    header = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory_at)
    return header + b"".join(strips) + bytes(at % 2) + directory + bytes(4) + beyond


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("top", [65535, 200])
def test_png_in_and_out(tmp_path: Path, channels: int, top: int) -> None:
    levels = random_levels(channels, top)
    picture = picture_from_array(levels)
    write_picture(picture.rgb, tmp_path / "a.png", alpha=picture.alpha, like=picture)
    again = read_picture(tmp_path / "a.png")  # 16 bit also where all values are dark
    assert again.grey == (channels < 3)
    assert np.array_equal(levels_of(again), levels)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compressed", "predictor"), [(False, False), (True, False), (True, True)])
def test_tiff(tmp_path: Path, channels: int, order: str, compressed: bool, predictor: bool) -> None:
    levels = random_levels(channels)
    (tmp_path / "a.tif").write_bytes(tiff(levels, order=order, compressed=compressed, predictor=predictor))
    assert np.array_equal(levels_of(read_picture(tmp_path / "a.tif")), levels)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_tiff_is_turned_once(tmp_path: Path, compressed: bool, orientation: int, turns: int) -> None:
    levels = random_levels(3)
    (tmp_path / "a.tif").write_bytes(tiff(levels, compressed=compressed, orientation=orientation))
    assert np.array_equal(levels_of(read_picture(tmp_path / "a.tif")), np.rot90(levels, turns))


def test_tiff_whose_zero_is_white(tmp_path: Path) -> None:
    levels = random_levels(1)
    (tmp_path / "a.tif").write_bytes(tiff(65535 - levels, photometric=0))
    assert np.array_equal(levels_of(read_picture(tmp_path / "a.tif")), levels)


def test_tiff_in_planes_is_never_misread(tmp_path: Path) -> None:
    levels = random_levels(3)
    (tmp_path / "a.tif").write_bytes(tiff(levels, planar=True, compressed=True))
    picture = read_picture(tmp_path / "a.tif")
    assert picture.bit_depth == 8
    assert "16-bit values read with 8 bits" in picture.notes
    assert np.array_equal((picture.rgb[0] * 255).round().permute(1, 2, 0).numpy(), levels >> 8)
    (tmp_path / "a.tif").write_bytes(tiff(levels, planar=True))
    with pytest.raises(ImageFileError, match="planes that are not compressed"):
        read_picture(tmp_path / "a.tif")


def test_12_bit_tiff_reaches_white(tmp_path: Path) -> None:
    values = np.array([[0, 4095, 2048, 1]])
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[0, ::2], values[0, 1::2], strict=True)
    )
    content = bytearray(tiff(np.zeros((1, 3, 1), np.uint16)))  # as many bytes as four values of 12 bits
    content[8 : 8 + 6] = packed
    where = content.index(struct.pack("<HHIH", 256, 3, 1, 3))
    content[where + 8 : where + 10] = struct.pack("<H", 4)
    where = content.index(struct.pack("<HHIH", 258, 3, 1, 16))
    content[where + 8 : where + 10] = struct.pack("<H", 12)
    (tmp_path / "a.tif").write_bytes(content)
    picture = read_picture(tmp_path / "a.tif")
    assert torch.equal(picture.rgb[0, 0], torch.tensor(values / 4095, dtype=torch.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_png_with_one_transparent_colour(tmp_path: Path, channels: int) -> None:
    """The colour is compared with all 16 bits: its neighbour, equal in the upper eight, stays opaque."""
    levels = np.full((2, 2, channels), 0x1234, np.uint16)
    levels[0, 0] = 0x1235
    picture = picture_from_array(levels)
    write_picture(picture.rgb, tmp_path / "a.png", like=picture)
    key = struct.pack(f">{channels}H", *[0x1235] * channels)
    chunk = struct.pack(">I", len(key)) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    content = (tmp_path / "a.png").read_bytes()
    place = content.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(content[:place] + chunk + content[place:])
    again = read_picture(tmp_path / "a.png")
    assert again.alpha is not None
    assert again.alpha[0, 0].tolist() == [[0, 1], [1, 1]]
    assert np.array_equal(levels_of(again)[..., :-1], levels)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_open_image_can_be_used_afterwards(tmp_path: Path, channels: int) -> None:
    levels = random_levels(channels)
    picture = picture_from_array(levels)
    write_picture(picture.rgb, tmp_path / "a.png", like=picture)
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(levels_of(read_picture(image)), levels)
        pixels = np.asarray(image)
    assert np.array_equal(pixels, levels[..., 0] if channels == 1 else levels >> 8)


def test_pgm(tmp_path: Path) -> None:
    levels = random_levels(1)
    (tmp_path / "a.pgm").write_bytes(b"P5 17 13 65535\n" + levels.astype(">u2").tobytes())
    assert np.array_equal(levels_of(read_picture(tmp_path / "a.pgm")), levels)


def test_formats_of_8_bits_say_so(tmp_path: Path) -> None:
    picture = picture_from_array(random_levels(3))
    for ending in ("jpg", "tif", "webp", "bmp"):
        assert any("8 of 16 bits" in note for note in write_picture(picture.rgb, tmp_path / f"a.{ending}", like=picture))


def test_pixels_that_do_not_say_what_white_is(tmp_path: Path) -> None:
    for mode in ("I", "F"):
        Image.new(mode, (4, 4), 3).save(tmp_path / "a.tif")
        with pytest.raises(ImageFileError, match=r"a\.tif: .* 3.*Convert it to 8 or 16 bit"):
            read_picture(tmp_path / "a.tif")
    Image.new("F", (4, 4), 0.25).save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").rgb.unique().tolist() == [0.25]
