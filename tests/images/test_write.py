"""Writing picture files: whole or not at all, and never over the input."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pnp_irib.errors import ConfigError, ImageFileError, InputError
from pnp_irib.files import atomic_file
from pnp_irib.images.io import read_picture, write_picture


def noise(height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_lossless_formats_round_to_the_nearest_level(tmp_path: Path, ending: str) -> None:
    rgb = noise()
    assert write_picture(rgb, tmp_path / f"a.{ending}") == ()
    assert torch.equal(read_picture(tmp_path / f"a.{ending}").rgb, (rgb * 255).round() / 255)


def test_values_outside_the_range_are_clamped(tmp_path: Path) -> None:
    write_picture(noise() * 3 - 1, tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png").rgb, ((noise() * 3 - 1).clamp(0, 1) * 255).round() / 255)


def test_the_input_is_never_written_over(tmp_path: Path) -> None:
    source = tmp_path / "a.png"
    write_picture(noise(), source)
    before = source.read_bytes()
    picture = read_picture(source)
    (tmp_path / "link.png").symlink_to(source)
    os.link(source, tmp_path / "hard.png")
    for name in ("a.png", "link.png", "hard.png"):
        with pytest.raises(ImageFileError, match="never written over"):
            write_picture(torch.zeros_like(picture.rgb), tmp_path / name, like=picture)
    assert source.read_bytes() == before


def test_transparency_over_white_where_the_format_has_none(tmp_path: Path) -> None:
    alpha = torch.zeros(1, 1, 20, 30)
    notes = write_picture(torch.zeros(1, 3, 20, 30), tmp_path / "a.jpg", alpha=alpha)
    assert read_picture(tmp_path / "a.jpg").rgb.min() > 0.98
    assert any("transparency" in note for note in notes)


def test_jpeg_keeps_full_colour_resolution(tmp_path: Path) -> None:
    rgb = torch.zeros(1, 3, 16, 16)
    rgb[:, 0, :, ::2] = 1  # red and black columns, one pixel wide
    write_picture(rgb, tmp_path / "a.jpg", quality=100)
    assert (read_picture(tmp_path / "a.jpg").rgb - rgb).abs().max() < 0.05


@pytest.mark.parametrize("quality", [0, 101, 9.5])
def test_qualities_that_are_none(tmp_path: Path, quality: int) -> None:
    with pytest.raises(ConfigError, match="from 1 to 100"):
        write_picture(noise(), tmp_path / "a.jpg", quality=quality)


@pytest.mark.parametrize(("name", "message"), [("a.gif", "cannot be written"), ("a", "cannot be written")])
def test_formats_that_cannot_be_written(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ImageFileError, match=message):
        write_picture(noise(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_too_large_for_the_format(tmp_path: Path) -> None:
    with pytest.raises(ImageFileError, match=r"holds at most 16383.*Use \.png"):
        write_picture(torch.zeros(1, 3, 1, 16_384), tmp_path / "a.webp")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing_and_an_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    target.write_bytes(b"old")
    with contextlib.suppress(ZeroDivisionError), atomic_file(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(ImageFileError, match="cannot be written"):
        write_picture(noise(), tmp_path / "absent" / "a.png")


def test_a_kill_leaves_no_half_file(tmp_path: Path) -> None:
    target = tmp_path / "a.png"
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom pnp_irib.images.io import write_picture\n"
        "picture = torch.rand(1, 3, 2000, 2000)\nprint('ready', flush=True)\n"
        "while True:\n    write_picture(picture, Path(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(target)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    while not list(tmp_path.glob(".a.png.*.part")):
        time.sleep(0.001)
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if target.exists():
        with Image.open(target) as image:
            image.load()


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageFileError, match="in its place"):
        write_picture(noise(), tmp_path / "a.png")
    assert (tmp_path / "a.png").is_fifo()


def test_metadata_that_the_format_cannot_hold_is_dropped_with_a_note(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[271] = "x" * 70_000  # a JPEG marker ends at 65,533
    like = replace(read_picture(Image.new("L", (30, 20))), exif=exif.tobytes(), icc_profile=bytes(16) + b"GRAY" + bytes(200))
    for ending, left_out in {"png": "", "jpg": "EXIF", "webp": "profile", "tif": "", "bmp": "profile EXIF"}.items():
        notes = write_picture(noise(), tmp_path / f"a.{ending}", like=like)
        assert len(notes) == len(left_out.split())
        assert all(any(word in note for note in notes) for word in left_out.split())
        with Image.open(tmp_path / f"a.{ending}") as image:
            assert ("icc_profile" in image.info) == ("profile" not in left_out)
            if ending != "tif":
                assert (271 in image.getexif()) == ("EXIF" not in left_out)


def test_grey_is_the_luma_of_what_the_model_returned(tmp_path: Path) -> None:
    like = read_picture(Image.new("L", (30, 20)))
    write_picture(noise(), tmp_path / "a.png", like=like)
    with Image.open(tmp_path / "a.png") as image:
        found = torch.from_numpy(np.asarray(image).astype(np.float32))
    red, green, blue = noise()[0]
    assert torch.equal(found, ((0.299 * red + 0.587 * green + 0.114 * blue) * 255).round())


def test_tall_pictures_are_converted_in_strips(tmp_path: Path) -> None:
    tall = noise(2**16, 100)  # 2**22 values are converted at a time
    write_picture(tall, tmp_path / "a.png", alpha=tall[:, :1])
    picture = read_picture(tmp_path / "a.png")
    assert picture.alpha is not None
    assert torch.equal(torch.cat((picture.rgb, picture.alpha), 1), (torch.cat((tall, tall[:, :1]), 1) * 255).round() / 255)


def test_values_that_are_not_numbers_are_not_written(tmp_path: Path) -> None:
    rgb = noise()
    rgb[0, 1, 5, 5] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        write_picture(rgb, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_with_gradients_is_written(tmp_path: Path) -> None:
    write_picture(noise().requires_grad_(), tmp_path / "a.png")
    assert torch.equal(read_picture(tmp_path / "a.png").rgb, (noise() * 255).round() / 255)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_picture(noise(), tmp_path / "a.png")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o644
