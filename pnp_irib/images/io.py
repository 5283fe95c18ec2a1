"""Reading and writing picture files. Only here are EXIF, ICC, alpha, grey and bit depth known."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from pnp_irib.errors import ConfigError, ImageFileError, InputError
from pnp_irib.files import atomic_file
from pnp_irib.images.decode import decode
from pnp_irib.images.guard import one_line, quiet
from pnp_irib.images.png16 import png16

__all__ = ["MAX_PIXELS", "READABLE", "WRITABLE", "Picture", "picture_from_array", "read_picture", "to_pil", "write_picture"]

MAX_PIXELS = 64_000_000
"""Default cap of a picture that is read."""

READABLE = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
"""Formats that are opened. The decoders of others are rarely tested or start programs."""

WRITABLE = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""File endings that can be written, and their formats."""

_LARGEST_SIDE = {"JPEG": 65_535, "WEBP": 16_383}
_LARGEST_EXIF = {"PNG": 2**31, "JPEG": 65_533, "WEBP": 2**31, "TIFF": 2**31}
_LARGEST_ICC = {"PNG": 2**31, "JPEG": 255 * 65_519, "WEBP": 2**31, "TIFF": 2**31}
_HAS_ALPHA = {"PNG", "WEBP", "TIFF"}
_DAMAGED = "is damaged or not fully supported"
_ORIENTATION = ExifTags.Base.Orientation
# What EXIF says of the photograph. In a TIFF it shares its block with the size and the place of the pixels.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 33432)  # description, make, model, software, time, artist, copyright
_DESCRIPTIVE_BLOCKS = (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture and what its file said about it.

    Attributes:
        rgb: (1, 3, H, W), float32, [0, 1], upright.
        alpha: (1, 1, H, W) in [0, 1], or None.
        bit_depth: 8 or 16, of the file.
        grey: the file had no colour.
        icc_profile: colour profile that the pixels are in, or None for sRGB.
        exif: EXIF block without orientation, or None.
        format: name of the file format, or "" for a picture from memory.
        source: the file it came from, absolute, or None.
        notes: what a user should know about how it was read.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    bit_depth: int = 8
    grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    format: str = ""
    source: Path | None = None
    notes: tuple[str, ...] = ()


def read_picture(
    source: str | Path | Image.Image, *, max_pixels: int = MAX_PIXELS, check_size: Callable[[int, int], object] | None = None
) -> Picture:
    """Read a picture file, or take over a PIL image.

    Animations give their first frame. The bit depth is what the file declares, never guessed from the values.

    Args:
        source: path or image.
        max_pixels: larger pictures are refused from their header, before anything is decoded.
        check_size: called with (height, width) of the header, before anything is decoded; may raise.

    Raises:
        ImageFileError: it is missing, no regular file, of a format outside `READABLE`, too large, or damaged.
    """
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", None)
        with one_line("the image", _DAMAGED), _untouched(source) as image:
            picture = _convert(image, None, max_pixels, check_size)
        return replace(picture, source=Path(file).absolute() if isinstance(file, str) and file else None)
    path = Path(source)
    with one_line(str(path), _DAMAGED), quiet(max_pixels) as said:
        _check_regular(path)
        with path.open("rb") as file:
            try:
                image = Image.open(file, formats=READABLE)
            except UnidentifiedImageError:
                raise ImageFileError(f"{path} {_what_instead(path)} Readable: {', '.join(READABLE)}.") from None
            picture = _convert(image, path, max_pixels, check_size)
    return replace(picture, notes=tuple(dict.fromkeys((*picture.notes, *said))))


def picture_from_array(array: np.ndarray[Any, Any]) -> Picture:
    """A picture from an array (H, W) or (H, W, C): C = 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA.

    Values are 8 or 16 bit, bool, or floats in [0, 1].

    Raises:
        InputError: another shape, type or range.
    """
    pixels = array[..., None] if array.ndim == 2 else array
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4) or 0 in pixels.shape:
        raise InputError(
            f"the array has the shape {array.shape}, expected (H, W), (H, W, 3) or (H, W, 4). "
            f"From (3, H, W) use array.transpose(1, 2, 0)."
        )
    white = 1.0
    if pixels.dtype in (np.uint8, np.uint16):
        white = float(np.iinfo(pixels.dtype).max)
    elif pixels.dtype == np.bool_:
        pass
    elif np.issubdtype(pixels.dtype, np.floating):
        pixels = pixels.astype(np.float32)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"the float array must lie in [0, 1]; its range is [{low:.4g}, {high:.4g}]. From 8 bit use array / 255."
            )
    else:
        raise InputError(f"the array is of {pixels.dtype}; expected uint8, uint16, bool or float in [0, 1].")
    return _picture_of(pixels, white, bit_depth=16 if pixels.dtype == np.uint16 else 8)


