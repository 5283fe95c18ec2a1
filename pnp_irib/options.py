"""The options of a call of `WrappedRestorer`."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal, TypeAlias, get_args

from pnp_irib.errors import InputError
from pnp_irib.images.color import ColorMatch
from pnp_irib.restorer import Restorer, TilingRestorer

__all__ = ["CallOptions", "ColorReference"]

ColorReference: TypeAlias = Literal["elq", "lq"]


@dataclass(frozen=True)
class CallOptions:
    """How pictures are restored; see `WrappedRestorer.__call__`."""

    scale: float | None = None
    seed: int = 0
    strength: float = 1.0
    tile: int | str | None = "auto"
    color: ColorMatch | None = None
    color_reference: ColorReference = "lq"
    max_pixels: int | None = None
    max_output_pixels: int | None = None

    def check(self, restorer: Restorer) -> None:
        """Check what can be checked before there is a picture.

        Raises:
            InputError: an option is not acceptable.
        """
        spec, scale, strength, seed, tile = restorer.spec, self.scale, self.strength, self.seed, self.tile
        if scale is not None and (isinstance(scale, bool) or not (isinstance(scale, Real) and 0 < scale <= 64)):
            raise InputError(f"scale={scale!r}: expected a number above 0, at most 64.")
        if not (isinstance(strength, Real) and 0 <= strength <= 1):
            raise InputError(f"strength={strength!r} is outside [0, 1]; 0 is the restorer alone, 1 the full projection.")
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise InputError(f"seed={seed!r}: expected a whole number from 0 to 2**63 - 1.")
        if self.color not in (None, *get_args(ColorMatch)):
            raise InputError(f"color={self.color!r}: expected None or one of {', '.join(get_args(ColorMatch))}.")
        if self.color_reference not in get_args(ColorReference):
            raise InputError(
                f"color_reference={self.color_reference!r}: expected elq (the input) or lq (the projector's estimate)."
            )
        if tile is None or tile == "auto":
            return
        if not isinstance(tile, Integral) or isinstance(tile, bool) or tile < 16:
            raise InputError(f"tile={tile!r}: expected 'auto', None, or a side of at least 16 pixels.")
        if spec.scale is None or (spec.tiling == "internal" and not isinstance(restorer, TilingRestorer)):
            raise InputError(f"{spec.name} cannot be tiled from outside; leave tile='auto'.")
