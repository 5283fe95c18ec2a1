"""Pictures side by side, small enough for a repository."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from pnp_irib.consistency import consistency, heat_map
from pnp_irib.images.resize import reduced, resize

__all__ = ["CELL", "sheet", "stacked"]

CELL = 224  # largest side of a picture in the grid, pixels
CAPTION = 22
GAP = 4


def stacked(picture: Tensor, elq: Tensor, size: tuple[int, int], *, maps: bool, blank: bool = False) -> Tensor:
    """A picture (1, 3, h, w) as a cell of the grid, with the map of its contradictions below, or a blank of that size.

    Args:
        picture: in [0, 1].
        elq: its input.
        size: height and width that all pictures of the row have.
        maps: add the map.
        blank: add the blank.
    """
    whole = resize(picture.float(), size).clamp(0, 1)
    cell = reduced(whole, CELL).clamp(0, 1)
    if maps:
        below = reduced(heat_map(consistency(whole, elq), whole), CELL).clamp(0, 1)
        return torch.cat((cell, below), 2)
    return torch.cat((cell, torch.ones_like(cell)), 2) if blank else cell


def sheet(captions: Sequence[str], rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of cells under their captions."""
    font = ImageFont.load_default(size=13)
    widths = [max(row[column].width for row in rows) for column in range(len(captions))]
    heights = [max(cell.height for cell in row) for row in rows]
    picture = Image.new("RGB", (sum(widths) + GAP * (len(widths) + 1), CAPTION + sum(heights) + GAP * len(rows)), "white")
    pen = ImageDraw.Draw(picture)
    left = GAP
    for column, caption in enumerate(captions):
        while len(caption) > 1 and pen.textlength(caption, font=font) > widths[column]:
            caption = f"{caption[:-2]}…"
        pen.text((left, 3), caption, fill="black", font=font)
        top = CAPTION
        for row, height in zip(rows, heights, strict=True):
            picture.paste(row[column], (left, top))
            top += height + GAP
        left += widths[column] + GAP
    return picture
