"""A small denoiser of natural pictures: a UNet of diffusers, preconditioned as in EDM (Karras et al., arXiv 2206.00364).

Saved, it is a folder as in `pnp_irib.hub.folder`. Loading is strict.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn

from pnp_irib.errors import WeightsError, explain_validation
from pnp_irib.hub import Origin, SourceFile
from pnp_irib.hub.card import front_matter
from pnp_irib.hub.folder import CONFIG_NAME, WEIGHTS_NAME, read_config, read_weights, write_folder
from pnp_irib.hub.mixin import HubMixin, written_by
from pnp_irib.images.padding import pad_to
from pnp_irib.runtime import require
from pnp_irib.weights import load_strictly

__all__ = ["DenoiserArchitecture", "DenoiserProvenance", "PixelDenoiser", "edm_loss"]

FORMAT = 1
WHAT = "pixel denoiser"
GROUPS = 8  # of the normalisations
MAX_WEIGHTS = 200_000_000


class DenoiserArchitecture(BaseModel):
    """Sizes of a `PixelDenoiser`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["pixel-denoiser"] = "pixel-denoiser"
    widths: tuple[Annotated[int, Field(ge=GROUPS, le=1024, multiple_of=GROUPS)], ...] = Field(
        default=(24, 48, 80, 112), min_length=2, max_length=6, description="channels of the levels, finest first"
    )
    blocks: int = Field(default=1, ge=1, le=8, description="blocks of a level on the way down, one more on the way up")
    attention: bool = Field(default=False, description="self-attention on the coarsest level")
    sigma_data: float = Field(default=0.25, gt=0, le=1, description="standard deviation of pixels of natural pictures")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        widths = (self.widths[0], *self.widths)
        weights = sum((2 * self.blocks + 1) * 18 * a * b for a, b in pairwise(widths)) + 36 * widths[-1] ** 2
        if weights > MAX_WEIGHTS:
            raise ValueError(
                f"these sizes make about {weights / 1e6:.0f} M weights; at most {MAX_WEIGHTS / 1e6:.0f} M are read"
            )
        return self


