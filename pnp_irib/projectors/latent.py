"""The latent projector: Stable Diffusion in one step, with LoRA on VAE encoder and UNet (Kim, Kim, Ye, arXiv 2510.00728).

Only the LoRA and the UNet's first convolution are trained and saved; the base is named by its fingerprint, and may be one that
a restorer uses as well.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.latents import LatentTiles, plan_latent_tiles
from pnp_irib.diffusion.lora import UNET_LAYERS, adapter_module, adapter_scales, adapter_tensors, add_adapter, layers_named
from pnp_irib.diffusion.model import known_as
from pnp_irib.diffusion.one_step import one_step
from pnp_irib.diffusion.places import KNOWN
from pnp_irib.errors import WeightsError
from pnp_irib.hub import Origin
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.projectors.base import Architecture, Projector
from pnp_irib.prompts import Prompt

__all__ = ["LatentArchitecture", "LatentProjector"]

VAE_LAYERS = (
    "to_q",
    "to_k",
    "to_v",
    "to_out.0",
    "conv_in",
    "conv1",
    "conv2",
    "conv_shortcut",
    "conv",
    "conv_out",
    "quant_conv",
)
SMALLEST = 8  # side of a latent: the UNet halves it three times
LATENT_TILE, LATENT_OVERLAP, TILE_BATCH = 96, 32, 4


class LatentArchitecture(Architecture):
    """What a `LatentProjector` is made of."""

    kind: Literal["latent"] = "latent"
    base: str = Field(
        description="Stable Diffusion 2.1-base or a model like it: stable-diffusion-2-1-base, or a place, see `find_base`"
    )
    fingerprint: str | None = Field(default=None, description="of the base; None until it is known")
    enlargement: int = Field(default=4, ge=1, le=8, description="size of its pictures over that of the input")
    timestep: int = Field(default=999, ge=0, le=999, description="whose noise the UNet is asked for; small ones change little")
    rank_unet: int = Field(default=4, ge=1, le=256)
    rank_vae: int = Field(default=4, ge=1, le=256)
    alpha: int = Field(default=8, ge=1, le=1024, description="LoRA acts with the factor alpha / rank")

    @property
    def base_models(self) -> tuple[str, ...]:
        """The base, where it is on the Hub."""
        place = KNOWN[self.base].places[0] if self.base in KNOWN else self.base
        return (place.removeprefix("hf-hub:").partition("@")[0],) if place.startswith("hf-hub:") else ()


class LatentProjector(Projector):
    """ELQ to LQ on the enlarged grid.

    A fresh one is what its base does: at a small timestep, about the identity (the picture through the VAE and a little
    denoising). `copy_adapters` starts from the LoRA of a restorer instead.

    Args:
        architecture: see there.
        base: the model; None: read from ``architecture.base``. It is shared, not copied.

    Raises:
        WeightsError: the base cannot be read, or is another than the architecture was trained with.
    """

    config_class = LatentArchitecture
    architecture: LatentArchitecture

    def __init__(self, architecture: LatentArchitecture, base: StableDiffusion | None = None) -> None:
        super().__init__()
        base = base or StableDiffusion.load(architecture.base)
        if base.fingerprint is None:
            raise WeightsError(
                "the base model was changed by adapters that were merged into it. Give one that was not: merged=False keeps "
                "a restorer's adapters beside the weights."
            )
        if architecture.fingerprint not in (None, base.fingerprint):
            raise WeightsError(
                f"the projector was trained on a base model with the fingerprint {architecture.fingerprint[:16]}...; the one "
                f"given has {base.fingerprint[:16]}... Give the model that it was trained on."
            )
        self.architecture = architecture.model_copy(update={"fingerprint": base.fingerprint})
        self._shared = (base,)  # in a tuple: the base is no part of the projector's own weights
        self._adapter = base.free_name("projector")
        layers = {"unet": layers_named(base.unet, UNET_LAYERS), "vae": layers_named(base.vae, VAE_LAYERS)}
        # The VAE's decoder stays as it is.
        layers["vae"] = [name for name in layers["vae"] if not name.startswith("decoder.")]
        add_adapter(base.unet, self._adapter, layers["unet"], rank=architecture.rank_unet, alpha=architecture.alpha)
        add_adapter(base.vae, self._adapter, layers["vae"], rank=architecture.rank_vae, alpha=architecture.alpha)
        self.unet, self.vae = adapter_module(base.unet, self._adapter), adapter_module(base.vae, self._adapter)
        self.conv_in = copy.deepcopy(base.conv_in).float().requires_grad_()

    @classmethod
    def build(cls, architecture: Architecture, base: Any = None) -> Self:
        """See `Projector.build`. A lent base that does not fit is left alone, and the projector reads its own."""
        assert isinstance(architecture, LatentArchitecture)
        fits = False
        if isinstance(base, StableDiffusion) and base.fingerprint is not None:
            named = architecture.fingerprint
            fits = base.place == known_as(architecture.base) if named is None else base.fingerprint == named
        return cls(architecture, base if fits else None)

    @property
    def base(self) -> StableDiffusion:
        """The model, which may be shared."""
        return self._shared[0]

    @property
    def enlargement(self) -> int:
        """Size of its pictures over that of the input."""
        return self.architecture.enlargement

    @property
    def origins(self) -> tuple[Origin, ...]:
        """See `Projector.origins`; its base is the last."""
        return (*super().origins, *(() if self.base.origin is None else (self.base.origin,)))

    def copy_adapters(self, base: StableDiffusion, unet: Sequence[str], vae: Sequence[str]) -> None:
        """Start from other adapters, such as those of OSEDiff: same layers, same scale and rank, and their first convolution.

        Args:
            base: that has them, such as the restorer's own.
            unet: names of those on the UNet.
            vae: on the VAE.

        Raises:
            WeightsError: a layer has none of them, or one of another rank or scale.
        """
        own = dict(self.named_parameters())
        first: Tensor | None = None
        with torch.no_grad():
            for prefix, part, names in (("unet", base.unet, unet), ("vae", base.vae, vae)):
                found = {key: value for name in names for key, value in adapter_tensors(part, name).items()}
                scale = self.architecture.alpha / (
                    self.architecture.rank_unet if prefix == "unet" else self.architecture.rank_vae
                )
                rank = self.architecture.rank_unet if prefix == "unet" else self.architecture.rank_vae
                scale = self.architecture.alpha / rank
                if prefix == "unet":  # what it adds to the first convolution is folded into that
                    a, b = (found.pop(f"conv_in.lora_{side}.weight", None) for side in "AB")
                    if a is not None and b is not None:
                        first = scale * torch.einsum("or,rihw->oihw", b[:, :, 0, 0], a)
                mine = {key for key in own if key.startswith(f"{prefix}.")}
                given = {f"{prefix}.{key}": value for key, value in found.items()}
                if given.keys() != mine or any(own[key].shape != value.shape for key, value in given.items()):
                    raise WeightsError(
                        f"the adapters {', '.join(names)} are on other layers of the {prefix} than the projector's, or of "
                        f"another rank than {self.architecture.rank_unet} and {self.architecture.rank_vae}."
                    )
                if others := {factor for name in names for factor in adapter_scales(part, name)} - {scale}:
                    raise WeightsError(
                        f"the adapters {', '.join(names)} of the {prefix} act with the factor {others.pop():g}, the "
                        f"projector's with alpha / rank = {scale:g}. Choose another alpha."
                    )
                for key, value in given.items():
                    own[key].copy_(value)
            convolution = getattr(base.unet.conv_in, "base_layer", base.unet.conv_in)
            self.conv_in.load_state_dict(convolution.state_dict())
            if first is not None:
                self.conv_in.get_parameter("weight").add_(first)

    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """See `Projector.project`. The mean of the posterior is taken, so that nothing is random."""
        base = self.base
        height, width = (side * self.enlargement for side in elq.shape[-2:])
        enlarged = resize(elq, (height, width)).clamp(0, 1)
        given = pad_to(enlarged, multiple_of=base.factor, min_size=SMALLEST * base.factor) * 2 - 1
        texts = [prompt.text if prompt is not None else "" for prompt in prompts or [None] * elq.shape[0]]
        with self.acting():
            result = one_step(
                base,
                given.to(device=base.device, dtype=base.dtype),
                base.embed(texts).to(device=base.device, dtype=base.dtype),
                draw=None,
                timestep=self.architecture.timestep,
                plan=_plan,
                batch=TILE_BATCH,
                vae_mode="strips",
            )
        return (result.picture * 0.5 + 0.5)[..., :height, :width].to(elq.dtype)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Let the projector's own weights act on the base inside."""
        first = self.conv_in
        if first.get_parameter("weight").dtype != self.base.dtype:  # the base alone was moved to half precision
            first = copy.deepcopy(first).to(self.base.dtype)
        with self.base.acting([self._adapter], [self._adapter], conv_in=first):
            yield

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.base.offload is None:
            for part in self.base.modules:
                part._apply(fn)
        return self


def _plan(height: int, width: int) -> LatentTiles | None:
    if torch.is_grad_enabled():
        return None
    return plan_latent_tiles(height, width, tile=LATENT_TILE, overlap=LATENT_OVERLAP)
