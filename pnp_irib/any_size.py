"""A frozen restorer, which takes some sizes at one scale, given pictures of any size at any scale: padded, tiled, cut."""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pnp_irib.errors import InputError
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.images.tiling import tile_for_budget, tiled
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource, ReadsInput, Restorer, TilingRestorer
from pnp_irib.runtime import frozen
from pnp_irib.spec import RestorerSpec

__all__ = ["auto_tile", "check_size", "finish", "fit_grid", "restore_any_size"]

HALF_ABOVE = 32_000_000  # outputs with more pixels are kept in float16: its steps are far below 1/255
RANGE_SLACK, RANGE_SHARE = 0.1, 0.2  # a fifth of the values this far outside [0, 1]: another range, not an overshoot
TILE_BUDGET = 2**29  # working memory of the restorer above which "auto" tiles, bytes


def auto_tile(restorer: Restorer, height: int, width: int) -> int | None:
    """Side of the tiles that keep the restorer's working memory within 512 MiB; None: in one piece, or it cannot be tiled."""
    spec = restorer.spec
    own = isinstance(restorer, TilingRestorer)
    if spec.bytes_per_pixel is None or spec.scale is None or not (own or spec.tiling == "supported"):
        return None
    halo = 0 if own else spec.tile_halo
    return tile_for_budget(height, width, bytes_per_pixel=spec.bytes_per_pixel, budget=TILE_BUDGET, halo=halo)


def fit_grid(estimate: Tensor, elq: Tensor, spec: RestorerSpec, scale: float | None) -> tuple[Tensor, float | None]:
    """A projector's estimate on the grid that the restorer takes, and the scale to restore it at.

    Restorers of one scale get it on the grid of the input. Those of any scale get an enlarged estimate in the size of the
    result, where enlarging again would only blur it.

    Args:
        estimate: (N, 3, e * H, e * W), e being the projector's enlargement.
        elq: (N, 3, H, W), its input.
        spec: of the restorer.
        scale: of the result over ``elq``; None: the restorer's own, and where it has none the projector's enlargement.
    """
    if estimate.shape[-2:] == elq.shape[-2:]:
        return estimate, scale
    if spec.scale is not None:
        return resize(estimate, (elq.shape[-2], elq.shape[-1])).clamp(0, 1), scale
    scale = spec.default_scale if scale is None else scale
    size = (estimate.shape[-2], estimate.shape[-1]) if scale is None else output_size(elq.shape[-2], elq.shape[-1], scale)
    return resize(estimate, size).clamp(0, 1), 1.0


def restore_any_size(
    restorer: Restorer,
    lq: Tensor,
    *,
    scale: float | None = None,
    prompts: Sequence[Prompt | None] | None = None,
    noise: NoiseSource | None = None,
    tile: int | None = None,
    elq: Tensor | None = None,
) -> Tensor:
    """Restored pictures (N, 3, round(H * scale), round(W * scale)), not clamped, under the caller's grad mode.

    Args:
        restorer: the frozen restorer.
        lq: (N, 3, H, W) in [0, 1].
        scale: enlargement; None: the restorer's own.
        prompts: one a picture, or None.
        noise: where its randomness comes from.
        tile: side of the tiles in input pixels; None: in one piece.
        elq: what a projector made ``lq`` of, (N, 3, h, w), for restorers that look at it, see `ReadsInput`.

    Raises:
        InputError: the restorer gave another size than its spec promises.
    """
    # A Restorer that is a module is borrowed like any other: its flags and buffers come out as they went in.
    lent = frozen(restorer) if isinstance(restorer, nn.Module) else contextlib.nullcontext()
    reading = restorer.reading(elq) if elq is not None and isinstance(restorer, ReadsInput) else contextlib.nullcontext()
    with lent, reading:
        return _restored(restorer, lq, scale, prompts, noise, tile)


