"""SUPIR as a restorer: Stable Diffusion XL, steered by what a robust encoder makes of the picture."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from pnp_irib.convolution import in_fewer_products
from pnp_irib.diffusion.latents import Cuts, LatentTiles, predict_in_tiles, published_tiles
from pnp_irib.diffusion.model import EPS
from pnp_irib.diffusion.published import batch_of, eight_bits
from pnp_irib.diffusion.restorer import DiffusionRestorer, check_choices
from pnp_irib.diffusion.schedule import KeepsLastSteps
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode, sample_posterior
from pnp_irib.diffusion.xl import StableDiffusionXL
from pnp_irib.errors import ConfigError, InputError, check_number, check_text
from pnp_irib.images.color import ColorMatch, match_color
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import NoiseSource
from pnp_irib.spec import RestorerSpec
from pnp_irib_supir.networks import Networks
from pnp_irib_supir.prompts import NEGATIVE, POSITIVE, pieces
from pnp_irib_supir.published import finished, prepared, working_size
from pnp_irib_supir.sampling import SAMPLERS, Predict, Schedule, sample
from pnp_irib_supir.spec import SUPIR

__all__ = ["Supir"]

WINDOW = 32  # pixels: the UNet halves latents twice
CONTROL_SHARE = 1.1  # working memory of all over what is taken for the UNet of Stable Diffusion 2, as measured


class Read(NamedTuple):
    """What the networks read of texts.

    Attributes:
        hidden: of each token, (N, length, width); shorter texts are filled up with empty pieces.
        pooled: of a text as a whole, (N, width).
        lengths: that is read of each with the last, without what fills up both, tokens; there may be none for the last.
    """

    hidden: Tensor
    pooled: Tensor
    lengths: tuple[int, ...]


class Supir(KeepsLastSteps, DiffusionRestorer):
    """Stable Diffusion XL with a control branch (Yu et al., arXiv 2401.13627). As a `Restorer`.

    Base and networks belong to it: it moves them, and a second one over the same would move them as well.

    Args:
        base: Stable Diffusion XL.
        networks: its UNet, with the control branch and what joins the two.
        robust_vae: its VAE with an encoder that was trained on low-quality pictures.
        spec: which model.
        sampler: "edm", or "dpm++_2m_sde" for base models that need few steps.
        num_inference_steps: of it; None: 50, for "dpm++_2m_sde" 8.
        guidance_scale: weight of the prompt over the negative one, at the end.
        guidance_start: the same at the noisiest level; in between it is linear in sigma. None: as at the end.
        conditioning_scale: of the connectors, at the end; 0: Stable Diffusion XL by itself.
        conditioning_start: the same at the noisiest level; None: as at the end.
        restoration_guidance: the power of sigma with which every estimate is pulled towards the picture as the robust encoder
            sees it: the smaller, the closer the result; None: nothing is.
        s_churn: noise added on the way, over all steps of "edm".
        s_noise: standard deviation of noise that is added.
        added_prompt: words behind the prompt.
        negative_prompt: what the picture is led away from.
        compat: "upstream" keeps to the published script in every step: 8-bit pictures, truncated; sides stretched to multiples
            of 64; prompts joined without a blank and cut at 77 tokens; noise beyond what the network knows; with bfloat16,
            sigmas of 8 bits. None mends these.
        upscale: enlargement where a call gives no ``scale``; None: 1.
        process_size: the shorter side of what the networks see is at least this, pixels.
        color: how the colours of the picture, as the robust encoder sees it, are given back.
        latent_tile: side of the tiles of the networks, latent pixels; None: 128, with ``compat`` one piece.
        latent_overlap: of these; None: 32, with ``compat`` half a tile.
        batch: latents in one call of the networks: tiles, and the two halves of guidance.
        vae_tiles: of the VAE with ``compat``: `PublishedTiles`, or a mapping of its arguments; None: one piece. Without
            ``compat`` it works in strips, which have no seams.
        weights: "float8" keeps the weights of UNet and control branch in 8 bits and computes in ``dtype``: half the memory of
            bfloat16, somewhat other pictures. None: in ``dtype``.
        memory: gigabytes that weights and working memory may take on the device: text encoders, VAE and networks then move in
            when they are used, and out where another needs the room. None: all of them stay there.
        device: where it runs.
        dtype: "auto", or a dtype of all parts.

    Attributes:
        on_step: called in every step, see `pnp_irib_supir.sampling.sample`; None: nothing is.

    Raises:
        ConfigError: an option has a value that is impossible.
    """

    base: StableDiffusionXL
    whole_scales: ClassVar[bool] = False
    usual_tiles: ClassVar[PublishedTiles] = PublishedTiles(encoder=None, decoder=None)

    def __init__(
        self,
        base: StableDiffusionXL,
        networks: Networks,
        robust_vae: Any,
        *,
        spec: RestorerSpec = SUPIR,
        sampler: Literal["edm", "dpm++_2m_sde"] = "edm",
        num_inference_steps: int | None = None,
        guidance_scale: float = 4.0,
        guidance_start: float | None = 1.0,
        conditioning_scale: float = 1.0,
        conditioning_start: float | None = None,
        restoration_guidance: float | None = None,
        s_churn: float = 5.0,
        s_noise: float = 1.01,
        added_prompt: str = POSITIVE,
        negative_prompt: str = NEGATIVE,
        compat: Literal["upstream"] | None = None,
        upscale: float | None = None,
        process_size: int = 1024,
        color: ColorMatch = "wavelet",
        latent_tile: int | None = None,
        latent_overlap: int | None = None,
        batch: int = 2,
        vae_tiles: PublishedTiles | Mapping[str, Any] | None = None,
        weights: Literal["float8"] | None = None,
        memory: float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "auto",
    ) -> None:
        tile = 128 if latent_tile is None else latent_tile
        overlap = (tile // 2 if compat else min(32, tile // 2)) if latent_overlap is None else latent_overlap
        super().__init__(
            base,
            spec,
            compat=compat,
            upscale=upscale,
            process_size=process_size,
            color=color,
            latent_tile=tile,
            latent_overlap=overlap,
            vae_tiles=vae_tiles,
            memory=memory,
            device=device,
            dtype=dtype,
        )
        if base.noise != EPS:
            raise ConfigError(f"SUPIR needs a base model of {EPS}; this one has {base.noise}. Is base= the right one?")
        check_choices(sampler=(sampler, SAMPLERS), weights=(weights, (None, "float8")))
        steps = (50 if sampler == "edm" else 8) if num_inference_steps is None else num_inference_steps
        check_number("num_inference_steps", steps, whole=True, most=len(base.alphas) - 1)
        check_number("batch", batch, whole=True)
        scales = {
            "guidance_scale": guidance_scale,
            "guidance_start": guidance_start,
            "conditioning_scale": conditioning_scale,
            "conditioning_start": conditioning_start,
            "s_churn": s_churn,
            "s_noise": s_noise,
        }
        for option, number in scales.items():
            if number is not None:
                check_number(option, number, zero=True)
        if restoration_guidance is not None:
            check_number("restoration_guidance", restoration_guidance)
        for option, text in (("added_prompt", added_prompt), ("negative_prompt", negative_prompt)):
            check_text(option, text)
        self.schedule = Schedule(
            alphas=base.noise.numbers,
            sampler=sampler,
            steps=steps,
            guidance=guidance_scale,
            guidance_start=guidance_scale if guidance_start is None else guidance_start,
            control=conditioning_scale,
            control_start=conditioning_start,
            restoration=restoration_guidance,
            s_churn=s_churn,
            s_noise=s_noise,
            published=compat is not None,
        )
        self.networks, self.robust_vae, self.batch = networks, robust_vae, batch
        self.added_prompt, self.negative_prompt = added_prompt, negative_prompt
        self._latent_tiled = latent_tile is not None
        self.on_step: Callable[[int, Tensor, Tensor], None] | None = None
        vae = nn.ModuleList([base.vae, robust_vae.encoder])  # what the two have in common moves with both
        if weights is not None:  # before they move: the device need not have room for more
            networks.keep_in_eight_bits()
            self.spec = self.spec.model_copy(update={"differentiable": False})  # weights come and go
        self.settle(**({} if memory is None else {"unet": networks, "vae": vae}))

    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move in place; ``dtype`` may be "auto". Weights in 8 bits stay so, and compute in it."""
        super().to(device, dtype)
        waiting = self.base.offload is not None
        for part in (self.networks, self.robust_vae.encoder):
            part.to(device=None if waiting else self.device, dtype=self.dtype)
        self.schedule = replace(self.schedule, rounding=self.dtype)
        return self

    def restore(
        self,
        lq: Tensor,
        *,
        scale: float | None = None,
        prompts: Sequence[Prompt | None] | None = None,
        noise: NoiseSource | None = None,
    ) -> Tensor:
        """See `pnp_irib.Restorer`. Differentiable without ``compat`` and ``weights``, see also `gradients_through`.

        Without ``noise`` every picture has that of seed 0.

        Raises:
            ConfigError: with ``compat``, a scale at which no pixel is left.
            InputError: prompts that do not fit the pictures.
        """
        texts = self.texts(lq.shape[0], prompts)
        noise = SeededNoise([0] * lq.shape[0]) if noise is None else noise
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.spec.differentiable):
            if self.compat:
                return self._as_published(lq, self.upscale if scale is None else scale, texts, noise)
            network = lambda seen: self.denoise(seen, texts, noise).mul(0.5).add_(0.5)  # noqa: E731
            return self.framed(lq, scale, network, multiple_of=WINDOW, color="none")  # the network gives them back

    def texts(self, count: int, prompts: Sequence[Prompt | None] | None) -> list[list[str]]:
        """What the text encoders are given for ``count`` pictures, in pieces.

        Raises:
            InputError: there are more or fewer prompts.
        """
        given = list(prompts) if prompts is not None else [None] * count
        if len(given) != count:
            raise InputError(f"{len(given)} prompts for {count} pictures; give one a picture, which may be None.")
        own = ["" if prompt is None else str(prompt) for prompt in given]
        if self.compat:
            return [[f"{text}{self.added_prompt}"] for text in own]
        return [self._pieces(caption, self.added_prompt) for caption in own]

    def _pieces(self, text: str, added: str = "") -> list[str]:
        most = self.base.text.encoder[0].config.max_position_embeddings - 2
        return pieces(text, added, length=self.base.text.length, most=most)

    def words(self, texts: Sequence[Sequence[str]]) -> Read:
        """What the networks read of texts in pieces, and in the last row of the negative prompt.

        As a whole, a text is its first piece.
        """
        negative = [self.negative_prompt] if self.compat else self._pieces(self.negative_prompt)
        count = max(map(len, (*texts, negative)))
        rows = [[*row, *[""] * (count - len(row))] for row in (*texts, negative)]
        found = self.base.embed([piece for row in rows for piece in row])
        hidden, pooled = (x.to(device=self.device, dtype=self.dtype) for x in found)
        lengths = [hidden.shape[1] * max(len(row), len(negative)) for row in texts]
        return Read(hidden.unflatten(0, (-1, count)).flatten(1, 2), pooled[::count], tuple(lengths))

    def denoise(self, pictures: Tensor, texts: Sequence[Sequence[str]], noise: NoiseSource) -> Tensor:
        """All that lies between the enlarged picture and the restored one, colours included.

        Args:
            pictures: (N, 3, H, W) in [0, 1], sides multiples of 32.
            texts: see `texts`.
            noise: with ``compat`` of a posterior, of the start, and of the sampler.

        Returns:
            (N, 3, H, W) in about [-1, 1], not clamped.
        """
        pictures = pictures.to(device=self.device, dtype=self.dtype)
        condition = self.condition(pictures)
        cleaned = self._decoded(condition)
        known = self.known(cleaned, noise) if self.compat or self.schedule.restoration is not None else None
        latent = self.generate(condition, self.words(texts), noise, known)
        return match_color(self._decoded(latent).float(), cleaned.float(), self.color)

    def condition(self, pictures: Tensor) -> Tensor:
        """What the control branch sees of pictures, (N, 4, H/8, W/8): the mean of the robust encoder's posterior, scaled."""
        with self.base.vae_stage(pictures, self.vae_mode, decoder=False) as mode:
            mean, _ = encode(self.robust_vae, pictures * 2 - 1, mode)
        return mean * float(self.base.vae.config.scaling_factor)

    def known(self, cleaned: Tensor, noise: NoiseSource) -> Tensor:
        """What estimates are pulled towards: the latent of the picture as the robust encoder sees it, by the plain encoder.

        Args:
            cleaned: that picture, (N, 3, H, W) in about [-1, 1].
            noise: with ``compat``, of the posterior; else its mean is taken.
        """
        with self.base.vae_stage(cleaned, self.vae_mode, decoder=False) as mode:
            mean, logvar = encode(self.base.vae, cleaned, mode)
        if self.compat:
            mean = sample_posterior(mean, logvar, noise.normal(tuple(mean.shape), device=mean.device, dtype=mean.dtype))
        return mean * float(self.base.vae.config.scaling_factor)

    def _decoded(self, latent: Tensor) -> Tensor:
        scaled = latent.to(self.dtype) / self.base.vae.config.scaling_factor
        like = latent.new_empty(
            (len(latent), 3, *(self.base.factor * side for side in latent.shape[-2:])), dtype=self.dtype, device="meta"
        )
        with self.base.vae_stage(like, self.vae_mode, decoder=True) as mode:
            return decode(self.base.vae, scaled, mode)

    def generate(self, condition: Tensor, words: Read, noise: NoiseSource, known: Tensor | None = None) -> Tensor:
        """The latent of the restored picture.

        Args:
            condition: see `condition`, (N, 4, h, w).
            words: of the N pictures, or of the tiles of the first, then of the next; in the last row of the negative prompt.
            noise: see `denoise`.
            known: see `known`; needed with ``restoration_guidance``.

        Returns:
            (N, 4, h, w), scaled, float32.
        """
        tiles = self.plan(*condition.shape[-2:])
        latent = noise.normal(tuple(condition.shape), device=self.device, dtype=torch.float32)
        with contextlib.nullcontext() if self.compat else in_fewer_products(self.networks):
            return sample(
                self.schedule,
                self.predictor(condition, words, tiles),
                latent,
                noise,
                known=known,
                always_draw=self.compat is not None and tiles is not None,
                kept=self.kept_steps,
                each=self.on_step,
            )

    def plan(self, height: int, width: int) -> LatentTiles | None:
        """Tiles for a latent; with gradients, without ``compat``, none."""
        if not self.compat:
            return super().plan(height, width)
        if not self._latent_tiled or min(height, width) < self.latent_tile:
            return None
        return published_tiles(height, width, tile=self.latent_tile, stride=self.latent_tile - self.latent_overlap)

    def predictor(self, condition: Tensor, words: Read, tiles: LatentTiles | None) -> Predict:
        """What finds the noise in a latent, see `pnp_irib_supir.sampling.Predict`.

        Args:
            condition: see `condition`, (N, 4, h, w).
            words: see `generate`.
            tiles: of the latent; None: one piece.
        """
        positions = tiles.height * tiles.width if tiles else condition[0, 0].numel()
        most, working = self.at_a_time(positions, self.batch, CONTROL_SHARE)
        vectors = self.networks.vector(words.pooled)
        lengths = torch.tensor(words.lengths, device=self.device)
        each = (len(words.hidden) - 1) // len(condition)  # rows of a picture

        def predict(latent: Tensor, timestep: float, guidance: float, control: float) -> Tensor:
            def part(cut: Tensor, cuts: Cuts) -> Tensor:
                seen, rows = cuts.of(condition), cuts.pictures * each
                if tiles and each > 1:
                    rows = rows + torch.tensor([tiles.corners.index(corner) for corner in cuts.corners], device=rows.device)
                guided = torch.empty_like(cut)
                for length in set(lengths[rows].tolist()):  # of texts: others in the batch change nothing
                    which = (lengths[rows] == length).nonzero()[:, 0]
                    both = torch.cat([torch.full_like(which, -1), rows[which]])  # without prompt, and with it
                    given = (
                        cut[which].repeat(2, 1, 1, 1),
                        words.hidden[both, :length],
                        vectors[both],
                        seen[which].repeat(2, 1, 1, 1),
                    )
                    asked = zip(*(x.split(most) for x in given), strict=True)
                    found = torch.cat([self.networks(x, timestep, text, vector, at, control) for x, text, vector, at in asked])
                    without, along = found.chunk(2)
                    guided[which] = without + guidance * (along - without)
                return guided

            with self.base.stage("unet", working):
                return predict_in_tiles(part, latent.to(self.dtype), tiles, batch=max(1, most // 2))

        return predict

    def _as_published(self, lq: Tensor, scale: float, texts: Sequence[Sequence[str]], noise: NoiseSource) -> Tensor:
        seen, size = working_size(*lq.shape[-2:], upscale=scale, smallest=self.process_size)
        given = batch_of([prepared(picture, seen) for picture in eight_bits(lq)])
        wanted = output_size(lq.shape[-2], lq.shape[-1], scale)
        assert size == wanted
        return finished(self.denoise(given, texts, noise), size).to(lq)
