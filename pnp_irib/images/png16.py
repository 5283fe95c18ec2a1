"""Writing 16-bit PNG files, which Pillow does for grey only (PNG specification, W3C, third edition)."""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np

__all__ = ["png16"]

_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_STRIP_BYTES = 2**22


def png16(
    file: BinaryIO, levels: np.ndarray[Any, Any], *, icc_profile: bytes | None = None, exif: bytes | None = None
) -> None:
    """Write (H, W, C) 16-bit levels, C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    height, width, channels = levels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOUR_TYPES[channels], 0, 0, 0))
    if icc_profile:
        _chunk(file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile))
    if exif:
        _chunk(file, b"eXIf", exif.removeprefix(b"Exif\0\0"))
    packer = zlib.compressobj(6)
    rows = max(1, _STRIP_BYTES // (2 * width * channels))
    above = np.zeros((1, width * channels * 2), np.uint8)
    for top in range(0, height, rows):
        strip = levels[top : top + rows].astype(">u2").view(np.uint8).reshape(-1, width * channels * 2)
        # filter 2 ("up"): the difference to the row above compresses photographs well and is one subtraction
        difference = strip - np.concatenate((above, strip[:-1]))
        filtered = np.concatenate((np.full((len(strip), 1), 2, np.uint8), difference), 1)
        above = strip[-1:]
        if packed := packer.compress(filtered.tobytes()):
            _chunk(file, b"IDAT", packed)
    _chunk(file, b"IDAT", packer.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
