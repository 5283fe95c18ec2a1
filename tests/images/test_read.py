"""Reading picture files: orientation, depth, alpha, colour modes, damage."""

from __future__ import annotations

import os
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
@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
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
    options: dict[str, dict[str, Any]] = {
        "jpg": {"quality": 100, "subsampling": 0},
        "webp": {"lossless": True},
        "avif": {"quality": 100},
    }
    stored.save(path, exif=exif, **options.get(ending, {}))
    picture = read_picture(path)
    assert (picture.rgb - pixels(photo)).abs().mean() < (0.01 if ending in ("jpg", "avif") else 1e-6)
    if ending != "tif":
        assert picture.exif is not None
        kept = Image.Exif()
        kept.load(picture.exif)
        assert 274 not in kept
        assert kept[271] == "a camera"


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


def test_palette_alpha_by_entry(photo: Image.Image, tmp_path: Path) -> None:
    palette = photo.quantize(3)
    palette.save(tmp_path / "a.png", transparency=bytes([0, 100, 255]))
    alpha = read_picture(tmp_path / "a.png").alpha
    assert alpha is not None
    expected = np.array([0, 100, 255], np.float32)[np.asarray(palette)] / np.float32(255)
    assert np.array_equal(alpha[0, 0].numpy(), expected)


def test_a_palette_of_four_channels() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 51, 0, 0, 255, 255], "RGBA")
    image.putpixel((1, 0), 1)
    picture = read_picture(image)
    assert picture.alpha is not None
    assert picture.alpha.flatten().tolist() == pytest.approx([0.2, 1])
    assert picture.rgb[0, 0].flatten().tolist() == [1, 0]


def test_premultiplied_colours_are_divided() -> None:
    picture = read_picture(Image.new("RGBa", (2, 2), (100, 50, 0, 128)))
    assert picture.alpha is not None
    assert (picture.rgb[0, :, 0, 0] * 255).tolist() == pytest.approx([100 / 128 * 255, 50 / 128 * 255, 0], abs=1)
    assert picture.alpha.unique().item() == pytest.approx(128 / 255)
    grey = read_picture(Image.new("La", (2, 2), (64, 128)))
    assert grey.grey
    assert (grey.rgb[0, 0, 0, 0] * 255).item() == pytest.approx(127.5, abs=1)


@pytest.mark.parametrize("profile", [None, b"garbage" * 40, "sRGB"])
def test_inks_of_a_known_colour(tmp_path: Path, profile: bytes | str | None) -> None:
    """Magenta and yellow are red; Adobe's JPEG files store the inks inverted. A profile that does not fit is not used."""
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() if profile == "sRGB" else profile
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100, icc_profile=icc)
    assert b"Adobe" in (tmp_path / "a.jpg").read_bytes()
    picture = read_picture(tmp_path / "a.jpg")
    assert picture.rgb[0, :, 8, 8].tolist() == pytest.approx([1, 0, 0], abs=0.02)
    assert picture.icc_profile is None


def test_lab_of_a_known_colour(tmp_path: Path) -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    converted = ImageCms.profileToProfile(Image.new("RGB", (8, 8), (200, 30, 40)), srgb, lab, outputMode="LAB")
    assert converted is not None
    converted.save(tmp_path / "a.tif")
    picture = read_picture(tmp_path / "a.tif")
    assert (picture.rgb[0, :, 4, 4] * 255).tolist() == pytest.approx([200, 30, 40], abs=4)


def test_a_cut_cmyk_file_is_not_shown_in_part(photo: Image.Image, tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photo.resize((400, 280)).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=profile)
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageFileError, match="truncated"):
        read_picture(tmp_path / "a.jpg")


def test_an_image_of_the_user_stays_as_it_was(photo: Image.Image, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    photo.save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as image:
        first, second = read_picture(image), read_picture(image)
        assert image.getexif()[274] == 6
    assert first.rgb.shape == (1, 3, 40, 28)
    assert torch.equal(first.rgb, second.rgb)
    assert torch.equal(first.rgb, read_picture(tmp_path / "a.jpg").rgb)


@pytest.mark.parametrize("source", ["jpg", "tif"])
def test_exif_keeps_what_it_says_of_the_photograph(photo: Image.Image, tmp_path: Path, source: str) -> None:
    exif = Image.Exif()
    exif[274] = 3
    exif.get_ifd(34665)[36867] = "2020:01:01 00:00:00"
    exif.get_ifd(34853)[1] = "N"
    exif[271] = "a camera"
    photo.save(tmp_path / f"a.{source}", exif=exif.tobytes())
    picture = read_picture(tmp_path / f"a.{source}")
    assert picture.notes == ()
    for ending in ("png", "jpg", "webp", "tif"):
        write_picture(picture.rgb, tmp_path / f"b.{ending}", like=picture)
        with Image.open(tmp_path / f"b.{ending}") as image:
            assert image.size == picture.rgb.shape[:1:-1]
            kept = image.getexif()
            assert 274 not in kept
            assert kept[271] == "a camera"
            assert kept.get_ifd(34665)[36867] == "2020:01:01 00:00:00"
            assert kept.get_ifd(34853)[1] == "N"


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


def test_a_damaged_second_frame_costs_nothing_but_the_count(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.gif", save_all=True, append_images=[photo.rotate(180)])
    content = (tmp_path / "a.gif").read_bytes()
    (tmp_path / "b.gif").write_bytes(content[: content.rindex(b"\x2c" + bytes(4)) + 10])
    picture = read_picture(tmp_path / "b.gif")
    assert torch.equal(picture.rgb, read_picture(tmp_path / "a.gif").rgb)
    assert "first of several frames" in picture.notes


def test_the_frame_that_the_user_chose(photo: Image.Image, tmp_path: Path) -> None:
    photo.save(tmp_path / "a.webp", save_all=True, append_images=[photo.rotate(180)], lossless=True)
    with Image.open(tmp_path / "a.webp") as image:
        image.seek(1)
        picture = read_picture(image)
        assert torch.equal(picture.rgb, pixels(photo.rotate(180)))
        assert picture.notes == ()


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "tif", "gif", "bmp", "avif", "jp2"])
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
