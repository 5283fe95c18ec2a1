"""Pipelines of diffusers as restorers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from pnp_irib.errors import ConfigError, InputError, WrapError, check_number, check_text, did_you_mean
from pnp_irib.images.padding import pad_to
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import seeded
from pnp_irib.runtime import choose_device, choose_dtype, evaluating
from pnp_irib.spec import Licence, RestorerSpec
from pnp_irib_diffusers.spec import KINDS, Kind, kind_of

if TYPE_CHECKING:
    from pnp_irib.profile import DegradationProfile
    from pnp_irib.prompts import Prompt
    from pnp_irib.restorer import NoiseSource

__all__ = ["PipelineRestorer", "restorer_for"]

STRENGTH = 0.3  # of noise: enough for new detail, too little for another picture


class PipelineRestorer:
    """An upscaling, image-to-image or tile-ControlNet pipeline of diffusers, as a `Restorer`.

    Upscaling pipelines have a scale of their own. All others are given the picture enlarged bicubically, to any scale, and
    keep its size where a call states none. A ControlNet must be one that takes the picture itself, as tile nets do.

    The pipeline is borrowed: a call leaves its modules, its scheduler, its progress bar and the random numbers of the process
    as they were. Not differentiable.

    Args:
        pipeline: one of `pnp_irib_diffusers.spec.KINDS`.
        steps: of denoising; None: as many as the pipeline takes by itself. With a strength, this share of them is taken.
        guidance: how much the prompt is followed; None: as much as the pipeline does by itself. Up to 1 there is no guidance,
            which halves the time.
        strength: noise that the picture is given, from above 0 (nearly none) to 1 (nothing of it is left); only for
            image-to-image pipelines; None: 0.3.
        negative_prompt: what is not to be seen.
        lq_profile: what it was trained on, if known.

    Raises:
        WrapError: it is another pipeline.
        ConfigError: an option is impossible, or not of this pipeline.
    """

    def __init__(
        self,
        pipeline: Any,
        *,
        steps: int | None = None,
        guidance: float | None = None,
        strength: float | None = None,
        negative_prompt: str | None = None,
        lq_profile: DegradationProfile | None = None,
    ) -> None:
        name, kind = type(pipeline).__name__, _kind(pipeline)
        if isinstance(getattr(getattr(pipeline, "controlnet", None), "nets", None), nn.ModuleList):
            raise WrapError(f"this {name} has several ControlNets; expected one, a tile net, which takes the picture itself.")
        if steps is not None:
            check_number("steps", steps, whole=True)
        if guidance is not None:
            check_number("guidance", guidance, zero=True)
        if negative_prompt is not None:
            check_text("negative_prompt", negative_prompt)
        given = {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative_prompt}
        self._options = {option: value for option, value in given.items() if value is not None}
        if kind.strength:
            self._options["strength"] = _strength(pipeline, steps, STRENGTH if strength is None else strength)
        elif strength is not None:
            raise ConfigError(f"strength={strength!r:.60}: {name} starts from noise alone. Leave strength out.")
        self.pipeline = pipeline
        self._kind = kind
        multiple = least = pipeline.vae_scale_factor
        if kind.halving:  # of latents that were doubled before, down to two pixels, since these are reflected
            multiple *= max(1, 2**pipeline.unet.num_upsamplers // 2)
            least = 2 * multiple
        self._grid = {"multiple_of": multiple, "min_size": least}
        self.spec = RestorerSpec(
            name=kind.name,
            title=f"{name} of diffusers",
            scale=kind.scale,
            default_scale=None if kind.scale else 1,
            **self._grid if kind.scale else {},  # the others are padded after they were enlarged
            safe_dtypes=("float32", "bfloat16"),
            prompts="optional",
            deterministic=False,
            lq_profile=lq_profile,
            code_licence=Licence(name="Apache-2.0", commercial=True),
            weights_licence=Licence(name="of the model's author", commercial=None),
        )

    @property
    def device(self) -> torch.device:
        """Where the pipeline computes."""
        device: torch.device = self.pipeline._execution_device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """What its denoiser works in."""
        dtype: torch.dtype = self.pipeline.unet.dtype
        return dtype

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move the pipeline itself, as the user would; names may be "auto"."""
        if device is not None and not isinstance(device, torch.device):
            device = choose_device(device)
        if dtype is not None:
            dtype = choose_dtype(dtype, device or self.device, self.spec.safe_dtypes)
        self.pipeline.to(device=device, dtype=dtype)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Takes any size. No gradients.

        Each picture is a call of its own, so that its neighbours change nothing, not even in the last digit; its random
        numbers come from its own seed: that of ``noise``, or 0.

        Returns:
            (N, 3, round(H * scale), round(W * scale)), of the dtype of ``lq``.

        Raises:
            InputError: the pipeline's safety checker painted a picture black, or the pipeline gave another size.
        """
        texts = ["" if prompt is None else prompt.text for prompt in prompts or [None] * lq.shape[0]]
        parts = zip(lq.detach().split(1), texts, _seeds(noise, lq.shape[0]), strict=True)
        return torch.cat([self._one(picture, scale, text, seed) for picture, text, seed in parts])

    def _one(self, lq: Tensor, scale: float | None, text: str, seed: int) -> Tensor:
        native, height, width = self._kind.scale, lq.shape[-2], lq.shape[-1]
        size = output_size(height, width, scale or native or 1)
        seen = lq if native else resize(lq, size)
        padded = pad_to(seen, **self._grid).clamp(0, 1)  # below 0, diffusers takes pictures for [-1, 1]
        restored = self._call(padded.to(device=self.device, dtype=self.dtype), text, seed).to(device=lq.device, dtype=lq.dtype)
        factor = native or 1
        found, expected = tuple(restored.shape[1:]), (3, padded.shape[-2] * factor, padded.shape[-1] * factor)
        if found != expected:
            raise InputError(
                f"{self.spec.title} gave {found} for {tuple(padded.shape[1:])}, expected {expected}. Are its parts those of a "
                f"pipeline of its class?"
            )
        return resize(restored[..., : seen.shape[-2] * factor, : seen.shape[-1] * factor], size)

    def _call(self, picture: Tensor, text: str, seed: int) -> Tensor:
        own = copy.copy(self.pipeline)  # what a call sets on the pipeline itself goes with it
        modules = [part for part in own.components.values() if isinstance(part, nn.Module)]
        for name, part in own.components.items():
            if hasattr(part, "set_timesteps"):  # a scheduler, which keeps where it is
                vars(own)[name] = copy.deepcopy(part)
        own.set_progress_bar_config(**getattr(own, "_progress_bar_config", {}) | {"disable": True})
        # Drawn on the CPU, so that devices agree. What a part draws from elsewhere comes from the seed, too.
        generator = torch.Generator().manual_seed(seed)
        with seeded(seed, picture.device), evaluating(*modules):
            result = own(
                prompt=text,
                generator=generator,
                output_type="pt",
                **dict.fromkeys(self._kind.picture, picture),
                **self._options,
            )
        if any(getattr(result, "nsfw_content_detected", None) or ()):
            raise InputError(
                "the safety checker of the pipeline took this picture for unsafe, and painted it black. Build the pipeline "
                "with safety_checker=None, or leave the picture out."
            )
        images: Tensor = result.images
        return images


def restorer_for(pipeline: Any, options: Mapping[str, Any]) -> PipelineRestorer:
    """The pipeline as a restorer.

    Args:
        pipeline: see `PipelineRestorer`.
        options: of it.

    Raises:
        WrapError: it restores no pictures.
        ConfigError: there is no such option, or its value is impossible.
    """
    kind = _kind(pipeline)
    known = [name for name in inspect.signature(PipelineRestorer).parameters if name != "pipeline"]
    if not kind.strength:
        known.remove("strength")
    if unknown := [name for name in options if name not in known]:
        raise ConfigError(
            f"{type(pipeline).__name__} has no option {unknown[0]!r} here. {did_you_mean(unknown[0], known)}Its options: "
            f"{', '.join(known)}."
        )
    return PipelineRestorer(pipeline, **options)


def _kind(pipeline: Any) -> Kind:
    kind = kind_of(pipeline)
    if kind is None:
        raise WrapError(
            f"{type(pipeline).__name__} of diffusers is not known as a restorer; known: {', '.join(KINDS)}. If it is one, "
            f"wrap a function from pictures (N, 3, H, W) in [0, 1] to (N, 3, s*H, s*W) that calls it."
        )
    return kind


def _strength(pipeline: Any, steps: int | None, strength: float) -> float:
    """The strength, if at least one step is taken with it."""
    check_number("strength", strength, most=1)
    count = steps or inspect.signature(pipeline.__call__).parameters["num_inference_steps"].default
    if int(count * strength) < 1:
        raise ConfigError(f"strength={strength:g} of {count} steps is less than one step. Raise strength or steps.")
    return strength


def _seeds(noise: NoiseSource | None, count: int) -> Sequence[int]:
    """One seed a picture."""
    if noise is None:
        return (0,) * count
    seeds: Sequence[int] | None = getattr(noise, "seeds", None)
    if seeds is None:  # any other source: the bits of a number that it draws
        drawn = noise.normal((count, 1), device=torch.device("cpu"), dtype=torch.float32)
        seeds = [int(number) % 2**31 for number in drawn.flatten().contiguous().view(torch.int32)]
    return seeds
