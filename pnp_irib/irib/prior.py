"""L_HQ-prior: how far restored pictures are from what a frozen Stable Diffusion holds for natural."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.distill import denoising_loss, score_distillation_loss, variational_score_loss
from pnp_irib.diffusion.lora import UNET_LAYERS, adapter_module, add_adapter, layers_named
from pnp_irib.diffusion.vae import encode
from pnp_irib.images.padding import pad_to
from pnp_irib.prompts import Prompt

__all__ = ["LatentPrior", "PriorConfig"]


class PriorConfig(BaseModel):
    """A prior over HQ pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["score-matching", "sds", "vsd"] = Field(
        default="vsd",
        description="score matching (gradients through the denoiser), score distillation, or its variational form",
    )
    base: str | None = Field(default=None, description="Stable Diffusion, as a folder or hf-hub: name; None: the projector's")
    guidance: float = Field(default=7.5, ge=0, description="of the frozen denoiser, for sds and vsd")
    negative: str = Field(default="", description="prompt that guidance leads away from")
    timesteps: tuple[int, int] = Field(default=(20, 980), description="range that timesteps are drawn from")
    rank: int = Field(default=4, ge=1, le=256, description="of the LoRA of the critic of vsd")
    alpha: int = Field(default=8, ge=1, le=1024, description="that LoRA acts with the factor alpha / rank")
    lr: float = Field(default=5e-5, gt=0, description="learning rate of the critic")

    @field_validator("timesteps")
    @classmethod
    def _ordered(cls, timesteps: tuple[int, int]) -> tuple[int, int]:
        if not 0 <= timesteps[0] <= timesteps[1] <= 999:
            raise ValueError("must be ordered and within 0 to 999")
        return timesteps


class LatentPrior:
    """One of the priors of `PriorConfig` on the latents of pictures.

    Args:
        config: which.
        base: the frozen model, which projector and restorer may use as well.
    """

    def __init__(self, config: PriorConfig, base: StableDiffusion) -> None:
        self.config = config
        self.base = base
        self.critic: nn.Module = nn.Module()  # the LoRA that follows the restored pictures
        self._seen: tuple[Tensor, Tensor] | None = None
        if config.kind == "vsd":
            self._name = base.free_name("critic")
            layers = layers_named(base.unet, UNET_LAYERS)
            add_adapter(base.unet, self._name, layers, rank=config.rank, alpha=config.alpha)
            self.critic = adapter_module(base.unet, self._name)

    def __call__(self, restored: Tensor, prompts: Sequence[Prompt | None] | None, generator: torch.Generator) -> Tensor:
        """The term of each picture, (N,), with gradients to the pictures.

        Args:
            restored: (N, 3, H, W), about [0, 1].
            prompts: one a picture, or None.
            generator: of timesteps and noise, on the CPU.
        """
        config, base = self.config, self.base
        texts = [prompt.text if prompt is not None else "" for prompt in prompts or [None] * len(restored)]
        given = pad_to(restored, multiple_of=base.factor).to(base.device, base.dtype) * 2 - 1
        with base.as_loaded():
            latents = encode(base.vae, given)[0] * base.vae.config.scaling_factor
            embedding = base.embed(texts).to(base.device)
            negative = base.embed([config.negative] * len(restored)).to(base.device)
        timesteps, noise = self._draw(latents, generator)
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

    def follow(self, generator: torch.Generator) -> Tensor:
        """The loss of the critic on the pictures of the last call, (N,): minimised, the critic follows them.

        Raises:
            RuntimeError: there was no call, or there is no critic.
        """
        if self._seen is None or self.config.kind != "vsd":
            raise RuntimeError("a critic follows the pictures of the call before, and only vsd has one")
        latents, embedding = self._seen
        timesteps, noise = self._draw(latents, generator)
        return denoising_loss(
            latents, self._critic, embedding=embedding, timesteps=timesteps, noise=noise, alphas=self.base.alphas
        )

    def _draw(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        low, high = self.config.timesteps
        timesteps = torch.randint(low, high + 1, (len(latents),), generator=generator).to(latents.device)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device, latents.dtype)
        return timesteps, noise

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
        return found
