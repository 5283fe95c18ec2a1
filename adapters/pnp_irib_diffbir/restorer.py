"""DiffBIR as a restorer: a cleaner, then Stable Diffusion beside IRControlNet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.convolution import in_fewer_products
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.latents import Cuts, LatentTiles, predict_in_tiles, published_tiles
from pnp_irib.diffusion.published import batch_of, eight_bits, truncated
from pnp_irib.diffusion.restorer import DiffusionRestorer, check_choices, check_options, read_mapping
from pnp_irib.diffusion.samplers.sampling import Guide, Sampling, sample, step_count
from pnp_irib.diffusion.schedule import KeepsLastSteps, noised
from pnp_irib.diffusion.text_cleaning import cleaned
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode
from pnp_irib.errors import ConfigError, InputError, check_number, check_text
from pnp_irib.images.color import ColorMatch, match_color
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import RestorerSpec
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.sizes import SHORTEST, enlarged_as_published
from pnp_irib_diffbir.guidance import RestorationGuidance, guide
from pnp_irib_diffbir.networks import Networks
from pnp_irib_diffbir.spec import DIFFBIR
from pnp_irib_diffbir.versions import TASKS, VERSIONS, Task

__all__ = ["DiffBIR"]

WINDOW = 64  # pixels: the UNet halves latents three times
CONTROL_SHARE = 1.3  # working memory with IRControlNet over that of the UNet alone
CLEANER_MEMORY = 2**31  # that the cleaner aims at where no limit is given, bytes
SAMPLER_OPTIONS = ("s_churn", "s_tmin", "s_tmax", "s_noise", "eta", "order")


class DiffBIR(KeepsLastSteps, DiffusionRestorer):
    """A cleaner takes the degradation away, Stable Diffusion 2.1 with IRControlNet adds detail. As a `Restorer`.

    Base, networks and cleaner belong to it: it moves them, and a second one over the same would move them as well.

    Args:
        base: Stable Diffusion 2.1-base, for version 2.1 fine-tuned to begin at pure noise.
        networks: its UNet, and IRControlNet.
        cleaner: the first stage.
        version: "v2.1", "v2" or "v1": what the options below are where they are None.
        task: "sr", "denoise" or "face".
        spec: which model.
        sampler: one of `pnp_irib.diffusion.samplers.sampling.SAMPLERS`.
        num_inference_steps: of it.
        guidance_scale: weight of the prompt over the negative one; at exactly 1 there is no negative one.
        rescale_guidance: let the scale rise from 1 to 1 + ``guidance_scale`` on the way.
        sampler_options: of the sampler: s_churn, s_tmin, s_tmax, s_noise, eta or order, see
            `pnp_irib.diffusion.samplers.sampling.Sampling`.
        conditioning_scale: of what IRControlNet adds.
        added_prompt: words behind the prompt.
        negative_prompt: what the picture is led away from.
        start: "noise" starts from noise alone, "cond" from the cleaned picture in noise; the same where the base begins at
            pure noise.
        noise_augmentation: timestep of the noise that is put on the condition; 0: none.
        restoration_guidance: pulls every estimate towards the cleaned picture, see `RestorationGuidance`, of which a mapping
            states the arguments; None: nothing does. With ``compat`` for the sampler "spaced", without latent tiles.
        compat: "upstream" keeps to the published script in every step: 8-bit pictures, truncated instead of rounded; black
            beyond the picture; grids, draws and rounding of its samplers; weights of tiles off their centre. None mends these.
        upscale: enlargement where a call gives no ``scale``; None: 4 for "sr", else 1.
        process_size: the shorter side of what the networks see is at least this, pixels.
        color: how the colours of the cleaned picture are given back.
        latent_tile: side of the tiles of the networks, latent pixels; None: 96, with ``compat`` one piece.
        latent_overlap: of these; None: 16, with ``compat`` half a tile.
        batch: latents in one call of the networks: tiles, and the two halves of guidance.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments; what this leaves out stays in
            one piece, as all does with None. Without ``compat`` it works in strips, which have no seams.
        cleaner_tile: side of the tiles of the cleaner with ``compat``, pixels; None: one piece.
        memory: gigabytes that weights and working memory may take on the device: cleaner, text encoder, VAE and networks then
            move in when they are used, and out where another needs the room. None: all of them stay there.
        device: where it runs.
        dtype: "auto", or a dtype of all parts but the cleaner, which has its own.

    Attributes:
        on_step: called in every step with its number, the latent that the networks are asked about first, and the picture's
            latent as it is estimated from it, see `pnp_irib.diffusion.samplers.sampling.sample`; None: nothing is.

    Raises:
        ConfigError: an option has a value that is impossible.
    """

    base: StableDiffusion
    whole_scales: ClassVar[bool] = False
    usual_tiles: ClassVar[PublishedTiles] = PublishedTiles(encoder=None, decoder=None, narrow_whole=True)

    def __init__(
        self,
        base: StableDiffusion,
        networks: Networks,
        cleaner: Cleaner,
        *,
        version: str = "v2.1",
        task: Task = "sr",
        spec: RestorerSpec = DIFFBIR,
        sampler: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        rescale_guidance: bool = False,
        sampler_options: Mapping[str, Any] | None = None,
        conditioning_scale: float = 1.0,
        added_prompt: str | None = None,
        negative_prompt: str | None = None,
        start: Literal["noise", "cond"] = "noise",
        noise_augmentation: int = 0,
        restoration_guidance: RestorationGuidance | Mapping[str, Any] | None = None,
        compat: Literal["upstream"] | None = None,
        upscale: float | None = None,
        process_size: int = SHORTEST,
        color: ColorMatch = "wavelet",
        latent_tile: int | None = None,
        latent_overlap: int | None = None,
        batch: int = 2,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None = None,
        cleaner_tile: int | None = None,
        memory: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        check_choices(version=(version, tuple(VERSIONS)), task=(task, tuple(TASKS)), start=(start, ("noise", "cond")))
        stated = VERSIONS[version]
        tile = 96 if latent_tile is None else latent_tile
        overlap = (tile // 2 if compat else min(16, tile // 2)) if latent_overlap is None else latent_overlap
        facts = {"lq_profile": stated.lq_profile, "weights": stated.files(task), "title": f"DiffBIR {version} ({task})"}
        super().__init__(
            base,
            spec.model_copy(update=facts),
            compat=compat,
            upscale=TASKS[task] if upscale is None else upscale,
            process_size=process_size,
            color=color,
            latent_tile=tile,
            latent_overlap=overlap,
            vae_tiles=vae_tiles,
            memory=memory,
            device=device,
            dtype=dtype,
        )
        if cleaner_tile is not None and not compat:
            raise ConfigError("cleaner_tile is for compat='upstream'; without it memory= decides.")
        if base.noise != stated.noise:
            raise ConfigError(
                f"DiffBIR {version} needs a base model of {stated.noise}; this one has {base.noise}. Is base= the right one?"
            )
        if not torch.allclose(base.alphas, base.noise.alphas, atol=1e-4):
            raise ConfigError(
                "the base model was trained with other noise levels than Stable Diffusion. Is base= the right one?"
            )
        given = {} if sampler_options is None else read_mapping("sampler_options", sampler_options, "eta: 0.5")
        if unknown := [name for name in given if name not in SAMPLER_OPTIONS]:
            raise ConfigError(f"sampler_options: no {unknown[0]!r:.40}; expected {', '.join(SAMPLER_OPTIONS)}.")
        whole = {"batch": batch, "cleaner_tile": cleaner_tile, "num_inference_steps": num_inference_steps}
        for option, number in whole.items():
            if number is not None:
                check_number(option, number, whole=True)
        for option, weight in (("conditioning_scale", conditioning_scale), ("guidance_scale", guidance_scale)):
            if weight is not None:
                check_number(option, weight, zero=True)
        check_number("noise_augmentation", noise_augmentation, whole=True, zero=True, most=len(base.alphas) - 1)
        self.sampling = Sampling(
            sampler=stated.sampler if sampler is None else sampler,
            steps=stated.steps if num_inference_steps is None else num_inference_steps,
            guidance=stated.guidance if guidance_scale is None else guidance_scale,
            rescale_guidance=rescale_guidance,
            published=compat is not None,
            **given,
        )
        step_count(self.sampling, base.noise.numbers, base.noise.prediction)  # checks it
        if restoration_guidance is not None and not isinstance(restoration_guidance, RestorationGuidance):
            stated_guidance = read_mapping("restoration_guidance", restoration_guidance, "scale: 0.05", needed="scale")
            check_options("restoration_guidance", stated_guidance, [f.name for f in fields(RestorationGuidance)])
            restoration_guidance = RestorationGuidance(**stated_guidance)
        if compat and restoration_guidance and (self.sampling.sampler != "spaced" or latent_tile is not None):
            raise ConfigError("the published restoration guidance is for sampler='spaced', without latent tiles.")
        self.restoration_guidance = restoration_guidance
        self.networks, self.cleaner, self.batch = networks, cleaner, batch
        self.conditioning_scale, self.noise_augmentation, self.start = conditioning_scale, noise_augmentation, start
        self.added_prompt = stated.positive if added_prompt is None else added_prompt
        self.negative_prompt = stated.negative if negative_prompt is None else negative_prompt
        for option in ("added_prompt", "negative_prompt"):
            check_text(option, getattr(self, option))
        self.cleaner_tile, self._latent_tiled = cleaner_tile, latent_tile is not None
        self.on_step: Callable[[int, Tensor, Tensor], None] | None = None
        if compat:  # plain layouts add up in the published order
            for part in (networks, base.vae):
                for parameter in part.parameters():
                    parameter.data = parameter.data.contiguous()
        self.settle(**({} if memory is None else {"unet": networks, "cleaner": cleaner}))

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto". The cleaner moves along and keeps its dtype."""
        super().to(device, dtype)
        waiting = self.base.offload is not None
        self.networks.to(device=None if waiting else self.device, dtype=self.dtype)
        if not waiting:
            self.cleaner.to(self.device)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Differentiable without ``compat``, see also `gradients_through`.

        Without ``noise`` every picture has that of seed 0.

        Raises:
            ConfigError: with ``compat``, a scale at which no pixel is left.
            InputError: prompts that do not fit the pictures.
        """
        texts = self.texts(lq.shape[0], prompts)
        noise = SeededNoise([0] * lq.shape[0]) if noise is None else noise
        scale = self.upscale if scale is None else scale
        if self.compat:
            return self._as_published(lq, scale, texts, noise)
        size = output_size(lq.shape[-2], lq.shape[-1], scale)
        seen = self.clean(lq, size).clamp(0, 1)
        return self.finished(seen, size, lambda x: self.denoise(x, texts, noise).mul(0.5).add_(0.5), multiple_of=WINDOW)

    def texts(self, count: int, prompts: Sequence[Prompt | None] | None) -> list[str]:
        """What the text encoder is given for ``count`` pictures.

        Raises:
            InputError: there are more or fewer prompts.
        """
        given = list(prompts) if prompts is not None else [None] * count
        if len(given) != count:
            raise InputError(f"{len(given)} prompts for {count} pictures; give one a picture, which may be None.")
        own = ("" if prompt is None else str(prompt) for prompt in given)
        return [cleaned(", ".join(part for part in (text, self.added_prompt) if part)) for text in own]

    def clean(self, lq: Tensor, size: tuple[int, int]) -> Tensor:
        """The first stage, see `pnp_irib_diffbir.cleaners.cleaner.Cleaner.clean`."""
        limit = CLEANER_MEMORY if self.base.offload is None else max(1, self.base.offload.room("cleaner"))
        with self.base.stage("cleaner", min(limit, lq.shape[0] * size[0] * size[1] * self.cleaner.kind.bytes_per_pixel)):
            return self.cleaner.clean(lq, size, shortest=self.shortest(*size), memory=limit)

    def denoise(self, pictures: Tensor, texts: Sequence[str], noise: NoiseSource) -> Tensor:
        """The second stage.

        Args:
            pictures: cleaned, (N, 3, H, W) in [0, 1], sides multiples of 8.
            texts: see `texts`.
            noise: of the start, of the condition where it is augmented, and of the sampler.

        Returns:
            (N, 3, H, W) in about [-1, 1], not clamped.
        """
        pictures = pictures.to(device=self.device, dtype=self.dtype)
        pull = None
        if self.restoration_guidance is not None:
            published = self.compat is not None
            pull = guide(self.restoration_guidance, self.base, pictures * 2 - 1, noise, published=published)
        latent = self.generate(self.condition(pictures), texts, noise, pull)
        with self.base.vae_stage(pictures, self.vae_mode, decoder=True) as mode:
            return decode(self.base.vae, latent / self.base.vae.config.scaling_factor, mode)

    def condition(self, pictures: Tensor) -> Tensor:
        """What IRControlNet sees of pictures, (N, 4, H/8, W/8): the mean of the VAE's posterior, scaled."""
        with self.base.vae_stage(pictures, self.vae_mode, decoder=False) as mode:
            mean, _ = encode(self.base.vae, pictures.mul(2).sub_(1), mode)
        return mean * float(self.base.vae.config.scaling_factor)

    def generate(self, condition: Tensor, texts: Sequence[str], noise: NoiseSource, pull: Guide | None = None) -> Tensor:
        """The latent of the restored picture.

        Args:
            condition: see `condition`, (N, 4, h, w).
            texts: see `texts`.
            noise: see `denoise`.
            pull: changes every estimate of the picture's latent.

        Returns:
            (N, 4, h, w), scaled.
        """
        height, width = condition.shape[-2:]
        tiles = self.plan(height, width)
        if self.compat and tiles is None:
            condition = F.pad(condition, (0, -width % 8, 0, -height % 8))
        words = self.base.embed([*texts, cleaned(self.negative_prompt)]).to(device=self.device, dtype=self.dtype)
        alphas = self.base.noise.numbers

        def draw() -> Tensor:
            return noise.normal(tuple(condition.shape), device=self.device, dtype=torch.float32)

        latent = draw()
        if self.start == "cond":
            latent = noised(condition, latent, float(alphas[-1]))
        if self.noise_augmentation:
            condition = noised(condition, draw(), float(alphas[self.noise_augmentation])).to(condition.dtype)
        with contextlib.nullcontext() if self.compat else in_fewer_products(self.networks):
            latent = sample(
                self.sampling,
                alphas,
                self.base.noise.prediction,
                self.predictor(condition, words, tiles),
                latent,
                noise,
                kept=self.kept_steps,
                each=self.on_step,
                guide=pull,
            )
        return latent[..., :height, :width].to(condition.dtype)

    def plan(self, height: int, width: int) -> LatentTiles | None:
        """Tiles for a latent; with gradients, without ``compat``, none."""
        if not self.compat:
            return super().plan(height, width)
        if not self._latent_tiled or min(height, width) < self.latent_tile:
            return None
        return published_tiles(height, width, tile=self.latent_tile, stride=self.latent_tile - self.latent_overlap)

    def predictor(
        self, condition: Tensor, words: Tensor, tiles: LatentTiles | None
    ) -> Callable[[Tensor, float, float], Tensor]:
        """What the networks predict, see `pnp_irib.diffusion.samplers.sampling.Predict`.

        Args:
            condition: see `condition`, (N, 4, h, w).
            words: embeddings of the N texts and of the negative prompt.
            tiles: of the latent; None: one piece.
        """
        most, working = self.at_a_time(
            tiles.height * tiles.width if tiles else condition[0, 0].numel(), self.batch, CONTROL_SHARE
        )

        def predict(latent: Tensor, timestep: float, scale: float) -> Tensor:
            def part(cut: Tensor, cuts: Cuts) -> Tensor:
                seen, text = cuts.of(condition), words[cuts.pictures]
                if scale == 1:
                    return self._output(cut, timestep, text, seen, most)
                both = [torch.cat([x, x]) for x in (cut, seen)]
                found = self._output(both[0], timestep, torch.cat([words[-1:].expand_as(text), text]), both[1], most)
                without, along = found.chunk(2)
                return without + scale * (along - without)

            together = most if scale == 1 else max(1, most // 2)
            # For every call: guidance may have had the VAE take the place of the networks.
            with self.base.stage("unet", working):
                return predict_in_tiles(part, latent.to(self.dtype), tiles, batch=together)

        return predict

    def _output(self, latent: Tensor, timestep: float, text: Tensor, condition: Tensor, most: int) -> Tensor:
        """The networks, ``most`` latents at a time."""
        parts = (x.split(most) for x in (latent, text, condition))
        found = [
            self.networks(part, timestep, words, seen, self.conditioning_scale)
            for part, words, seen in zip(*parts, strict=True)
        ]
        return torch.cat(found)

    @torch.no_grad()
    def _as_published(self, lq: Tensor, scale: float, texts: Sequence[str], noise: NoiseSource) -> Tensor:
        height, width = (int(side * scale) for side in lq.shape[-2:])
        if not (height and width):
            raise ConfigError(f"scale={scale}: the published script leaves no pixel of {tuple(lq.shape[-2:])}.")
        if self.cleaner.kind.sees == "given":
            given = batch_of(eight_bits(lq)).to(self.device)
        else:
            given = enlarged_as_published(lq, scale).to(self.device)
        with self.base.stage("cleaner"):
            seen = self.cleaner.as_published(given, (height, width), tile=self.cleaner_tile, shortest=self.process_size)
        found = self.denoise(self.padded_as_published(seen), texts, noise)[..., : seen.shape[-2], : seen.shape[-1]]
        picture = match_color(found.float() * 0.5 + 0.5, seen, self.color)
        size = output_size(lq.shape[-2], lq.shape[-1], scale)  # sides cut to whole pixels are not what a restorer gives
        picture = F.interpolate(picture, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        return batch_of([truncated(one) for one in picture]).to(device=lq.device, dtype=lq.dtype)

    def padded_as_published(self, pictures: Tensor) -> Tensor:
        """With black on the right and below, to multiples of 64 pixels, or of 8 where any tiles were asked for."""
        tiled = self._latent_tiled or (isinstance(self.vae_mode, PublishedTiles) and self.vae_mode.encoder is not None)
        multiple = self.base.factor if tiled else WINDOW
        return F.pad(pictures, (0, -pictures.shape[-1] % multiple, 0, -pictures.shape[-2] % multiple))
