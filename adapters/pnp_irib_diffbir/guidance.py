"""Restoration guidance: every estimate of the picture is pulled towards the cleaned one, so that less is made up.

As the paper has it (arXiv 2308.15070, "region-adaptive restoration guidance"): a step of gradient descent on the mean square
of the difference, in which edges and texture may count less, so that the pull is for flat regions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.offload import vae_bytes
from pnp_irib.diffusion.restorer import check_choices
from pnp_irib.diffusion.samplers.sampling import Guide
from pnp_irib.diffusion.vae import decode, encode, sample_posterior
from pnp_irib.errors import ConfigError, check_number
from pnp_irib.restorer import NoiseSource

__all__ = ["RestorationGuidance", "flatness", "guide"]

UNIT = 3000.0  # length of a step along the gradient at scale 1, as published
GREY = (0.2989, 0.5870, 0.1140)
KEPT_SHARE = 11  # memory of the VAE's decoder with all that its gradient needs over that in strips, as measured

Pull = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps an estimate to its loss, (N,), and the gradient of that, of the estimate's shape."""


@dataclass(frozen=True)
class RestorationGuidance:
    """How estimates are pulled towards the cleaned picture.

    Attributes:
        scale: of the pull; 0: none. On larger pictures the same scale pulls less, since the loss is a mean.
        loss: "mse"; or "w_mse", where pixels count by their `flatness`.
        space: of the loss. "rgb" needs the gradient of the VAE's decoder, which takes eleven times its usual memory.
        start: guidance acts where timestep + 1 is below.
        stop: and above.
        repeat: so many times at each estimate.

    Raises:
        ConfigError: a value is impossible, or the loss is "w_mse" in latent space.
    """

    scale: float
    loss: Literal["mse", "w_mse"] = "w_mse"
    space: Literal["latent", "rgb"] = "rgb"
    start: float = 1001
    stop: float = -1
    repeat: int = 1

    def __post_init__(self) -> None:
        check_choices(loss=(self.loss, ("mse", "w_mse")), space=(self.space, ("latent", "rgb")))
        check_number("scale", self.scale, zero=True)
        check_number("repeat", self.repeat, whole=True)
        numbers = all(isinstance(end, Real) and not isinstance(end, bool) for end in (self.start, self.stop))
        if not (numbers and self.stop < self.start):
            raise ConfigError(
                f"start={self.start!r:.60}, stop={self.stop!r:.60}: expected two numbers, start above stop; guidance acts at "
                f"the timesteps + 1 between."
            )
        if (self.loss, self.space) == ("w_mse", "latent"):
            raise ConfigError("loss='w_mse' weighs pixels, which space='latent' has none of. Take space='rgb', or loss='mse'.")


def guide(
    guidance: RestorationGuidance,
    base: StableDiffusion,
    target: Tensor,
    noise: NoiseSource,
    *,
    published: bool,
    each: Callable[[float, Tensor], None] | None = None,
) -> Guide:
    """What `pnp_irib.diffusion.samplers.sampling.sample` asks for a better estimate.

    It works under every grad mode. To gradients its pull is a constant: they pass to the estimate unchanged, and not to the
    target.

    Args:
        guidance: how.
        base: whose VAE is used; in latent space only here, in "rgb" at every estimate. Where parts take turns on the device,
            the others may have to leave it.
        target: the cleaned picture (N, 3, H, W) in [-1, 1], sides multiples of ``base.factor``, as large as the estimates
            are when decoded.
        noise: for ``published`` in latent space.
        published: in latent space, aim at a new sample of the VAE's posterior every time; else at the mean.
        each: told timestep + 1 and the losses before every pull, (N,).
    """
    target = target.detach().to(device=base.device, dtype=torch.promote_types(target.dtype, torch.float32))
    of_latents = guidance.space == "latent"
    pull = _in_latents(base, target, noise if published else None) if of_latents else _in_pictures(guidance, base, target)

    def better(estimate: Tensor, t_now: float, weight: float) -> Tensor:
        if not guidance.stop < t_now < guidance.start:
            return estimate
        for _ in range(guidance.repeat):
            loss, gradient = pull(estimate.detach())
            if each is not None:
                each(t_now, loss)
            # Over the estimate's weight: what the scale says is how far the next latent moves.
            estimate = estimate - UNIT * guidance.scale / weight * gradient
        return estimate

    return better


def _in_latents(base: StableDiffusion, target: Tensor, noise: NoiseSource | None) -> Pull:
    working = vae_bytes(base.vae, target[:, 0].numel(), base.vae.dtype.itemsize, decoder=False)
    with torch.no_grad(), base.stage("vae", working):
        mean, logvar = encode(base.vae, target.to(base.vae.dtype), "strips")

    def pull(estimate: Tensor) -> tuple[Tensor, Tensor]:
        known = mean
        if noise is not None:
            drawn = noise.normal(tuple(mean.shape), device=mean.device, dtype=mean.dtype)
            known = sample_posterior(mean, logvar, drawn)
        off = estimate - known * base.vae.config.scaling_factor
        return _means(off.square()), 2 * off / off[0].numel()

    return pull


def _in_pictures(guidance: RestorationGuidance, base: StableDiffusion, target: Tensor) -> Pull:
    weights = flatness(target) if guidance.loss == "w_mse" else 1.0
    working = KEPT_SHARE * vae_bytes(base.vae, target[:, 0].numel(), base.vae.dtype.itemsize, decoder=True)

    def pull(estimate: Tensor) -> tuple[Tensor, Tensor]:
        # Inference mode would stay on beneath enable_grad.
        with torch.inference_mode(False), torch.enable_grad(), base.stage("vae", working):
            latent = estimate.clone().requires_grad_()
            found = decode(base.vae, (latent / base.vae.config.scaling_factor).to(base.vae.dtype))
            off = found.detach() - target
            # Divided afterwards: in 16 bits so small a number loses its digits.
            (gradient,) = torch.autograd.grad(found, latent, (2 * weights * off).to(found.dtype))
        return _means(weights * off.square()), gradient / off[0].numel()

    return pull


def flatness(pictures: Tensor) -> Tensor:
    """How flat each block of 2 x 2 pixels is: 1 - tanh of the sum of its lengths of the Sobel gradient of grey.

    Args:
        pictures: (N, 3, H, W) in [-1, 1], sides even.

    Returns:
        (N, 1, H, W) in [0, 1], 1 where nothing changes.
    """
    grey = ((pictures * 0.5 + 0.5) * pictures.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
    across = pictures.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    slopes = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), torch.stack([across, across.T])[:, None])
    steep = 4 * F.avg_pool2d(slopes.norm(dim=1, keepdim=True), 2)
    return F.interpolate(1 - steep.tanh(), scale_factor=2, mode="nearest")


def _means(values: Tensor) -> Tensor:
    """Of each picture, (N,)."""
    return values.flatten(1).mean(1)
