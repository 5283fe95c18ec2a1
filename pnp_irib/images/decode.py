"""Decoded pixels of a PIL image in any mode."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageCms

from pnp_irib.errors import ImageFileError

__all__ = ["Decoded", "decode"]

Array = np.ndarray[Any, Any]

_BITS, _PHOTOMETRIC, _PLANAR = 258, 262, 284  # TIFF tags
_NATIVE = "L" if sys.byteorder == "little" else "B"


@dataclass
class Decoded:
    """(H, W, C) values, C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, with what the file declared."""

    values: Array
    white: float
    bit_depth: int
    icc_profile: bytes | None
    notes: list[str] = field(default_factory=list)


def decode(image: Image.Image) -> Decoded:
    """Decode the first frame.

    Raises:
        ImageFileError: pixels whose range is not declared, or that Pillow would misread.
        Exception: whatever Pillow's decoders raise on damaged data.
    """
    white, depth = 65535.0, 16
    notes: list[str] = []
    raw = _raw_mode(image)
    if (deep := _colour_16(image, raw)) is not None:
        values = _keyed(deep, image.info.get("transparency"))
    elif image.mode.startswith("I;16"):
        values, white = _grey_16(image)
        values = _keyed(values, image.info.get("transparency"))
    elif image.mode == "I":
        values = _from_32_bit(image)
    elif image.mode == "F":
        values, white = _from_float(image), 1.0
    else:
        if ";16" in raw:
            notes.append("16-bit values read with 8 bits")
        values, white, depth = _from_8_bit(image, notes), 255.0, 8
    # Pixels that were converted to RGB are not described by the profile any more.
    converted = image.mode in ("CMYK", "LAB", "YCbCr", "HSV")
    profile = image.info.get("icc_profile") if not converted else None
    profile = profile if isinstance(profile, bytes) and profile else None
    # Bytes 16 to 20 of an ICC profile name its colour space.
    if profile is not None and profile[16:20] != (b"GRAY" if values.shape[2] < 3 else b"RGB "):
        notes.append("colour profile of another colour space left out")
        profile = None
    return Decoded(values, white, depth, profile, notes)


def _from_8_bit(image: Image.Image, notes: list[str]) -> Array:
    mode = image.mode
    transparent = "transparency" in image.info
    if mode in ("CMYK", "LAB"):
        notes.append(f"{mode} converted to RGB")
        image = _to_srgb(image)
    elif mode in ("YCbCr", "HSV"):
        notes.append(f"{mode} converted to RGB")
        image = image.convert("RGB")
    elif mode in ("P", "PA"):
        notes.append("palette converted")
        colours = image.palette.mode if image.palette is not None else "RGB"
        image = image.convert("RGBA" if transparent or mode == "PA" or "A" in colours else "RGB")
    else:
        wanted = "L" if mode in ("1", "L", "LA", "La") else "RGB"
        if transparent or mode in ("LA", "La", "RGBA", "RGBa"):
            wanted += "A"
        # Pillow copies even where there is nothing to convert.
        image = image.convert(wanted) if mode != wanted else image
    return _channels_last(np.asarray(image))


def _channels_last(values: Array) -> Array:
    return values[..., None] if values.ndim == 2 else values


def _colour_16(image: Image.Image, raw: str) -> Array | None:
    """16-bit colour, which Pillow has no mode for; None if the file has other pixels.

    Pillow unpacks big- and little-endian samples to their upper byte. Read in the wrong byte order it gives the lower one,
    so two decodings hold all 16 bits.
    """
    file = getattr(image, "fp", None)
    if file is None or image.format not in ("PNG", "TIFF"):
        return None
    tags = getattr(image, "tag_v2", {})
    if tags.get(_PLANAR) == 2 and 16 in tags.get(_BITS, ()):
        # Pillow has one order for planes from libtiff, and takes samples that are not compressed for bytes.
        if raw.endswith(";16N"):
            return None
        raise ImageFileError("the TIFF file has 16-bit planes that are not compressed. Save it with interleaved samples.")
    if raw not in (*(f"{mode};16{order}" for mode in ("RGB", "RGBA") for order in "BLN"), "LA;16B"):
        return None
    file.seek(0)
    content = io.BytesIO(file.read())
    if raw == "LA;16B":  # four bytes a pixel: read as four channels
        return np.ascontiguousarray(_reread(content, image.format, "RGBA")).view(">u2")
    order = _NATIVE if raw.endswith("N") else raw[-1]
    values = _reread(content, image.format, raw).astype(np.uint16)
    values <<= 8
    values |= _reread(content, image.format, raw[:-1] + ("L" if order == "B" else "B"))
    return values


def _raw_mode(image: Image.Image) -> str:
    """How the samples lie in the file, or "" if that is not known (any more)."""
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    args = tiles[0].args
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _reread(content: io.BytesIO, format: str, raw: str) -> Array:
    content.seek(0)
    image = Image.open(content, formats=[format])
    image.tile = [tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw) for tile in image.tile]
    image.load()
    return np.asarray(image)


def _keyed(values: Array, key: Any) -> Array:
    """16-bit values, with an alpha channel if the file names one colour that is transparent."""
    if not isinstance(key, int | tuple) or values.shape[2] not in (1, 3):
        return values
    clear = (values == np.array(key)).all(-1, keepdims=True)
    return np.concatenate((values, np.where(clear, 0, 65535).astype(values.dtype)), -1)


def _grey_16(image: Image.Image) -> tuple[Array, float]:
    tags = dict(getattr(image, "tag_v2", {}))
    values = np.asarray(image)[..., None]
    white = 4095.0 if tags.get(_BITS) == (12,) else 65535.0
    # Pillow turns pictures whose zero is white for 8 bits only.
    return (65535 - values if tags.get(_PHOTOMETRIC) == 0 else values), white


def _from_32_bit(image: Image.Image) -> Array:
    """Mode "I": 16-bit PGM and PNG files may arrive so; Pillow scales them to 65535."""
    values = np.asarray(image)
    if image.format not in ("PNG", "PPM"):
        raise ImageFileError(
            f"the picture has signed or 32-bit whole numbers from {values.min()} to {values.max()} and does not say what "
            f"white is. Convert it to 8 or 16 bit."
        )
    return values[..., None]


def _from_float(image: Image.Image) -> Array:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):
        raise ImageFileError(
            f"the float picture ranges from {low:.4g} to {high:.4g}, expected 0 to 1. Convert it to 8 or 16 bit."
        )
    return values[..., None]


def _to_srgb(image: Image.Image) -> Image.Image:
    """CMYK and LAB through their colour profile where there is one, else by Pillow's formulas."""
    profile = image.info.get("icc_profile")
    try:
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif profile:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
        else:
            return image.convert("RGB")
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        # A truncated picture is an OSError too: let it be raised as one.
        image.load()
        converted = None
    return converted if converted is not None else image.convert("RGB")
