"""Nothing that Pillow does or says gets past `read_picture`."""

from __future__ import annotations

import logging
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pnp_irib.errors import ImageFileError, InputError
from pnp_irib.images.guard import one_line, quiet
from pnp_irib.images.io import read_picture, write_picture


def png(width: int, height: int, *extra: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *extra, (b"IDAT", data), (b"IEND", b"")]
    framed = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def zeros(mib: int) -> bytes:
    packer = zlib.compressobj(9)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(mib)) + packer.flush()


def webp(width: int, height: int) -> bytes:
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"VP8X" + struct.pack("<I", 10) + b"\2\0\0\0" + size + b"ANIM" + struct.pack("<I", 6) + bytes(6)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def gif(side: int) -> bytes:
    """One frame that is cleared afterwards, for which Pillow prepares a background."""
    frame = b"\x21\xf9\x04\x08\0\0\0\0\x2c" + struct.pack("<HHHH", 0, 0, side, side) + b"\0\x02\x02\x44\x01\0"
    return b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + bytes(6) + frame + b";"


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "pixels.png": (lambda: png(60_000, 60_000, data=zeros(300)), "twice the cap"),
    "profile.png": (lambda: png(8, 8, (b"iCCP", b"x\0\0" + zeros(300))), "too large"),
    "text.png": (lambda: png(8, 8, (b"zTXt", b"x\0\0" + zeros(300))), "too large"),
    "canvas.webp": (lambda: webp(16_383, 16_383), "twice the cap"),
    "canvas.gif": (lambda: gif(60_000), "twice the cap"),
    "near.gif": (lambda: gif(8_100), "above the cap"),
}


def reading(path: Path) -> tuple[str, int]:
    """What a process that reads one file says, and by how many MiB its peak memory grows."""
    if not Path("/proc/self/status").exists():
        pytest.skip("peak memory is read from /proc, which this system has not")
    # Not ru_maxrss: a child inherits the peak of the process that started it.
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from pnp_irib.images.io import read_picture\nfrom pnp_irib.errors import ImageFileError\n"
        "def peak():\n    return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024\n"
        "before = peak()\n"
        "try:\n    print(tuple(read_picture(sys.argv[1]).rgb.shape[-2:]))\nexcept ImageFileError as error:\n    print(error)\n"
        "print(peak() - before)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    said, grown_mib = ran.stdout.strip().splitlines()
    return said, int(grown_mib)


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(tmp_path: Path, name: str) -> None:
    content, message = BOMBS[name]
    path = tmp_path / name
    path.write_bytes(content())
    said, grown_mib = reading(path)
    assert message in said
    assert grown_mib < 100


def test_a_large_picture_takes_little_more_than_its_tensor(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize((5000, 4000)).convert("RGB").save(tmp_path / "a.jpg")
    said, grown_mib = reading(tmp_path / "a.jpg")
    assert said == "(4000, 5000)"
    assert grown_mib * 2**20 < (12 + 12) * 5000 * 4000  # the tensor; one more float copy would be as much again


def test_a_raised_cap_is_raised_for_pillow_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)  # it refuses from twice as many on
    Image.new("L", (20, 10)).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png", max_pixels=200).rgb.shape[-2:] == (10, 20)
    assert Image.MAX_IMAGE_PIXELS == 50
    with pytest.raises(ImageFileError, match=r"20x10 = 0\.0 megapixels, above the cap"):
        read_picture(tmp_path / "a.png", max_pixels=199)
    with pytest.raises(ImageFileError, match="twice the cap"):
        read_picture(tmp_path / "a.png", max_pixels=99)
    assert Image.MAX_IMAGE_PIXELS == 50


def test_warnings_become_notes_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0f\x01\x02\0"  # five tags are announced, none is whole
    Image.new("RGB", (4, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert any("EXIF" in note for note in read_picture(tmp_path / "a.jpg").notes)
    with quiet(100) as said:
        warnings.warn("two\nlines", stacklevel=1)
        warnings.warn("bomb", Image.DecompressionBombWarning, stacklevel=1)
    assert said == ["two lines"]
    assert capfd.readouterr() == ("", "")


def test_errors_that_pillow_logs_are_not_printed() -> None:
    code = (
        "import logging\nfrom pnp_irib.images.guard import quiet\n"
        "with quiet(100):\n    logging.getLogger('PIL.TiffImagePlugin').error('inside')\n"
        "logging.getLogger('PIL.TiffImagePlugin').error('outside')\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == "outside\n"


def test_threads_leave_the_process_as_it_was(tmp_path: Path) -> None:
    Image.new("RGB", (400, 400)).save(tmp_path / "a.png")
    limit, filters, show = Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning
    threads = [threading.Thread(target=lambda: [read_picture(tmp_path / "a.png") for _ in range(5)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters), warnings.showwarning) == (limit, filters, show)
    assert logging.getLogger("PIL").handlers == []


def test_one_line_even_where_the_name_has_two(tmp_path: Path) -> None:
    text = tmp_path / "two\nlines.png"
    text.write_text("not a picture")
    for path in (text, tmp_path / "ab\nsent.png"):
        with pytest.raises(ImageFileError) as error:
            read_picture(path)
        assert len(str(error.value).splitlines()) == 1
    with pytest.raises(ImageFileError) as error:
        write_picture(read_picture(Image.new("RGB", (4, 4))).rgb, tmp_path / "no\nfolder" / "a.png")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("bad\nvalue."), "a.png is damaged: bad value."),
        (KeyError(), "a.png is damaged: KeyError."),
        (OSError(28, "No space left on device"), "a.png is damaged: No space left on device."),
        (MemoryError(), "a.png needs more memory than there is."),
        (ImageFileError("no name"), "a.png: no name"),
        (ImageFileError("a.png is bad."), "a.png is bad."),
    ],
)
def test_what_the_line_says(error: Exception, message: str) -> None:
    with pytest.raises(ImageFileError) as raised, one_line("a.png", "is damaged"):
        raise error
    assert str(raised.value) == message


def test_a_size_that_is_refused_is_never_decoded(tmp_path: Path) -> None:
    Image.effect_noise((60, 40), 50).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])  # the header is whole, the pixels are missing

    def refuse(height: int, width: int) -> None:
        raise InputError(f"not {width}x{height}")

    with pytest.raises(InputError, match="not 60x40"):
        read_picture(tmp_path / "a.png", check_size=refuse)
    with pytest.raises(ImageFileError):
        read_picture(tmp_path / "a.png")