def _restored(
    restorer: Restorer,
    lq: Tensor,
    scale: float | None,
    prompts: Sequence[Prompt | None] | None,
    noise: NoiseSource | None,
    tile: int | None,
) -> Tensor:
    spec = restorer.spec
    height, width = lq.shape[-2:]
    padded = pad_to(lq, multiple_of=spec.multiple_of, min_size=spec.min_size)
    if tile is None and padded is lq:
        return restorer.restore(lq, scale=scale, prompts=prompts, noise=noise)
    native = spec.scale
    if native is None:  # any scale: pad, restore at it, cut
        restored = restorer.restore(padded, scale=scale, prompts=prompts, noise=noise)
        chosen = scale or spec.default_scale or restored.shape[-1] / padded.shape[-1]
        new_height, new_width = output_size(height, width, chosen)
        return restored[..., :new_height, :new_width]
    if tile is None:
        restored = check_size(restorer.restore(padded, prompts=prompts, noise=noise), padded, native, spec.name)
    else:
        restored = _restore_tiled(restorer, lq, native, tile, prompts, noise)
    restored = restored[..., : height * native, : width * native]
    return restored if scale is None else resize(restored, output_size(height, width, scale))


def check_size(restored: Tensor, lq: Tensor, scale: float, name: str) -> Tensor:
    """``restored`` itself, if it has the size that ``lq`` has at ``scale``.

    Raises:
        InputError: it has another.
    """
    found, expected = tuple(restored.shape), (lq.shape[0], 3, *output_size(lq.shape[-2], lq.shape[-1], scale))
    if found != expected:
        raise InputError(
            f"{name} gave {found}, expected {expected}: the picture's sides times the scale, rounded. "
            f"Its package must keep the Restorer protocol."
        )
    return restored


def _restore_tiled(
    restorer: Restorer,
    lq: Tensor,
    native: int,
    tile: int,
    prompts: Sequence[Prompt | None] | None,
    noise: NoiseSource | None,
) -> Tensor:
    spec = restorer.spec
    dtype = torch.float16 if lq.shape[-2] * lq.shape[-1] * native**2 > HALF_ABOVE else lq.dtype
    if isinstance(restorer, TilingRestorer):
        grown = pad_to(lq, multiple_of=spec.multiple_of, min_size=spec.min_size)
        return check_size(restorer.restore_tiled(grown, tile=tile, dtype=dtype), grown, native, spec.name)
    numbers = itertools.count()

    def one(part: Tensor) -> Tensor:
        own = noise.tile(next(numbers)) if isinstance(noise, SeededNoise) else noise
        grown = pad_to(part, multiple_of=spec.multiple_of, min_size=spec.min_size).clone()  # tiles overlap
        out = check_size(restorer.restore(grown, prompts=prompts, noise=own), grown, native, spec.name)
        return out[..., : part.shape[-2] * native, : part.shape[-1] * native]

    return tiled(one, lq, tile=tile, halo=spec.tile_halo, scale=native, dtype=dtype)


def finish(restored: Tensor, name: str, *, ours: bool) -> Tensor:
    """On the CPU, in [0, 1]. Only tensors put together from tiles, which can be huge, are changed in place.

    Raises:
        InputError: the restorer gave values that are not finite.
    """
    if not (isinstance(restored, Tensor) and restored.is_floating_point()):
        kind = restored.dtype if isinstance(restored, Tensor) else type(restored).__name__
        raise InputError(f"{name} gave {kind}; expected a floating-point tensor of pictures.")
    restored = restored.detach()  # a model may have recorded gradients of its own
    low, high = (value.item() for value in torch.aminmax(restored))
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError(
            f"{name} gave values that are not finite. If it runs in half precision, use float32: .to(dtype=torch.float32)."
        )
    if low >= 0 and high <= 1:
        if ours:
            return (restored if restored.dtype == torch.float16 else restored.float()).cpu()
        return restored.to("cpu", torch.float32, copy=True)  # a restorer may use what it gave again
    sample = restored[..., ::8, ::8]
    if ((sample < -RANGE_SLACK) | (sample > 1 + RANGE_SLACK)).float().mean() > RANGE_SHARE:
        warnings.warn(
            f"{name} gave values from {low:.3g} to {high:.3g}; what is outside [0, 1] is cut off. Where a model uses another "
            "range, wrap a function around it that takes and gives [0, 1].",
            stacklevel=5,
        )
    clamped = restored.clamp_(0, 1) if ours else restored.clamp(0, 1)
    return (clamped if ours and clamped.dtype == torch.float16 else clamped.float()).cpu()
