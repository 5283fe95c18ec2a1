"""What a restoration gives back."""

from __future__ import annotations

import base64
import io
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pnp_irib.consistency import Consistency, consistency, heat_map
from pnp_irib.images.io import Picture, to_pil, write_picture
from pnp_irib.images.resize import reduced, resize
from pnp_irib.look_forward import LookForwardRound
from pnp_irib.prompts import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Restoration", "Restorations", "Used", "comparison", "row"]

GAP = 8  # white space between the pictures of a comparison, pixels
LONGEST = 2048  # side of what is made to be looked at, pixels: larger ones would need more memory than the restoration
LONGEST_IN_NOTEBOOK = 512


@dataclass(frozen=True)
class Used:
    """What a restoration was made with.

    Attributes:
        projector_source: where the projector was loaded from: a place, with the commit for one of the Hub.
        projector_sha256: of its weights.
        files: that projector and restorer were loaded from, each behind its place, with their sha256.
        weights_licence: of the restorer's weights: SPDX identifier or address, and whether it allows no commercial use.
    """

    restorer: str
    projector: str
    dtype: str
    device: str
    scale: float
    strength: float
    lfo: int
    seed: int
    tile: int | None
    color: str | None
    projector_source: str | None = None
    projector_sha256: str | None = None
    files: dict[str, str] = field(default_factory=dict)
    weights_licence: str | None = None


@dataclass(frozen=True, eq=False)
class Restoration:
    """One restored picture and how it came about.

    Attributes:
        picture: the input, with what its file carried.
        lq: (1, 3, H, W) in [0, 1], what the restorer was given.
        restored: (1, 3, h, w) in [0, 1]; float32, above 32 megapixels float16.
        alpha: (1, 1, h, w) in [0, 1], or None.
        prompt: the one of the last projection.
        trace: every round of Look Forward Once, round 0 first; empty without a projector.
        seconds: time of each stage.
        used: models and options.
    """

    picture: Picture
    lq: Tensor
    restored: Tensor
    alpha: Tensor | None
    prompt: Prompt | None
    trace: tuple[LookForwardRound, ...]
    seconds: dict[str, float]
    used: Used

    @property
    def image(self) -> Image:
        """The restored picture, 8 bits a channel."""
        return to_pil(self.restored, self.alpha, grey=self.picture.grey)

    @property
    def images(self) -> list[Image]:
        """The same for one picture as for many."""
        return [self.image]

    @property
    def lq_image(self) -> Image:
        """What the restorer was given, 8 bits a channel."""
        return to_pil(self.lq)

    def save(self, path: str | Path, *, format: str | None = None, quality: int = 95) -> tuple[str, ...]:
        """Write the restored picture with the metadata of the input; returns notes on what the format could not hold.

        Raises:
            ImageFileError: it cannot be written; nothing half-written stays.
        """
        return write_picture(self.restored, path, alpha=self.alpha, like=self.picture, format=format, quality=quality)

    def comparison(self, *, consistency: bool = False) -> Image:
        """Input, what the restorer was given, and the restored picture side by side, each at most 2048 pixels a side.

        Args:
            consistency: put the map of `consistency` behind them.
        """
        return to_pil(comparison([*self._panels(), *([self.consistency_map()] if consistency else [])]))

    def _panels(self) -> list[Tensor]:
        return [self.picture.rgb, self.lq, self.restored]

    def consistency(self) -> Consistency:
        """Where the restored picture contradicts its input, see `pnp_irib.consistency.consistency`."""
        return consistency(self.restored, self.picture.rgb)

    def consistency_map(self, found: Consistency | None = None) -> Tensor:
        """The map of `consistency` in colour: (1, 3, h, w) in [0, 1], of the restored size, but at most 2048 pixels a side.

        Args:
            found: what `consistency` gave, if it was called already.
        """
        return heat_map(found or self.consistency(), reduced(self.restored, LONGEST))

    @property
    def consistency_image(self) -> Image:
        """The same as a PIL image."""
        return to_pil(self.consistency_map())

    def __repr__(self) -> str:
        height, width = self.picture.rgb.shape[-2:]
        new_height, new_width = self.restored.shape[-2:]
        u = self.used
        lines = [
            f"Restoration {width}x{height} -> {new_width}x{new_height}",
            row("restorer", f"{u.restorer} ({u.dtype} on {u.device}" + (f", tiles of {u.tile})" if u.tile else ")")),
            row("projector", u.projector + (f", strength {u.strength:g}" if u.strength != 1 else "")),
            row("prompt", textwrap.shorten(self.prompt.text, 200) if self.prompt is not None and self.prompt.text else "none"),
        ]
        lines += [row("colours", u.color)] if u.color else []
        for r in self.trace[1:]:
            lines.append(f"  look forward {r.index}: change {255 * (r.change or 0):.2f}/255")
        lines.append(row("time", ", ".join(f"{name} {s:.2f} s" for name, s in self.seconds.items())))
        lines += [row("note", note) for note in self.picture.notes]
        return "\n".join(lines)

    def _repr_png_(self) -> bytes:
        """The comparison, for notebooks."""
        buffer = io.BytesIO()
        to_pil(comparison(self._panels(), LONGEST_IN_NOTEBOOK)).save(buffer, "PNG")
        return buffer.getvalue()


class Restorations(list[Restoration]):
    """The restorations of several pictures, in their order."""

    @property
    def images(self) -> list[Image]:
        """The restored pictures."""
        return [r.image for r in self]

    def __repr__(self) -> str:
        return "\n".join(repr(r) for r in self) or "Restorations: none"

    def _repr_html_(self) -> str:
        """The comparisons one below the other, for notebooks."""
        pictures = [base64.b64encode(r._repr_png_()).decode() for r in self]
        return "\n".join(f'<div><img src="data:image/png;base64,{picture}"></div>' for picture in pictures)


def row(label: str, text: str) -> str:
    """A labelled line of a `repr`, folded at 80 columns."""
    return textwrap.fill(text, 80, initial_indent=f"  {label:<10} ", subsequent_indent=" " * 13)


def comparison(pictures: list[Tensor], longest: int = LONGEST) -> Tensor:
    """Pictures (1, 3, H, W) side by side, all of the size of the largest, or of ``longest`` pixels; white between them."""
    largest = reduced(max(pictures, key=lambda picture: picture.shape[-2] * picture.shape[-1]), longest)
    height, width = largest.shape[-2:]
    gap = torch.ones(1, 3, height, GAP)
    row: list[Tensor] = []
    for picture in pictures:
        row += [resize(picture.float().cpu(), (height, width)).clamp(0, 1), gap]
    return torch.cat(row[:-1], 3)
