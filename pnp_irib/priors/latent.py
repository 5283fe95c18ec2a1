"""A frozen Stable Diffusion as a prior: on the latents of pictures, with prompts and guidance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.distill import denoising_loss, score_distillation_loss, variational_score_loss
from pnp_irib.diffusion.lora import UNET_LAYERS, adapter_module, add_adapter, layers_named
from pnp_irib.diffusion.vae import encode
from pnp_irib.images.padding import pad_to
from pnp_irib.priors.base import LatentPriorConfig, check_generators, normal
from pnp_irib.prompts import Prompt

__all__ = ["LatentPrior"]


class LatentPrior:
    """A `Prior` on latents; the losses are those of `pnp_irib.diffusion.distill`.

    Args:
        config: which.
        base: the frozen model, which projector and restorer may use as well.
    """

    def __init__(self, config: LatentPriorConfig, base: StableDiffusion) -> None:
        self.config = config
        self.base = base
        self.critic: nn.Module = nn.Module()  # the LoRA that follows the restored pictures
        self._seen: tuple[Tensor, Tensor] | None = None
        if config.kind == "vsd":
            self._name = base.free_name("critic")
            layers = layers_named(base.unet, UNET_LAYERS)
            add_adapter(base.unet, self._name, layers, rank=config.rank, alpha=config.alpha)
            self.critic = adapter_module(base.unet, self._name)

    def __call__(
        self, restored: Tensor, prompts: Sequence[Prompt | None] | None, generators: Sequence[torch.Generator]
    ) -> Tensor:
        """See `Prior`."""
        check_generators(restored, generators)
        config, base = self.config, self.base
        texts = [prompt.text if prompt is not None else "" for prompt in prompts or [None] * len(restored)]
        given = pad_to(restored, multiple_of=base.factor).to(base.device, base.dtype) * 2 - 1
        with base.as_loaded():
            latents = encode(base.vae, given)[0] * base.vae.config.scaling_factor
            embedding = base.embed(texts).to(base.device)
            negative = base.embed([config.negative] * len(restored)).to(base.device)
        timesteps, noise = self._draw(latents, generators)
        self._seen = latents.detach(), embedding
        if config.kind == "score-matching":
            return denoising_loss(
                latents, self._frozen, embedding=embedding, timesteps=timesteps, noise=noise, alphas=base.alphas
            )
        if config.kind == "sds":
            return score_distillation_loss(
                latents,
                self._frozen,
                embedding=embedding,
                negative=negative,
                guidance=config.guidance,
                timesteps=timesteps,
                noise=noise,
                alphas=base.alphas,
            )
        return variational_score_loss(
            latents,
            self._frozen,
            self._critic,
            embedding=embedding,
            negative=negative,
            guidance=config.guidance,
            timesteps=timesteps,
            noise=noise,
            alphas=base.alphas,
        )

    def follow(self, generators: Sequence[torch.Generator]) -> Tensor:
        """See `Prior.follow`."""
        if self._seen is None or self.config.kind != "vsd":
            raise RuntimeError("a critic follows the pictures of the call before, and only vsd has one")
        latents, embedding = self._seen
        check_generators(latents, generators)
        timesteps, noise = self._draw(latents, generators)
        return denoising_loss(
            latents, self._critic, embedding=embedding, timesteps=timesteps, noise=noise, alphas=self.base.alphas
        )

    def _draw(self, latents: Tensor, generators: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
        low, high = self.config.timesteps
        timesteps = torch.cat([torch.randint(low, high + 1, (1,), generator=generator) for generator in generators])
        return timesteps.to(latents.device), normal(latents, generators)

    def _frozen(self, latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        with self.base.as_loaded():
            return self._noise(latents, timesteps, embedding)

    def _critic(self, latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        with self.base.acting([self._name], conv_in=self.base.conv_in):
            return self._noise(latents, timesteps, embedding)

    def _noise(self, latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        found: Tensor = self.base.unet(
            latents.to(self.base.dtype), timesteps, encoder_hidden_states=embedding.to(self.base.dtype)
        ).sample
        if self.base.noise.prediction == "eps":
            return found
        alphas = self.base.alphas.to(found)[timesteps][:, None, None, None]
        return alphas.sqrt() * found + (1 - alphas).sqrt() * latents.to(found)
