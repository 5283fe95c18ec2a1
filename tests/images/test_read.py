"""Reading picture files: orientation, depth, alpha, colour modes, damage."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from pnp_irib.errors import ImageFileError, InputError
from pnp_irib.images.io import picture_from_array, read_picture, write_picture


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Image.Image:
    with Image.open(shared_dir / "data" / "dev" / "kodak_01.webp") as image:
        return image.convert("RGB").crop((0, 0, 40, 28))


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image.convert("RGB"), np.float32).copy()).permute(2, 0, 1)[None] / 255


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_once_and_dropped(photo: Image.Image, tmp_path: Path, orientation: int, ending: str) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = photo.transpose(undo[orientation]) if orientation in undo else photo
    exif = Image.Exif()
    exif[274] = orientation
    exif[271] = "a camera"
    path = tmp_path / f"a.{ending}"
    options: dict[str, dict[str, Any]] = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True}}
    stored.save(path, exif=exif, **options.get(ending, {}))
    picture = read_picture(path)
    assert (picture.rgb - pixels(photo)).abs().mean() < (0.01 if ending == "jpg" else 1e-6)
    if ending != "tif":
        assert picture.exif is not None
        kept = Image.Exif()
        kept.load(picture.exif)
        assert 274 not in kept
        assert kept[271] == "a camera"


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("top", [65535, 200])
def test_16_bit_png_keeps_every_bit(tmp_path: Path, channels: int, top: int) -> None:
    levels = np.random.default_rng(0).integers(0, top + 1, (13, 17, channels), dtype=np.uint16)
    picture = picture_from_array(levels)
    write_picture(picture.rgb, tmp_path / "a.png", alpha=picture.alpha, like=picture)
    again = read_picture(tmp_path / "a.png")
    assert again.bit_depth == 16  # also where all values are dark
    assert again.grey == (channels < 3)
    found = torch.cat([again.rgb[:, :1] if channels < 3 else again.rgb, *([] if again.alpha is None else [again.alpha])], 1)
    assert np.array_equal((found[0] * 65535).round().permute(1, 2, 0).numpy().astype(np.uint16), levels)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_rgb_tiff(tmp_path: Path, order: str) -> None:
    levels = np.random.default_rng(1).integers(0, 65536, (5, 7, 3), dtype=np.uint16)
    path = tmp_path / "a.tif"
    path.write_bytes(rgb16_tiff(levels, order))
    picture = read_picture(path)
    assert picture.bit_depth == 16
    assert np.array_equal((picture.rgb[0] * 65535).round().permute(1, 2, 0).numpy().astype(np.uint16), levels)


def rgb16_tiff(levels: np.ndarray[Any, Any], order: str) -> bytes:
    """A baseline TIFF, written by hand, since Pillow cannot."""
    height, width, _ = levels.shape
    data = levels.astype(f"{order}u2").tobytes()
    bits_at = 8 + 2 + 9 * 12 + 4
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 3, bits_at),
        (259, 3, 1, 1),
        (262, 3, 1, 2),
        (273, 4, 1, bits_at + 6),
        (277, 3, 1, 3),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    out = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8) + struct.pack(f"{order}H", len(tags))
    for tag, kind, count, value in tags:
        packed = struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value)
        out += struct.pack(f"{order}HHI", tag, kind, count) + packed
    return out + struct.pack(f"{order}I", 0) + struct.pack(f"{order}HHH", 16, 16, 16) + data


def test_alpha_palette_and_grey(photo: Image.Image, tmp_path: Path) -> None:
    alpha = Image.linear_gradient("L").resize(photo.size)
    see_through = photo.copy()
    see_through.putalpha(alpha)
    see_through.save(tmp_path / "rgba.png")
    picture = read_picture(tmp_path / "rgba.png")
    assert picture.alpha is not None
    assert torch.equal(picture.alpha[0, 0], torch.from_numpy(np.asarray(alpha, np.float32) / 255))
    assert torch.equal(picture.rgb, pixels(photo))

    palette = photo.quantize(16)
    palette.save(tmp_path / "p.png", transparency=3)
    picture = read_picture(tmp_path / "p.png")
    assert picture.alpha is not None
    clear = torch.from_numpy(np.asarray(palette) == 3)
    assert torch.equal(picture.alpha[0, 0] == 0, clear)

    photo.convert("L").save(tmp_path / "grey.png")
    picture = read_picture(tmp_path / "grey.png")
    assert picture.grey
    assert torch.equal(picture.rgb[0, 0], picture.rgb[0, 2])
    write_picture(picture.rgb, tmp_path / "again.png", like=picture)
    with Image.open(tmp_path / "again.png") as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.asarray(photo.convert("L")))

    photo.convert("1").save(tmp_path / "one.png")
    assert set(read_picture(tmp_path / "one.png").rgb.unique().tolist()) == {0.0, 1.0}


def test_cmyk_becomes_rgb_with_a_note(photo: Image.Image, tmp_path: Path) -> None:
    photo.convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.rgb - pixels(photo)).abs().mean() < 0.02
    assert "CMYK converted to RGB" in picture.notes


def test_colour_profile_survives_only_where_it_fits(photo: Image.Image, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.save(tmp_path / "a.png", icc_profile=profile)
    picture = read_picture(tmp_path / "a.png")
    assert picture.icc_profile == profile
    for ending in ("png", "jpg", "webp", "tif"):
        write_picture(picture.rgb, tmp_path / f"b.{ending}", like=picture)
        with Image.open(tmp_path / f"b.{ending}") as image:
            assert image.info["icc_profile"] == profile
    photo.convert("L").save(tmp_path / "grey.png", icc_profile=profile)
    grey = read_picture(tmp_path / "grey.png")
    assert grey.icc_profile is None
    assert any("profile" in note for note in grey.notes)


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_animations_give_their_first_frame(photo: Image.Image, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    frames = [photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    options: dict[str, Any] = {"lossless": True} if ending == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    picture = read_picture(path)
    assert (picture.rgb - pixels(photo)).abs().mean() < 0.03
    assert "first of 2 frames" in picture.notes


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_truncated_files_are_one_line(photo: Image.Image, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    photo.save(path)
    content = path.read_bytes()
    for share in (0.0, 0.05, 0.5, 0.8):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageFileError) as error:
            read_picture(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)


def test_what_is_no_picture(tmp_path: Path) -> None:
    text = tmp_path / "a.png"
    text.write_text("not a picture")
    with pytest.raises(ImageFileError, match="not a picture that can be read"):
        read_picture(text)
    with pytest.raises(ImageFileError, match="is a folder"):
        read_picture(tmp_path)
    with pytest.raises(ImageFileError, match="No such file"):
        read_picture(tmp_path / "absent.png")
    eps = tmp_path / "a.eps"
    eps.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    with pytest.raises(ImageFileError, match="EPS file by its ending"):
        read_picture(eps)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageFileError, match="device or pipe"):
        read_picture(tmp_path / "pipe.png")


def bomb(width: int, height: int) -> bytes:
    """A PNG of zeros: few bytes for any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(1 + 3 * width)) for _ in range(min(height, 2000))) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 20_000])
def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(side, side))
    code = (
        "import resource, sys\n"
        "from pnp_irib.images.io import read_picture\n"
        "from pnp_irib.errors import ImageFileError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    read_picture(sys.argv[1])\nexcept ImageFileError as error:\n    print(error)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    message, grown = ran.stdout.strip().splitlines()
    assert "megapixels, above the cap" in message or "megapixels, twice the cap" in message
    assert int(grown) < 30
    assert ran.stderr == ""


def test_the_cap_is_an_option(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=40 * 28).rgb.shape == (1, 3, 28, 40)
    with pytest.raises(ImageFileError, match="above the cap"):
        read_picture(tmp_path / "a.png", max_pixels=40 * 28 - 1)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 4), np.float32) + 2, r"\[2, 2\]"),
        (np.full((4, 4), np.nan), "nan"),
        (np.zeros((2, 4, 4, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4), np.int64), "int64"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray[Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        picture_from_array(array)
