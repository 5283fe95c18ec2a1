"""SeeSR as a restorer."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.convolution import in_fewer_products
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.latents import Cuts, LatentTiles, predict_in_tiles
from pnp_irib.diffusion.model import EPS
from pnp_irib.diffusion.published import batch_of, eight_bits, enlarge, recolor, rounded, whole_scale
from pnp_irib.diffusion.restorer import DiffusionRestorer, check_choices
from pnp_irib.diffusion.schedule import KeepsLastSteps, leading, noised, sample, steps_of, trailing
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode, sample_posterior
from pnp_irib.errors import ConfigError, InputError, check_number, check_text
from pnp_irib.images.color import ColorMatch
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.prompts.ram import RamTags
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import RestorerSpec
from pnp_irib_seesr.networks import IMAGE_WIDTH, Networks
from pnp_irib_seesr.spec import SEESR

__all__ = ["SeeSR"]

QUALITY = "clean, high-resolution, 8k"
NEGATIVE = "dotted, noise, blur, lowres, smooth"
START_LEVEL = 999  # of the published code, whichever timestep comes first
CONTROL_SHARE = 1.3  # working memory with the ControlNet over that of the UNet alone: 1.13 to 1.30 as measured


class SeeSR(KeepsLastSteps, DiffusionRestorer):
    """Stable Diffusion 2 guided by the low-quality picture, its tags and their embedding, as a `Restorer`.

    Base, networks and tagger belong to it: it moves them, and a second one over the same would move them as well.

    Args:
        base: Stable Diffusion 2-base or 2.1-base with SeeSR's UNet in place of its own, or SD-Turbo with SeeSR's image
            attention.
        networks: that UNet, and the ControlNet.
        tagger: reads tags and embedding off pictures for which no prompt has them.
        spec: which model.
        turbo: space the steps as SD-Turbo does, from the noisiest timestep.
        num_inference_steps: how many.
        guidance_scale: weight of the prompt over the negative one; at 1 and below there is no negative one.
        conditioning_scale: of what the ControlNet adds.
        added_prompt: words of quality, behind the tags.
        negative_prompt: what the picture is led away from.
        start: "lr" starts from the latent of the low-quality picture in noise, "noise" from noise alone.
        compat: "upstream" keeps to the published script in every step: 8-bit pictures, truncated instead of rounded; sizes
            that are multiples of 8, below ``process_size`` now and then; noise of timestep 999 whichever timestep comes
            first; a sample of the posterior instead of its mean; steps of equal length; weights of latent tiles off their
            centre; statistics of VAE tiles; an empty word among the prompts. None mends these.
        upscale: enlargement where a call gives no ``scale``; None: that of the spec.
        process_size: the shorter side of what the networks see is at least this, pixels.
        color: how the colours of the input are given back.
        latent_tile: side of the tiles of the networks, latent pixels.
        latent_overlap: of these; None: 4, and 32 for turbo, as published.
        batch: latents in one call of the networks: tiles, and the two halves of guidance.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments. Without ``compat`` it works in
            strips, which have no seams.
        memory: gigabytes that weights and working memory may take on the device: tagger, text encoder, VAE and networks then
            move in when they are used, and out where another needs the room. None: all of them stay there.
        device: where it runs.
        dtype: "auto", or a dtype of all parts but the tagger, which has its own.

    Attributes:
        on_step: called after every step with its number, the noise found, and the latent; None: nothing is.
    """

    base: StableDiffusion

    def __init__(
        self,
        base: StableDiffusion,
        networks: Networks,
        tagger: RamTags,
        *,
        spec: RestorerSpec = SEESR,
        turbo: bool = False,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        conditioning_scale: float = 1.0,
        added_prompt: str = QUALITY,
        negative_prompt: str = NEGATIVE,
        start: Literal["lr", "noise"] = "lr",
        compat: Literal["upstream"] | None = None,
        upscale: float | None = None,
        process_size: int = 512,
        color: ColorMatch = "adain",
        latent_tile: int = 96,
        latent_overlap: int | None = None,
        batch: int = 2,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None = None,
        memory: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        steps = (2 if turbo else 50) if num_inference_steps is None else num_inference_steps
        guidance = (1.0 if turbo else 5.5) if guidance_scale is None else guidance_scale
        overlap = (32 if turbo else 4) if latent_overlap is None else latent_overlap
        super().__init__(
            base,
            spec,
            compat=compat,
            upscale=upscale,
            process_size=process_size,
            color=color,
            latent_tile=latent_tile,
            latent_overlap=overlap,
            vae_tiles=vae_tiles,
            memory=memory,
            device=device,
            dtype=dtype,
        )
        if base.noise != EPS:
            raise ConfigError(f"SeeSR needs a base model of {EPS}; this one has {base.noise}. Is base= the right one?")
        check_number("num_inference_steps", steps, whole=True, most=len(base.alphas))
        check_number("batch", batch, whole=True)
        for option, number in (("guidance_scale", guidance), ("conditioning_scale", conditioning_scale)):
            check_number(option, number, zero=True)
        for option, text in (("added_prompt", added_prompt), ("negative_prompt", negative_prompt)):
            check_text(option, text)
        check_choices(start=(start, ("lr", "noise")))
        timesteps = trailing(steps) if turbo else leading(steps)
        self.steps = steps_of(base.alphas, timesteps, stride=len(base.alphas) // steps if compat else None)
        self.networks, self.tagger, self.batch = networks, tagger, batch
        self.guidance_scale, self.conditioning_scale = guidance, conditioning_scale
        self.added_prompt, self.negative_prompt, self.start = added_prompt, negative_prompt, start
        self.on_step: Callable[[int, Tensor, Tensor], None] | None = None
        if memory is not None:
            tagger.turn = functools.partial(base.stage, "tagger")
        self.settle(**({} if memory is None else {"unet": networks, "tagger": tagger.network}))

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto". The tagger moves along and keeps its dtype."""
        super().to(device, dtype)
        waiting = self.base.offload is not None
        self.networks.to(device=None if waiting else self.device, dtype=self.dtype)
        if not waiting:
            self.tagger.to(self.device)
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

        A prompt with tags or an embedding stands for what the tagger would read; one without is the user's and comes behind
        the tags of the tagger. Without ``noise`` every picture has that of seed 0.

        Raises:
            ConfigError: ``compat`` and a scale that is no whole number.
            InputError: see `read`.
        """
        given = list(prompts) if prompts is not None else [None] * lq.shape[0]
        noise = SeededNoise([0] * lq.shape[0]) if noise is None else noise
        if self.compat:
            return self._as_published(lq, scale, given, noise)
        read = self.read(lq, given)
        return self.framed(lq, scale, lambda seen: self.denoise(seen, *read, noise) * 0.5 + 0.5)

    def read(self, lq: Tensor, prompts: Sequence[Prompt | None]) -> tuple[list[str], Tensor]:
        """Texts for the text encoder, and embeddings (N, T, 512), of pictures and what is known of them.

        Raises:
            InputError: prompts that do not fit the pictures, or embeddings that do not fit the networks.
        """
        if len(prompts) != lq.shape[0]:
            raise InputError(f"{len(prompts)} prompts for {lq.shape[0]} pictures; give one a picture, which may be None.")
        texts, images = [], []
        for number, prompt in enumerate(prompts):
            image = None if prompt is None else prompt.embedding
            tags, user = (prompt.text, "") if prompt is not None and (prompt.tags or image is not None) else (None, prompt)
            picture = lq[number : number + 1].to(self.device)
            if tags is None:
                ((found, embedding),) = self.tagger.read(picture)
                tags, image = found.text, embedding if image is None else image
            elif image is None:
                (image,) = self.tagger.embed(picture)
            if image.ndim != 2 or image.shape[1] != IMAGE_WIDTH:
                raise InputError(
                    f"the embedding of a prompt is {tuple(image.shape)}; expected (tokens, {IMAGE_WIDTH}), as DAPE gives it."
                )
            texts.append(self.prompt_text(tags, "" if user is None else str(user)))
            images.append(image.to(device=self.device, dtype=self.dtype))
        if len({len(image) for image in images}) > 1:
            raise InputError(
                "the embeddings of the prompts have several numbers of tokens; restore these pictures one by one."
            )
        return texts, torch.stack(images)

    def prompt_text(self, tags: str, user: str = "") -> str:
        """What the text encoder is given: tags, the user's words, words of quality."""
        if self.compat:
            return f"{tags}, {user},{self.added_prompt}"
        return ", ".join(part for part in (tags, user, self.added_prompt) if part)

    def denoise(self, pictures: Tensor, texts: Sequence[str], image: Tensor, noise: NoiseSource) -> Tensor:
        """All that lies between the enlarged picture and the restored one.

        Args:
            pictures: (N, 3, H, W) in [0, 1], sides multiples of 8.
            texts: see `read`.
            image: see `read`, (N, T, 512).
            noise: of the start, with ``compat`` of the posterior, and of the steps.

        Returns:
            (N, 3, H, W) in about [-1, 1], not clamped.
        """
        pictures = pictures.to(device=self.device, dtype=self.dtype)
        image = image.to(device=self.device, dtype=self.dtype)
        words = self.base.embed([*texts, self.negative_prompt] if self._guided else texts)
        words = words.to(device=self.device, dtype=self.dtype)

        def draw(shape: tuple[int, ...]) -> Tensor:
            return noise.normal(shape, device=self.device, dtype=self.dtype)

        kept = self.kept_steps if self.kept_steps is not None and self.kept_steps < len(self.steps) else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and kept is None):
            latent = self._start(pictures, draw)
        tiles = self.plan(latent.shape[-2], latent.shape[-1])
        most, working = self.at_a_time(
            tiles.height * tiles.width if tiles else latent[0, 0].numel(), self.batch, CONTROL_SHARE
        )
        with self.base.stage("unet", working), contextlib.ExitStack() as fast:
            if not self.compat:
                fast.enter_context(in_fewer_products(self.networks))
            predict = self._predictor(pictures, words, image, tiles, most)
            latent = sample(
                latent, self.steps, predict, draw, kept=kept, stray_noise=self.compat is not None, each=self.on_step
            )
        with self.base.vae_stage(pictures, self.vae_mode, decoder=True) as mode:
            return decode(self.base.vae, latent / self.base.vae.config.scaling_factor, mode)

    @property
    def _guided(self) -> bool:
        return self.guidance_scale > 1

    def _start(self, pictures: Tensor, draw: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
        """The latent before the first step, (N, 4, H/8, W/8)."""
        shape = (pictures.shape[0], 4, *(side // self.base.factor for side in pictures.shape[-2:]))
        latent = draw(shape)
        if self.start == "noise":
            return latent
        with self.base.vae_stage(pictures, self.vae_mode, decoder=False) as mode:
            mean, logvar = encode(self.base.vae, pictures * 2 - 1, mode)
        known = sample_posterior(mean, logvar, draw(shape)) if self.compat else mean
        level = self.base.alphas[START_LEVEL].item() if self.compat else self.steps[0].alpha
        return noised(known * self.base.vae.config.scaling_factor, latent, level)

    def _predictor(
        self, pictures: Tensor, words: Tensor, image: Tensor, tiles: LatentTiles | None, most: int
    ) -> Callable[[Tensor, int], Tensor]:
        """What finds the noise in a latent at a timestep; guided, the last of ``words`` is the negative prompt."""
        maps = None if self.compat else self.networks.read(pictures)

        def predict(latent: Tensor, timestep: int) -> Tensor:
            def part(cut: Tensor, cuts: Cuts) -> Tensor:
                read = cuts.of(maps) if maps is not None else self.networks.read(cuts.of(pictures, self.base.factor))
                text, pictured = words[cuts.pictures], image[cuts.pictures]
                if not self._guided:
                    return self._noise(cut, timestep, text, pictured, read, most)
                negative = words[-1:].expand_as(text)
                cut, pictured, read = (torch.cat([x, x]) for x in (cut, pictured, read))
                found = self._noise(cut, timestep, torch.cat([negative, text]), pictured, read, most)
                without, along = found.chunk(2)
                return without + self.guidance_scale * (along - without)

            return predict_in_tiles(part, latent, tiles, batch=max(1, most // 2 if self._guided else most))

        return predict

    def _noise(self, latent: Tensor, timestep: int, text: Tensor, image: Tensor, maps: Tensor, most: int) -> Tensor:
        """The networks, ``most`` latents at a time."""
        parts = (x.split(most) for x in (latent, text, image, maps))
        found = [self.networks(part, timestep, *given, self.conditioning_scale) for part, *given in zip(*parts, strict=True)]
        return torch.cat(found)

    def _as_published(self, lq: Tensor, scale: float | None, prompts: Sequence[Prompt | None], noise: NoiseSource) -> Tensor:
        factor = whole_scale(self.upscale if scale is None else scale)
        given = eight_bits(lq)
        size: dict[str, Any] = {"upscale": factor, "process_size": self.process_size, "last": Image.Resampling.BICUBIC}
        seen = [enlarge(picture, **size) for picture in given]
        with torch.no_grad():
            read = self.read(batch_of(given).to(self.device), prompts)
            found = (self.denoise(batch_of(seen), *read, noise) * 0.5 + 0.5).clamp(0, 1)
        eight = [recolor(rounded(one), other, self.color) for one, other in zip(found, seen, strict=True)]
        wanted = (lq.shape[-1] * factor, lq.shape[-2] * factor)
        done = [np.array(Image.fromarray(one).resize(wanted, Image.Resampling.BICUBIC)) for one in eight]
        return batch_of(done).to(device=lq.device, dtype=lq.dtype)