def _picture_of(values: np.ndarray[Any, Any], white: float, **facts: Any) -> Picture:
    """(H, W, 1..4) values from 0 to ``white`` to a `Picture`. Plane by plane, since a float copy takes four times the file."""
    height, width, channels = values.shape
    planes = np.empty((1, channels, height, width), np.float32)
    for channel, plane in enumerate(planes[0]):
        plane[...] = values[..., channel]
        plane /= np.float32(white)
    tensor = torch.from_numpy(planes)
    colour = tensor[:, :1].expand(-1, 3, -1, -1) if channels < 3 else tensor[:, :3]
    alpha = tensor[:, -1:].contiguous() if channels in (2, 4) else None
    return Picture(rgb=colour.contiguous(), alpha=alpha, grey=channels < 3, **facts)


def _convert(
    image: Image.Image, path: Path | None, max_pixels: int, check_size: Callable[[int, int], object] | None
) -> Picture:
    name = str(path) if path else "the image"
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageFileError(f"{name} is empty: {width}x{height} pixels.")
    if width * height > max_pixels:
        raise ImageFileError(
            f"{name} has {width}x{height} = {width * height / 1e6:.1f} megapixels, above the cap of {max_pixels / 1e6:g}. "
            f"Raise max_pixels (command line: --max-pixels), or make it smaller."
        )
    if check_size is not None:
        check_size(height, width)
    decoded = decode(image)
    notes = decoded.notes
    exif, orientation = _exif(image, notes)
    # Counting moves through the file: not through an image that is the user's, whose frame is the one meant.
    if path is not None and (frames := _frames(image)) != "1":
        notes.append(f"first of {frames} frames")
    return _picture_of(
        _upright(decoded.values, orientation),
        decoded.white,
        bit_depth=decoded.bit_depth,
        icc_profile=decoded.icc_profile,
        exif=exif,
        format=image.format or "",
        source=path.absolute() if path is not None else None,
        notes=tuple(notes),
    )


@contextlib.contextmanager
def _untouched(image: Image.Image) -> Iterator[Image.Image]:
    """The user's image, opened anew where it was not decoded yet: decoding would lose the bit depth of its file."""
    file = getattr(image, "filename", None)
    if not getattr(image, "tile", None) or not file or not Path(file).is_file():
        yield image
        return
    with Image.open(file, formats=[image.format or ""]) as again:
        if again.size == image.size and (frame := image.tell()):
            again.seek(frame)
        yield again if again.size == image.size else image


def _frames(image: Image.Image) -> str:
    if image.format == "MPO":  # a photograph with previews
        return "1"
    try:
        return str(getattr(image, "n_frames", 1))
    except Exception:  # a damaged later frame costs the count only
        return "several"


