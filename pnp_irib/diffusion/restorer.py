"""What restorers on Stable Diffusion share: their options, where they run, and the frame around their networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.latents import LatentTiles, plan_latent_tiles
from pnp_irib.diffusion.model import DiffusionModel
from pnp_irib.diffusion.offload import unet_bytes
from pnp_irib.diffusion.published import whole_scale
from pnp_irib.diffusion.vae import PublishedTiles, VaeMode
from pnp_irib.errors import ConfigError, check_number, did_you_mean
from pnp_irib.hub import Origin
from pnp_irib.images.color import ColorMatch, match_color
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.runtime import choose_device, choose_dtype
from pnp_irib.spec import RestorerSpec

__all__ = ["DiffusionRestorer", "check_choices", "check_options", "read_mapping"]

LONGEST = 16  # times its shorter side: beyond, a picture is not enlarged until that is as long as usual


class DiffusionRestorer:
    """Base class of restorers on Stable Diffusion that enlarge the picture first.

    Args:
        base: the model.
        spec: which restorer.
        compat: "upstream" keeps to the published script in every step; None mends what is amiss there.
        upscale: enlargement where a call gives no ``scale``; None: that of the spec.
        process_size: the shorter side of what the networks see is at least this, pixels; less for pictures longer than 16:1.
        color: how the colours of the input are given back.
        latent_tile: side of the tiles of the networks, latent pixels.
        latent_overlap: of these.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments; what this leaves out is as in
            `usual_tiles`, as all is with None. Without ``compat`` it works in strips, which have no seams.
        memory: gigabytes that weights and working memory may take on the device: the parts then take turns. None: all of
            them stay there.
        device: where it runs, once `settle` is called.
        dtype: "auto", or a dtype of its parts.

    Attributes:
        sources: what it was loaded from, beside the base.

    Raises:
        ConfigError: an option has a value that is impossible.
    """

    whole_scales: ClassVar[bool] = True
    """Whether the published script enlarges as `pnp_irib.diffusion.published.enlarge` does."""
    usual_tiles: ClassVar[PublishedTiles] = PublishedTiles()
    """Of the VAE, as far as the published script is not told otherwise."""

    def __init__(
        self,
        base: DiffusionModel[Any],
        spec: RestorerSpec,
        *,
        compat: Literal["upstream"] | None,
        upscale: float | None,
        process_size: int,
        color: ColorMatch,
        latent_tile: int,
        latent_overlap: int,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None,
        memory: float | None,
        device: str | torch.device,
        dtype: str | torch.dtype,
    ) -> None:
        upscale = spec.default_scale if upscale is None else upscale
        check_number("upscale", upscale, most=64)
        assert upscale is not None
        for option, value in (("process_size", process_size), ("latent_tile", latent_tile)):
            check_number(option, value, whole=True)
        check_number("latent_overlap", latent_overlap, whole=True, zero=True)
        check_choices(compat=(compat, (None, "upstream")), color=(color, ("adain", "wavelet", "none")))
        plan_latent_tiles(1, 1, tile=latent_tile, overlap=latent_overlap)  # checks them
        if compat and self.whole_scales and process_size // whole_scale(upscale) * upscale < 8:
            raise ConfigError(
                f"process_size={process_size}: with compat and upscale={upscale:g}, pictures of no pixels arise."
            )
        if vae_tiles is not None and not compat:
            raise ConfigError("vae_tiles are for compat='upstream'; without it the VAE works in strips, which have no seams.")
        if memory is not None:
            check_number("memory", memory)
        where = choose_device(str(device))
        self._asked = (where, choose_dtype(dtype, where, spec.safe_dtypes), memory)
        # The published steps go through 8 bits.
        differentiable = spec.differentiable and compat is None
        self.spec = spec.model_copy(update={"default_scale": float(upscale), "differentiable": differentiable})
        self.base: DiffusionModel[Any] = base
        self.sources: tuple[Origin, ...] = ()
        self.compat, self.upscale, self.process_size, self.color = compat, upscale, process_size, color
        self.latent_tile, self.latent_overlap = latent_tile, latent_overlap
        self.vae_mode: VaeMode = self._tiles(vae_tiles) if compat else "strips"

    def _tiles(self, given: PublishedTiles | Mapping[str, Any] | None) -> PublishedTiles:
        if isinstance(given, PublishedTiles):
            return given
        stated = {} if given is None else read_mapping("vae_tiles", given, "encoder: 512, decoder: 64")
        check_options("vae_tiles", stated, [field.name for field in fields(PublishedTiles)])
        return replace(self.usual_tiles, **stated)

    def settle(self, **stages: nn.Module) -> None:
        """Move to where it was asked to run; for the end of building it.

        Args:
            stages: parts beside those of the base that take turns in a limited memory, see `DiffusionModel.limit_memory`.
        """
        device, dtype, memory = self._asked
        if memory is not None:
            self.base.limit_memory(int(memory * 1e9), device, **stages)
        self.to(device, dtype)

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto"."""
        target = self.base.device if device is None else choose_device(str(device))
        if dtype is not None:
            dtype = choose_dtype(dtype, target, self.spec.safe_dtypes)
        self.base.to(target, dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.base.device

    @property
    def dtype(self) -> torch.dtype:
        """Of its parts."""
        return self.base.dtype

    @property
    def origins(self) -> tuple[Origin, ...]:
        """What it was loaded from: its own files, and the base."""
        return (*self.sources, *(() if self.base.origin is None else (self.base.origin,)))

    def framed(
        self,
        lq: Tensor,
        scale: float | None,
        network: Callable[[Tensor], Tensor],
        *,
        multiple_of: int | None = None,
        color: ColorMatch | None = None,
    ) -> Tensor:
        """Enlarge, restore, give the colours back, and bring to the size that was asked for.

        Args:
            lq: (N, 3, H, W) in [0, 1].
            scale: see `pnp_irib.Restorer`.
            network: maps pictures (N, 3, h, w) in [0, 1], sides multiples of ``multiple_of``, to restored ones, about [0, 1].
            multiple_of: sides of what the network sees, pixels; None: ``base.factor``.
            color: how the colours are given back; None: as the option says.

        Returns:
            (N, 3, round(H * scale), round(W * scale)).
        """
        size = output_size(lq.shape[-2], lq.shape[-1], self.upscale if scale is None else scale)
        larger = max(1.0, self.shortest(*size) / min(size))
        seen = resize(lq, (max(size[0], round(size[0] * larger)), max(size[1], round(size[1] * larger)))).clamp(0, 1)
        return self.finished(seen, size, network, multiple_of=multiple_of, color=color).to(lq)

    def finished(
        self,
        seen: Tensor,
        size: tuple[int, int],
        network: Callable[[Tensor], Tensor],
        *,
        multiple_of: int | None = None,
        color: ColorMatch | None = None,
    ) -> Tensor:
        """Restore enlarged pictures, give the colours back, and bring to a size.

        Args:
            seen: (N, 3, h, w) in [0, 1].
            size: (height, width) of the result.
            network: see `framed`.
            multiple_of: see `framed`.
            color: see `framed`.

        Returns:
            (N, 3, *size), of the dtype of ``seen``.

        Raises:
            ConfigError: gradients are asked for while parts take turns on a device.
        """
        if self.base.offload is not None and self.device.type != "cpu" and torch.is_grad_enabled() and seen.requires_grad:
            raise ConfigError("memory= moves parts away that the backward pass needs. Leave it out to pass gradients.")
        multiple_of = self.base.factor if multiple_of is None else multiple_of
        picture = network(pad_to(seen, multiple_of=multiple_of))[..., : seen.shape[-2], : seen.shape[-1]].to(seen)
        return resize(match_color(picture, seen, self.color if color is None else color), size)

    def shortest(self, height: int, width: int) -> int:
        """Least shorter side of what the networks see of a picture: ``process_size``; less beyond 16:1, for the area's sake.

        Args:
            height: that is wanted.
            width: that is wanted.
        """
        ratio = max(height, width) / min(height, width)
        return max(1, round(self.process_size * min(1.0, math.sqrt(LONGEST / ratio))))

    def at_a_time(self, positions: int, most: int, share: float) -> tuple[int, int]:
        """How many latents the networks take in one call, and the bytes of working memory for it.

        Args:
            positions: of one latent.
            most: latents.
            share: working memory of the networks over that of the UNet alone.
        """
        each = share * unet_bytes(self.base.unet, positions, self.dtype.itemsize)
        if self.base.offload is not None:
            most = max(1, min(most, int(self.base.offload.room("unet") / each)))
        return most, int(most * each)

    def plan(self, height: int, width: int) -> LatentTiles | None:
        """Tiles for a latent; with gradients, without ``compat``, none."""
        if torch.is_grad_enabled() and not self.compat:
            return None
        compat = self.compat is not None
        return plan_latent_tiles(height, width, tile=self.latent_tile, overlap=self.latent_overlap, compat=compat)


def check_choices(**options: tuple[Any, Sequence[Any]]) -> None:
    """Check options that are one of a few words; each is given with its value and the words.

    Raises:
        ConfigError: it is another.
    """
    for name, (value, known) in options.items():
        if value not in known:
            raise ConfigError(f"{name}={value!r}; expected {', '.join(map(str, known[:-1]))} or {known[-1]}.")


def read_mapping(option: str, value: object, example: str, *, needed: str | None = None) -> dict[str, Any]:
    """An option that is a mapping, as a dictionary.

    Args:
        option: its name.
        value: of it.
        example: of what stands between its braces.
        needed: a key that it must have.

    Raises:
        ConfigError: it is none, or lacks what is needed.
    """
    if not isinstance(value, Mapping) or (needed is not None and needed not in value):
        raise ConfigError(
            f"{option}={value!r:.60}: expected a mapping{f' with {needed}' if needed else ''}, such as {{{example}}}."
        )
    return dict(value)


def check_options(restorer: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Check the names of options.

    Raises:
        ConfigError: there is no such option.
    """
    if unknown := [name for name in given if name not in known]:
        hint = did_you_mean(str(unknown[0]), known)
        raise ConfigError(f"{restorer} has no option {unknown[0]!r}. {hint}Its options: {', '.join(known)}.")
