"""Reading the weights of ncnn model files (``.param`` text, ``.bin`` data).

Layout, from ncnn's public file format: the text names one layer a line after a magic number and the counts. The data
file holds, in the order of the layers: for a Convolution a four-byte tag (0x01306B47: float16 values, padded to four
bytes; 0: float32), its weights (outputs, inputs, height, width) and float32 biases; for a PReLU its float32 slopes.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnp_irib.errors import WeightsError

__all__ = ["read_ncnn"]

MAGIC = "7767517"
TAG_FLOAT16 = 0x01306B47
TAG_FLOAT32 = 0


def read_ncnn(param: Path, data: Path) -> list[dict[str, Tensor]]:
    """Weights of the layers that have any, in file order: ``{"weight", "bias"}`` for convolutions, ``{"weight"}`` for PReLU.

    Raises:
        WeightsError: the two files do not fit each other or hold something else.
    """
    try:
        lines = param.read_text(encoding="ascii", errors="replace").split("\n")
        content = data.read_bytes()
    except OSError as error:
        raise WeightsError(
            f"{error.filename} cannot be read: {error.strerror}. An ncnn model is two files, NAME.param and NAME.bin."
        ) from error
    if lines[0].strip() != MAGIC:
        raise WeightsError(f"{param} is not an ncnn model: its first line is {lines[0][:20]!r}, expected {MAGIC}.")
    position = 0

    def take(count: int, dtype: str) -> Tensor:
        nonlocal position
        size = count * np.dtype(dtype).itemsize
        if position + size > len(content):
            raise WeightsError(f"{data} ends after {len(content)} bytes; {param.name} describes more. Is the file complete?")
        values = np.frombuffer(content, dtype, count, position).astype(np.float32)
        position += -(-size // 4) * 4
        return torch.from_numpy(values)

    layers: list[dict[str, Tensor]] = []
    for fields in filter(None, map(str.split, lines[2:])):
        if fields[0] == "Convolution":
            outputs, kernel, count = _sizes(param, fields, "0", "1", "6")
            if count % (outputs * kernel**2):
                raise WeightsError(f"{param}: {fields[1]} cannot be understood: {count} weights for {outputs} outputs.")
            (tag,) = struct.unpack_from("<I", content, position) if position + 4 <= len(content) else (None,)
            position += 4
            if tag not in (TAG_FLOAT16, TAG_FLOAT32):
                raise WeightsError(
                    f"{data}: layer {fields[1]} is stored with the tag {tag}; float16 and float32 are understood."
                )
            weight = take(count, "<f2" if tag == TAG_FLOAT16 else "<f4").reshape(outputs, -1, kernel, kernel)
            layers.append({"weight": weight, "bias": take(outputs, "<f4")})
        elif fields[0] == "PReLU":
            layers.append({"weight": take(_sizes(param, fields, "0")[0], "<f4")})
        elif fields[0] not in ("Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp", "PixelShuffle"):
            raise WeightsError(f"{param}: layers of the kind {fields[0]} do not occur in the Real-ESRGAN family.")
    if position != len(content):
        raise WeightsError(f"{data} has {len(content)} bytes, of which {param.name} describes {position}.")
    return layers


def _sizes(param: Path, fields: list[str], *keys: str) -> list[int]:
    """Values of the options ``keys`` of one layer, each a number above 0."""
    options = dict(field.split("=", 1) for field in fields if "=" in field)
    found = [options.get(key, "") for key in keys]
    if not all(text.isdecimal() and int(text) > 0 for text in found):
        raise WeightsError(f"{param}: {' '.join(fields[:2])} cannot be understood: its options {', '.join(keys)} are {found}.")
    return [int(text) for text in found]
