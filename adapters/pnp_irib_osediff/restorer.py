"""OSEDiff as a restorer."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.lora import adapter_names, merge
from pnp_irib.diffusion.model import EPS
from pnp_irib.diffusion.one_step import OneStepResult, one_step
from pnp_irib.diffusion.places import SD21_BASE
from pnp_irib.diffusion.published import batch_of, eight_bits, enlarge, recolor, truncated, whole_scale
from pnp_irib.diffusion.restorer import DiffusionRestorer, check_options
from pnp_irib.diffusion.vae import PublishedTiles
from pnp_irib.errors import ConfigError, WeightsError, check_number
from pnp_irib.images.color import ColorMatch
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import origin_of, resolve_file
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, VAE_ADAPTER, Checkpoint
from pnp_irib_osediff.spec import OSEDIFF, OSEDIFF_FACE

__all__ = ["OSEDiff", "load_osediff", "load_osediff_face", "prompt_text"]


class OSEDiff(DiffusionRestorer):
    """One step of Stable Diffusion 2.1 with OSEDiff's LoRA, as a `Restorer`.

    Args:
        base: Stable Diffusion 2.1-base in float32. OSEDiff's LoRA is put on it; with ``merged`` its weights change.
        checkpoint: what is trained of OSEDiff.
        spec: which model.
        merged: fold the LoRA into the weights, which is faster. Not, where the base is shared.
        compat: "upstream" keeps to the published script in every step: 8-bit pictures, truncated instead of rounded; sizes
            that are multiples of 8 and never below ``process_size``, whatever ``scale`` says; weights of latent tiles off
            their centre; statistics of VAE tiles. None mends these.
        upscale: enlargement where a call gives no ``scale``; None: that of the spec.
        process_size: the shorter side of what the network sees is at least this, pixels.
        color: how the colours of the input are given back.
        latent_tile: side of the tiles of the UNet, latent pixels.
        latent_overlap: of these.
        tile_batch: tiles in one call of the UNet.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments. Without ``compat`` it works in
            strips, which have no seams.
        memory: gigabytes that weights and working memory may take on the device: text encoder, VAE and UNet then move in when
            they are used, and out where another needs the room. None: all of them stay there.
        device: where it runs.
        dtype: "auto", or a dtype of all parts.
    """

    base: StableDiffusion

    def __init__(
        self,
        base: StableDiffusion,
        checkpoint: Checkpoint,
        *,
        spec: RestorerSpec = OSEDIFF,
        merged: bool = True,
        compat: Literal["upstream"] | None = None,
        upscale: float | None = None,
        process_size: int = 512,
        color: ColorMatch = "adain",
        latent_tile: int = 96,
        latent_overlap: int = 32,
        tile_batch: int = 4,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None = None,
        memory: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        super().__init__(
            base,
            spec,
            compat=compat,
            upscale=upscale,
            process_size=process_size,
            color=color,
            latent_tile=latent_tile,
            latent_overlap=latent_overlap,
            vae_tiles=vae_tiles,
            memory=memory,
            device=device,
            dtype=dtype,
        )
        if base.noise != EPS:
            raise ConfigError(f"OSEDiff needs a base model of {EPS}; this one has {base.noise}. Is base= the right one?")
        check_number("tile_batch", tile_batch, whole=True)
        self.tile_batch = tile_batch
        taken = adapter_names(base.unet) | adapter_names(base.vae)
        if base.fingerprint is None or taken & {*UNET_ADAPTERS, VAE_ADAPTER} or (merged and taken):
            raise ConfigError(
                "the base model is in use: its weights were changed, or carry adapters that this would change. Load another "
                "base; where a projector is to share it, build the restorer first, with merged=False."
            )
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
            checkpoint.install(base.unet, base.vae)
        self.merged = merged
        if merged:
            merge(base.unet, UNET_ADAPTERS)
            merge(base.vae, [VAE_ADAPTER])
            base.fingerprint = None
        self.settle()

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Without ``noise``, the mean of the posterior is taken instead of a sample. Differentiable.

        Returns:
            (N, 3, round(H * scale), round(W * scale)). With ``compat`` and no ``scale``: of the size that the published script
            gives.

        Raises:
            ConfigError: ``compat`` and a scale that is no whole number.
        """
        embedding = self.base.embed([prompt_text(p) for p in prompts or [None] * lq.shape[0]])
        if self.compat:
            return self._as_published(lq, scale, embedding, noise)
        return self.framed(lq, scale, lambda seen: self.step(seen * 2 - 1, embedding, noise).picture * 0.5 + 0.5)

    def step(self, pictures: Tensor, embedding: Tensor, noise: NoiseSource | None) -> OneStepResult:
        """The network alone.

        Args:
            pictures: (N, 3, H, W) in [-1, 1], sides multiples of 8.
            embedding: of the prompts, see ``base.text``.
            noise: of the posterior, and with ``compat`` of the scheduler.
        """
        draw: Callable[[tuple[int, ...]], Tensor] | None = None
        if noise is not None:
            source = noise

            def draw(shape: tuple[int, ...]) -> Tensor:
                return source.normal(shape, device=self.device, dtype=self.dtype)

        with self.acting():
            result = one_step(
                self.base,
                pictures.to(device=self.device, dtype=self.dtype),
                embedding.to(device=self.device, dtype=self.dtype),
                draw=draw,
                plan=self.plan,
                batch=self.tile_batch,
                vae_mode=self.vae_mode,
                stray_noise=self.compat is not None,
            )
        return dataclasses.replace(result, picture=result.picture.clamp(-1, 1))

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Let the LoRA act on the base inside, where it is not merged."""
        if self.merged:
            yield
            return
        with self.base.acting(UNET_ADAPTERS, [VAE_ADAPTER]):
            yield

    def _as_published(self, lq: Tensor, scale: float | None, embedding: Tensor, noise: NoiseSource | None) -> Tensor:
        factor = whole_scale(self.upscale if scale is None else scale)
        size: dict[str, Any] = {"upscale": factor, "process_size": self.process_size, "last": Image.Resampling.LANCZOS}
        seen = [enlarge(picture, **size) for picture in eight_bits(lq)]
        found = self.step(batch_of(seen) * 2 - 1, embedding, noise).picture.detach() * 0.5 + 0.5
        eight = [recolor(truncated(one), other, self.color) for one, other in zip(found, seen, strict=True)]
        done = batch_of(eight).to(device=lq.device, dtype=lq.dtype)
        return done if scale is None else resize(done, output_size(lq.shape[-2], lq.shape[-1], factor))


def prompt_text(prompt: Prompt | None, user: str = "") -> str:
    """A prompt in the form that OSEDiff's published script gives its text encoder: ``tags, user prompt,``; none is empty."""
    return "" if prompt is None else f"{prompt.text}, {user},"


