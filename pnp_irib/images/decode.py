"""Decoded pixels of a PIL image in any mode, as floats in [0, 1]."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from pnp_irib.errors import ImageFileError

__all__ = ["Decoded", "decode"]

Array = np.ndarray[Any, Any]


@dataclass
class Decoded:
    """(H, W, C) values, C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, with what the file declared."""

    values: Array
    bit_depth: int
    icc_profile: bytes | None
    notes: list[str] = field(default_factory=list)


def decode(image: Image.Image) -> Decoded:
    """Decode the first frame.

    Raises:
        ImageFileError: 32-bit or float pixels whose range is not declared.
        Exception: whatever Pillow's decoders raise on damaged data.
    """
    profile = image.info.get("icc_profile")
    profile = profile if isinstance(profile, bytes) and profile else None
    if (deep := _decode_16(image)) is not None:
        return Decoded(deep, 16, _fitting(profile, "GRAY" if deep.shape[2] < 3 else "RGB "))
    mode = image.mode
    if mode.startswith("I;16"):
        image.load()
        return Decoded(np.asarray(image).astype(np.float32)[..., None] / 65535, 16, _fitting(profile, "GRAY"))
    if mode == "I":
        return Decoded(_from_32_bit(image), 16, _fitting(profile, "GRAY"))
    if mode == "F":
        return Decoded(_from_float(image), 16, _fitting(profile, "GRAY"))
    transparent = "transparency" in image.info
    notes: list[str] = []
    if mode in ("CMYK", "LAB", "YCbCr", "HSV"):
        notes.append(f"{mode} converted to RGB")
        image = _to_srgb(image, profile) if mode in ("CMYK", "LAB") else image.convert("RGB")
        profile = None
    elif mode in ("P", "PA"):
        colours = image.palette.mode if image.palette is not None else "RGB"
        image = image.convert("RGBA" if transparent or mode == "PA" or "A" in colours else "RGB")
        notes.append("palette converted")
    elif mode in ("1", "L", "LA", "La"):
        image = image.convert("LA" if transparent or mode in ("LA", "La") else "L")
    else:
        image = image.convert("RGBA" if transparent or mode in ("RGBA", "RGBa") else "RGB")
    values = np.asarray(image, np.uint8).astype(np.float32) / 255
    values = values[..., None] if values.ndim == 2 else values
    fitting = _fitting(profile, "GRAY" if values.shape[2] < 3 else "RGB ")
    if profile is not None and fitting is None:
        notes.append("colour profile of another colour space left out")
    return Decoded(values, 8, fitting, notes)


def _decode_16(image: Image.Image) -> Array | None:
    """16-bit colour, which Pillow has no mode for; None if the file has other pixels.

    Pillow unpacks big- and little-endian samples to their upper byte. Read in the wrong byte order it gives the lower one,
    so two decodings hold all 16 bits.
    """
    raw = _raw_mode(image)
    if raw not in ("RGB;16B", "RGB;16L", "RGBA;16B", "RGBA;16L", "LA;16B"):
        return None
    file = getattr(image, "fp", None)
    if file is None:
        return None
    content = io.BytesIO(_all_bytes(file))
    if raw == "LA;16B":  # four bytes a pixel: read as four channels
        quads = _reread(content, image.format, "RGBA")
        pairs = quads.astype(np.float32)
        return np.stack((pairs[..., 0] * 256 + pairs[..., 1], pairs[..., 2] * 256 + pairs[..., 3]), -1) / 65535
    swapped = raw[:-1] + ("L" if raw.endswith("B") else "B")
    upper, lower = _reread(content, image.format, raw), _reread(content, image.format, swapped)
    return (upper.astype(np.float32) * 256 + lower.astype(np.float32)) / 65535


def _all_bytes(file: Any) -> bytes:
    file.seek(0)
    content: bytes = file.read()
    return content


def _raw_mode(image: Image.Image) -> str | None:
    tiles = getattr(image, "tile", None)
    if image.format not in ("PNG", "TIFF") or not tiles:
        return None
    args = tiles[0].args
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else None


def _reread(content: io.BytesIO, format: str | None, raw: str) -> Array:
    content.seek(0)
    image = Image.open(content, formats=[format or ""])
    image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]
    image.load()
    return np.asarray(image)


def _from_32_bit(image: Image.Image) -> Array:
    """Mode "I": 16-bit PGM, PNG and TIFF files of older kind arrive so; their declared maximum is 65535."""
    image.load()
    declared = image.format in ("PNG", "PPM") or _tiff_bits(image) == 16
    values = np.asarray(image)
    if not declared:
        raise ImageFileError(
            f"the picture has 32-bit whole numbers from {values.min()} to {values.max()} and does not say what white is. "
            f"Convert it to 8 or 16 bit."
        )
    return values.astype(np.float32)[..., None] / 65535


def _tiff_bits(image: Image.Image) -> int | None:
    bits = getattr(image, "tag_v2", {}).get(258)
    return int(bits[0]) if isinstance(bits, tuple) and bits else None


def _from_float(image: Image.Image) -> Array:
    image.load()
    values = np.asarray(image).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageFileError(
            f"the float picture ranges from {low:.4g} to {high:.4g}, expected 0 to 1. Convert it to 8 or 16 bit."
        )
    return values[..., None]


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """CMYK and LAB through their colour profile where there is one, else by Pillow's formulas."""
    try:
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif profile is not None:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        else:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        converted = None
    return converted if converted is not None else image.convert("RGB")


def _fitting(profile: bytes | None, space: str) -> bytes | None:
    """The profile if it describes this colour space (bytes 16 to 20 of an ICC profile name it)."""
    return profile if profile is not None and profile[16:20] == space.encode() else None