def _exif(image: Image.Image, notes: list[str]) -> tuple[bytes | None, int]:
    """EXIF block without orientation, and the orientation; damaged EXIF costs the block, not the picture."""
    try:
        exif = image.getexif()
        if image.format == "TIFF":  # Pillow applies the orientation itself
            kept = _descriptive(exif)
            return (kept.tobytes() if len(kept) else None), 1
        orientation = int(exif.get(_ORIENTATION, 1) or 1)
        if not len(exif):
            return None, orientation
        kept = _loaded(exif.tobytes())  # a copy, for the image may be the user's
        if _ORIENTATION in kept:
            del kept[_ORIENTATION]
        return (kept.tobytes() if len(kept) else None), orientation
    except Exception:
        notes.append("damaged EXIF data left out")
        return None, 1


def _loaded(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def _descriptive(exif: Image.Exif) -> Image.Exif:
    """What says something of the photograph, without what describes the file."""
    kept = Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in exif:
            kept[tag] = exif[tag]
    for block in _DESCRIPTIVE_BLOCKS:
        if tags := exif.get_ifd(block):
            kept.get_ifd(block).update(tags)
    return kept


def _upright(values: np.ndarray[Any, Any], orientation: int) -> np.ndarray[Any, Any]:
    """Apply an EXIF orientation (1 to 8) to (H, W, C)."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    flips = {2: (1,), 3: (0, 1), 4: (0,), 6: (1,), 7: (0, 1), 8: (0,)}
    return np.flip(values, flips[orientation]) if orientation in flips else values


def write_picture(
    rgb: Tensor,
    path: str | Path,
    *,
    alpha: Tensor | None = None,
    like: Picture | None = None,
    format: str | None = None,
    quality: int = 95,
) -> tuple[str, ...]:
    """Write a picture, whole or not at all.

    Values are rounded to the nearest level. 16-bit inputs stay 16 bit in PNG files, grey stays grey, ICC and EXIF are kept.

    Args:
        rgb: (1, 3, H, W), [0, 1] (clamped).
        path: its ending decides the format, unless ``format`` does.
        alpha: (1, 1, H, W), or None.
        like: the input that it was made from: its depth, profile and metadata are kept; its file is never written over.
        format: an ending of `WRITABLE`, with or without the dot.
        quality: of JPEG and WebP, 1 to 100.

    Returns:
        Notes on what the format could not hold.

    Raises:
        ImageFileError: the format is unknown, the picture too large for it, the path is the input's, or writing failed.
        ConfigError: the quality is none.
        InputError: values are NaN.
    """
    path = Path(path)
    if not isinstance(quality, int) or not 1 <= quality <= 100:
        raise ConfigError(f"quality={quality!r}: expected a whole number from 1 to 100.")
    ending = f".{format.lower().lstrip('.')}" if format else path.suffix.lower()
    chosen = WRITABLE.get(ending)
    if chosen is None:
        raise ImageFileError(f"{path}: {ending!r} cannot be written. Writable: {', '.join(WRITABLE)}.")
    height, width = rgb.shape[-2:]
    largest = _LARGEST_SIDE.get(chosen)
    if largest is not None and max(height, width) > largest:
        raise ImageFileError(
            f"{path}: {chosen} holds at most {largest} pixels a side, the picture is {width}x{height}. Use .png."
        )
    if like is not None and like.source is not None and _same_file(path, like.source):
        raise ImageFileError(f"{path} is the input itself, which is never written over. Choose another name.")
    notes: list[str] = []
    if alpha is not None and chosen not in _HAS_ALPHA:
        rgb = rgb * alpha + (1 - alpha)
        alpha = None
        notes.append(f"{chosen} has no transparency: laid over white")
    grey = like is not None and like.grey
    deep = like is not None and like.bit_depth == 16
    options = _metadata(like, chosen, notes) if like is not None else {}
    if chosen in ("JPEG", "WEBP"):
        options["quality"] = quality
    if chosen == "JPEG":
        options["subsampling"] = 0
    if chosen == "TIFF":
        # The library that compresses TIFF files cannot write EXIF blocks.
        options["compression"] = "raw" if "exif" in options else "tiff_deflate"
    if deep and chosen != "PNG":
        notes.append(f"written with 8 of 16 bits: 16 are kept in .png, not in {path.suffix or chosen}")
    with one_line(str(path), "cannot be written"), atomic_file(path) as file:
        if deep and chosen == "PNG":
            png16(file, _quantized(rgb, alpha, grey, 65535), **options)
        else:
            to_pil(rgb, alpha, grey=grey).save(file, chosen, **options)
    return tuple(notes)


def _metadata(like: Picture, chosen: str, notes: list[str]) -> dict[str, Any]:
    """Profile and EXIF block of the input, as options of Pillow's writers, where the format can hold them."""
    options: dict[str, Any] = {}
    if like.icc_profile:
        # WebP files have three colours always, which a profile for grey does not describe.
        fits = not (like.grey and chosen == "WEBP") and len(like.icc_profile) <= _LARGEST_ICC.get(chosen, 0)
        if fits:
            options["icc_profile"] = like.icc_profile
        else:
            notes.append(f"colour profile left out: {chosen} cannot hold it")
    if like.exif:
        if len(like.exif) <= _LARGEST_EXIF.get(chosen, 0):
            options["exif"] = _descriptive(_loaded(like.exif)).tobytes() if chosen == "TIFF" else like.exif
        else:
            notes.append(f"EXIF data left out: {chosen} cannot hold it")
    return options


def to_pil(rgb: Tensor, alpha: Tensor | None = None, *, grey: bool = False) -> Image.Image:
    """An 8-bit PIL image (L, LA, RGB or RGBA) of (1, 3, H, W) in [0, 1]; values are rounded to the nearest level."""
    levels = _quantized(rgb, alpha, grey, 255)
    return Image.fromarray(levels[..., 0] if levels.shape[2] == 1 else levels)


def _quantized(rgb: Tensor, alpha: Tensor | None, grey: bool, top: int) -> np.ndarray[Any, Any]:
    """(H, W, C) of whole numbers from 0 to ``top``. Rows are converted in strips, since outputs can be huge."""
    height, width = rgb.shape[-2:]
    channels = (1 if grey else 3) + (alpha is not None)
    levels = np.empty((height, width, channels), np.uint8 if top == 255 else np.uint16)
    strip = max(1, 2**22 // width)
    for top_row in range(0, height, strip):
        rows = slice(top_row, top_row + strip)
        part = rgb[0, :, rows].detach().float().cpu()
        if grey:  # ITU-R BT.601 luma, as Pillow converts
            part = (part * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0, keepdim=True)
        if alpha is not None:
            part = torch.cat((part, alpha[0, :, rows].detach().float().cpu()))
        if part.isnan().any():
            raise InputError("the picture has values that are not numbers (NaN). Try dtype=torch.float32.")
        levels[rows] = (part.clamp(0, 1) * top).round().permute(1, 2, 0).numpy().astype(levels.dtype)
    return levels


def _check_regular(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ImageFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    if stat.S_ISDIR(mode):
        raise ImageFileError(f"{path} is a folder; a picture file was expected.")
    if not stat.S_ISREG(mode):
        raise ImageFileError(f"{path} is a device or pipe; a regular file was expected.")
    if path.stat().st_size == 0:
        raise ImageFileError(f"{path} is empty (0 bytes).")


def _same_file(target: Path, source: Path) -> bool:
    """Whether both names lead to one file, through links too."""
    try:
        return target.exists() and target.samefile(source)
    except OSError:
        return target.resolve() == source.resolve()


def _what_instead(path: Path) -> str:
    ending = path.suffix.lower()
    known = Image.registered_extensions().get(ending)
    if known is not None and known not in READABLE:
        return f"is a {known} file by its ending, a format that is not opened."
    return "is not a picture that can be read, or is damaged in its first bytes."