def load_osediff(
    base: str | Path | StableDiffusion | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> OSEDiff:
    """OSEDiff for photographs; see `_load`."""
    return _load(OSEDIFF, base, checkpoint, {"device": device, "dtype": dtype} | options)


def load_osediff_face(
    base: str | Path | StableDiffusion | None = None,
    checkpoint: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    **options: Any,
) -> OSEDiff:
    """OSEDiff for aligned faces of 512 x 512 pixels; see `_load`."""
    return _load(OSEDIFF_FACE, base, checkpoint, {"color": "none", "device": device, "dtype": dtype} | options)


def _load(
    spec: RestorerSpec, base: str | Path | StableDiffusion | None, checkpoint: str | Path | None, options: dict[str, Any]
) -> OSEDiff:
    """Build the restorer.

    Args:
        spec: which one.
        base: Stable Diffusion 2.1-base: a folder in the layout of diffusers, a single file, ``hf-hub:owner/repo``, or a loaded
            model; None: the first of its known places that has it (see `pnp_irib.diffusion.places`).
        checkpoint: the published ``.pkl`` or its safetensors copy: a path, or ``hf-hub:owner/repo/file``.
        options: see `OSEDiff`.

    Raises:
        ConfigError: there is no such option, or a loaded base was trained with other noise.
        WeightsError: something is missing, damaged, or does not fit.
    """
    accepted = list(inspect.signature(OSEDiff).parameters)
    check_options(spec.name, options, [name for name in accepted if name not in ("base", "checkpoint", "spec")])
    if checkpoint is None:
        raise WeightsError(
            f"{spec.name} needs checkpoint=, the file {spec.weights[0].name} (from {spec.weights[0].places[0]})."
        )
    model = base if isinstance(base, StableDiffusion) else StableDiffusion.load(base or SD21_BASE.key)
    path = resolve_file(checkpoint, spec=spec)
    restorer = OSEDiff(model, Checkpoint.read(path), spec=spec, **options)
    restorer.sources = (origin_of(path),)
    return restorer
