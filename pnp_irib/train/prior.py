"""Training of a pixel denoiser on HQ pictures, for priors; with the loss of EDM (Karras et al., arXiv 2206.00364)."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor

from pnp_irib.errors import ConfigError
from pnp_irib.hub import SourceFile
from pnp_irib.priors.base import normal
from pnp_irib.priors.denoiser import DenoiserArchitecture, DenoiserProvenance, PixelDenoiser, edm_loss
from pnp_irib.revision import source_revision
from pnp_irib.runtime import require
from pnp_irib.train.checkpoint import latest_checkpoint, load_state, save_checkpoint
from pnp_irib.train.config import DataConfig
from pnp_irib.train.data import Pictures, crop_of, picture_generators, picture_random
from pnp_irib.train.processes import agreed, check_start, make_accelerator, means
from pnp_irib.train.progress import Progress
from pnp_irib.train.run import check_run, follow_average, learning_rate, read_config, record, resolved, source_of

__all__ = ["PriorTrainConfig", "load_prior_config", "train_prior"]

NOISE = 1  # stream of random numbers of a picture, beside the one that made it

log = logging.getLogger("pnp_irib.train")


class PriorTrainConfig(BaseModel):
    """The training of a pixel denoiser."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seed: int = Field(default=0, ge=0, lt=2**63)
    denoiser: DenoiserArchitecture = DenoiserArchitecture()
    data: DataConfig
    log_sigma: tuple[float, float] = Field(
        default=(-1.9, 1.2),
        description="mean and standard deviation of the logarithm of sigma; those of EDM, for pictures from 0 to 1",
    )
    steps: int = Field(gt=0)
    batch: int = Field(default=8, gt=0, description="pictures of a process at a time")
    lr: float = Field(default=5e-4, gt=0)
    final_lr: float = Field(default=0.05, ge=0, le=1, description="learning rate at the end, relative")
    warmup: int = Field(default=200, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    ema: float = Field(default=0.999, ge=0, lt=1)
    precision: Literal["no", "bf16"] = "no"
    checkpoint_every: int = Field(default=500, gt=0)
    keep: int = Field(default=3, gt=0, description="checkpoints that stay")
    log_every: int = Field(default=20, gt=0)

    @field_validator("log_sigma")
    @classmethod
    def _possible(cls, log_sigma: tuple[float, float]) -> tuple[float, float]:
        mean, spread = log_sigma
        if not (-10 <= mean <= 5 and 0 <= spread <= 3):
            raise ValueError("the mean must be within -10 to 5, and the standard deviation within 0 to 3")
        return log_sigma


def load_prior_config(path: str | Path) -> PriorTrainConfig:
    """Read a configuration; its folder is relative to the file and may hold environment variables, ``$NAME``.

    Raises:
        ConfigError: it cannot be read, or says something unknown or impossible.
    """
    path = Path(path)
    config = read_config(path, PriorTrainConfig)
    data = config.data.model_copy(update={"folder": resolved(config.data.folder, path)})
    return config.model_copy(update={"data": data})


def train_prior(
    config: PriorTrainConfig,
    run: Path,
    *,
    max_hours: float | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Path:
    """Train a pixel denoiser.

    Args:
        config: the run.
        run: run directory; holds ``config.yaml``, ``checkpoints/``, ``tensorboard/`` and, at the end, ``denoiser/``.
        max_hours: stop (with a checkpoint) after this time.
        resume: go on from the newest checkpoint.
        show_progress: print steps, speed, loss and time left.

    Returns:
        The newest checkpoint, which is a denoiser's folder; ``run/denoiser`` is a copy of it once all steps are done.

    Raises:
        ConfigError: the run directory holds another run, or the configuration cannot be carried out.
        MissingExtraError: a package is not installed.
    """
    require("accelerate", "tensorboard", extra="train")
    require("diffusers", extra="diffusion")
    from torch.utils.tensorboard import SummaryWriter

    check_run(config, run, resume=resume)
    accelerator = make_accelerator(config.precision)
    session = _Session(config, accelerator)
    if accelerator.is_main_process:
        record(config, run)
    start = 0
    if resume and (checkpoint := latest_checkpoint(run)) is not None:
        start = session.restore(load_state(checkpoint))
        log.info("resumed at step %d", start)
    check_start(accelerator, start)
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=start) if accelerator.is_main_process else None
    deadline = math.inf if max_hours is None else time.monotonic() + 3600 * max_hours
    with Progress(start, config.steps, enabled=show_progress and accelerator.is_main_process) as progress:
        for step in range(start, config.steps):
            progress.advance({"loss": session.step(step)})
            done = step + 1
            if writer is not None and done % config.log_every == 0:
                writer.add_scalar("loss", progress.averages()["loss"], done)
                writer.add_scalar("lr", learning_rate(config, step), done)
            stop = done == config.steps or agreed(accelerator, time.monotonic() > deadline)
            if writer is not None and (stop or done % config.checkpoint_every == 0):
                session.save(run, done)
                writer.add_images("noisy_denoised_hq", session.preview(step), done)
                writer.flush()
            if stop:
                break
    if writer is not None:
        writer.close()
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and progress.done > start and show_progress:
        log.info(progress.summary(accelerator.device))
    newest = latest_checkpoint(run) or run
    if accelerator.is_main_process and newest.name == f"step-{config.steps:07d}" and not (run / "denoiser").exists():
        card = (newest / "README.md").read_text()
        PixelDenoiser.from_pretrained(newest).save_pretrained(run / "denoiser", card=card)
    return newest


class _Session:
    """Everything that lives for the length of a run."""

    def __init__(self, config: PriorTrainConfig, accelerator: Any) -> None:
        self.config = config
        self.accelerator = accelerator
        self.pictures = Pictures(config.data.folder, smallest=config.data.crop)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            denoiser = PixelDenoiser(config.denoiser)
            self.average = PixelDenoiser(config.denoiser).requires_grad_(False).eval()
        self.average.load_state_dict(denoiser.state_dict())
        optimizer = torch.optim.AdamW(
            denoiser.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = accelerator.prepare(denoiser, optimizer)
        self.average.to(accelerator.device)
        mean, spread = config.log_sigma
        self.provenance = DenoiserProvenance(
            name="pixel denoiser",
            training_data=f"{len(self.pictures)} pictures of the folder {config.data.folder.name}",
            sigmas=(math.exp(mean - 1.96 * spread), math.exp(mean + 1.96 * spread)),
            commit=source_revision(),
            files=(SourceFile(name="training pictures", sha256=self.pictures.sha256), source_of(config)),
        )

    def step(self, step: int) -> float:
        """One optimisation step; returns the loss, the mean over the processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        hq, sigma, noise = self.batch(step)
        clean = self.model(hq + sigma[:, None, None, None] * noise, sigma)
        loss = edm_loss(clean.float(), hq, sigma, self.config.denoiser.sigma_data).mean()
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss is {loss.item()} at step {step}. Lower lr, or set precision: 'no'.")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        follow_average(self.average.parameters(), self._denoiser.parameters(), step, self.config.ema)
        return means(self.accelerator, [loss.item()])[0]

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """HQ pictures (N, 3, H, W), sigma (N,) and noise like the pictures, a function of seed, step and process alone."""
        config, accelerator = self.config, self.accelerator
        processes = accelerator.num_processes
        numbers = range(accelerator.process_index, processes * config.batch, processes)
        hq = torch.stack(
            [crop_of(self.pictures, config.data, picture_random(config.seed, step, number)) for number in numbers]
        )
        generators = picture_generators(config.seed, step, numbers, NOISE)
        mean, spread = config.log_sigma
        sigma = torch.cat([torch.exp(mean + spread * torch.randn(1, generator=generator)) for generator in generators])
        noise = normal(hq, generators)
        return hq.to(accelerator.device), sigma.to(accelerator.device), noise.to(accelerator.device)

    @property
    def _denoiser(self) -> PixelDenoiser:
        denoiser: PixelDenoiser = self.accelerator.unwrap_model(self.model)
        return denoiser

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a saved state; returns its step."""
        self._denoiser.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])

    def save(self, run: Path, step: int) -> Path:
        """Write a checkpoint; the averaged weights are its denoiser."""
        self.average.provenance = self.provenance.model_copy(update={"steps": step})
        state = {
            "step": step,
            "model": self._denoiser.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return save_checkpoint(run, self.average, state, step, keep=self.config.keep, card=self.average.card())

    @torch.no_grad()
    def preview(self, step: int) -> Tensor:
        """Noisy, denoised and HQ pictures of a batch, side by side: (n, 3, H, 3W) in [0, 1], n up to 4."""
        hq, sigma, noise = (part[:4] for part in self.batch(step))
        noisy = hq + sigma[:, None, None, None] * noise
        return torch.cat((noisy, self.average(noisy, sigma), hq), 3).clamp(0, 1).cpu()
