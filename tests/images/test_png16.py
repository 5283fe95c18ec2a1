"""16-bit PNG files, taken apart by hand after the PNG specification."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pnp_irib.images import png16 as module
from pnp_irib.images.png16 import png16

Array = np.ndarray[Any, Any]


def levels(height: int, width: int, channels: int) -> Array:
    return np.random.default_rng(0).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def written(values: Array, **options: bytes) -> bytes:
    file = io.BytesIO()
    png16(file, values, **options)
    return file.getvalue()


def chunks(content: bytes) -> list[tuple[bytes, bytes]]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(content):
        (length,) = struct.unpack_from(">I", content, at)
        kind, data = content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", content, at + 8 + length) == (zlib.crc32(kind + data),)
        found.append((kind, data))
        at += 12 + length
    return found


def taken_apart(content: bytes) -> Array:
    parts = chunks(content)
    width, height, bits, colour, *methods = struct.unpack(">IIBBBBB", parts[0][1])
    assert parts[0][0] == b"IHDR"
    assert parts[-1] == (b"IEND", b"")
    assert (bits, methods) == (16, [0, 0, 0])
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    packed = b"".join(data for kind, data in parts if kind == b"IDAT")
    rows = np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + width * channels * 2)
    assert (rows[:, 0] == 2).all()  # "up": each byte is the difference to the one above
    plain = np.cumsum(rows[:, 1:], 0, dtype=np.uint8)
    return plain.view(">u2").reshape(height, width, channels)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("strip_bytes", [1, 200, 2**22])
def test_every_level_is_in_the_file(channels: int, strip_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STRIP_BYTES", strip_bytes)
    values = levels(13, 7, channels)
    assert np.array_equal(taken_apart(written(values)), values)


def test_pillow_reads_the_same_grey() -> None:
    values = levels(5, 9, 1)
    with Image.open(io.BytesIO(written(values))) as image:
        assert image.mode == "I;16"
        assert np.array_equal(np.asarray(image), values[..., 0])


def test_profile_and_exif_come_before_the_pixels() -> None:
    exif = Image.Exif()
    exif[271] = "a camera"
    content = written(levels(4, 4, 3), icc_profile=b"profile", exif=exif.tobytes())
    kinds = [kind for kind, _ in chunks(content)]
    assert kinds.index(b"iCCP") < kinds.index(b"IDAT")
    assert kinds.index(b"eXIf") < kinds.index(b"IDAT")
    with Image.open(io.BytesIO(content)) as image:
        assert image.info["icc_profile"] == b"profile"
        assert image.getexif()[271] == "a camera"


def test_smooth_pictures_become_small() -> None:
    ramp = np.broadcast_to(np.arange(256, dtype=np.uint16)[None, :, None] * 257, (256, 256, 3))
    assert len(written(ramp)) < ramp.size * 2 / 50