class DenoiserProvenance(BaseModel):
    """Where a denoiser comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str | None = Field(default=None, description="name of the denoiser")
    training_data: str | None = None
    sigmas: tuple[float, float] | None = Field(
        default=None, description="range that 95 % of the noise was from in training; pictures reach from 0 to 1"
    )
    steps: int = Field(default=0, ge=0, description="training steps")
    commit: str | None = Field(default=None, description="revision of the code that trained it")
    licence: str | None = None
    files: tuple[SourceFile, ...] = Field(default=(), description="files it came from (training configuration, data)")
    origin: Origin | None = Field(default=None, description="where on the Hub it was loaded from before it was saved")


class PixelDenoiser(HubMixin, nn.Module):
    """Noisy pictures of any size to clean ones, a `GaussianDenoiser`.

    D(x, sigma) = c_skip x + c_out F(c_in x; c_noise) on pictures with middle grey at 0 (EDM, equation 7 and table 1):
    c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2), c_in = 1 / sqrt(sigma^2 + s^2) and
    c_noise = ln(sigma) / 4, with s = ``sigma_data``. F is zero at initialisation.

    Args:
        architecture: its sizes; None: the default ones.

    Raises:
        MissingExtraError: diffusers is not installed.
    """

    _files = (CONFIG_NAME, WEIGHTS_NAME)

    def __init__(self, architecture: DenoiserArchitecture | None = None) -> None:
        require("diffusers", extra="diffusion")
        from diffusers import UNet2DModel

        super().__init__()
        self.architecture = architecture = architecture or DenoiserArchitecture()
        self.provenance = DenoiserProvenance()
        self.origin: Origin | None = None  # where it was loaded from
        levels = len(architecture.widths)
        unet: Any = UNet2DModel(
            in_channels=3,
            out_channels=3,
            block_out_channels=architecture.widths,
            layers_per_block=architecture.blocks,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            norm_num_groups=GROUPS,
            add_attention=architecture.attention,
        )
        nn.init.zeros_(unet.conv_out.weight)
        nn.init.zeros_(unet.conv_out.bias)
        self.unet = unet

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """Clean pictures.

        Args:
            noisy: (N, 3, H, W), about [0, 1] but for the noise.
            sigma: standard deviation of the noise, (N,), above 0, in the range of the pictures.

        Returns:
            (N, 3, H, W), not clamped, of the dtype of ``noisy``.
        """
        height, width = noisy.shape[-2:]
        x = noisy - 0.5
        skip, out, scale = (factor.view(-1, 1, 1, 1) for factor in self._factors(sigma.to(noisy)))
        cell = 2 ** (len(self.architecture.widths) - 1)
        given = pad_to(scale * x, multiple_of=cell, min_size=2 * cell)  # a single position has no spread to normalise
        found = self.unet(given.to(self.unet.dtype), sigma.to(noisy.device).log() / 4).sample.to(noisy.dtype)
        clean: Tensor = skip * x + out * found[..., :height, :width] + 0.5
        return clean

    def _factors(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out and c_in, (N,) each."""
        data = self.architecture.sigma_data
        total = sigma.square() + data**2
        return data**2 / total, sigma * data / total.sqrt(), total.rsqrt()

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.parameters())

    def card(self) -> str:
        """A model card."""
        p = self.provenance
        sigmas = f"{p.sigmas[0]:.3g} to {p.sigmas[1]:.3g} of the range of a picture" if p.sigmas else "not stated"
        lines = [
            f"# {p.name or WHAT}",
            "",
            "Denoises natural pictures; as a prior, it tells how natural restored pictures are.",
            "",
            "```yaml",
            "# of a training configuration of pnp_irib",
            "objective: { hq_prior: 0.1 }",
            "prior: { family: pixel, denoiser: hf-hub:OWNER/NAME }  # this repository, or a folder",
            "```",
            "",
            f"A UNet with {self.parameter_count / 1e6:.2f} M parameters, preconditioned as in EDM (arXiv 2206.00364), "
            f"{p.steps} training steps.",
            "",
            f"- noise in training, for 95 % of the pictures: {sigmas}",
            f"- training data: {p.training_data or 'not stated'}",
            f"- licence of the weights: {p.licence or 'not stated'}",
        ]
        front = front_matter(name=p.name or WHAT, licence=p.licence, tags=["denoising"])
        return front + "\n".join(lines) + "\n"

    def _write(self, folder: Path, card: str | None) -> None:
        provenance = self.provenance
        if self.origin is not None and self.origin.commit is not None:
            provenance = provenance.model_copy(update={"origin": self.origin})
        facts = {
            "architecture": self.architecture.model_dump(mode="json"),
            "provenance": provenance.model_dump(mode="json"),
        }
        text = card if card is not None else self.card()
        write_folder(folder, self.state_dict(), facts, text, what=WHAT, version=FORMAT)

    @classmethod
    def _from_folder(cls, folder: Path, origin: Origin | None) -> Self:  # type: ignore[override]
        config = read_config(folder, what=WHAT, version=FORMAT)
        described = config["architecture"]
        kind = described.get("kind") if isinstance(described, dict) else None
        if kind != DenoiserArchitecture.model_fields["kind"].default:
            raise WeightsError(
                f"{folder} holds a model of the kind {kind!r:.40}, not a {WHAT}. Make one: pnp-irib train-prior."
            )
        try:
            architecture = DenoiserArchitecture.model_validate(described)
            provenance = DenoiserProvenance.model_validate(config["provenance"])
        except ValidationError as error:
            raise WeightsError(
                f"{folder / CONFIG_NAME} is not valid: {explain_validation(error)}{written_by(config['library_version'])}"
            ) from error
        tensors, sha256 = read_weights(folder, config["weights"])
        with torch.random.fork_rng(devices=[]):  # initial values are drawn, though they are replaced at once
            denoiser = cls(architecture)
        load_strictly(denoiser, tensors, source=str(folder / WEIGHTS_NAME))
        denoiser.provenance = provenance
        weights = SourceFile(name=WEIGHTS_NAME, sha256=sha256)
        denoiser.origin = origin or Origin(place=f"local-dir:{folder}", files=(weights,))
        return denoiser.eval()


def edm_loss(clean: Tensor, pictures: Tensor, sigma: Tensor, sigma_data: float) -> Tensor:
    """The loss that a denoiser is trained with (EDM, equation 8 and table 1): lambda(sigma) times the mean squared error.

    lambda(sigma) = (sigma^2 + s^2) / (sigma s)^2 = 1 / c_out^2, so that F is trained alike at every sigma.

    Args:
        clean: what the denoiser found, (N, 3, H, W).
        pictures: what it should have, likewise.
        sigma: standard deviation of the noise, (N,).
        sigma_data: s.

    Returns:
        (N,).
    """
    weight = (sigma.square() + sigma_data**2) / (sigma * sigma_data).square()
    return weight * (clean - pictures).square().mean((1, 2, 3))
