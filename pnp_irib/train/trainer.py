"""The training loop, on accelerate. A run directory alone reproduces the run and resumes it on the same trajectory."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from pnp_irib.any_size import fit_grid, restore_any_size
from pnp_irib.classifiers import EfficientNetLite, weight_file
from pnp_irib.diffusion.base import StableDiffusion, known_as
from pnp_irib.errors import ConfigError
from pnp_irib.files import atomic_file, sha256_of
from pnp_irib.hub import SourceFile
from pnp_irib.images.resize import resize
from pnp_irib.irib.objective import Objective, Terms, total
from pnp_irib.irib.prior import LatentPrior
from pnp_irib.projectors.base import WEIGHTS_NAME, Architecture, Projector, Provenance
from pnp_irib.projectors.latent import LatentProjector
from pnp_irib.projectors.pixel import PixelArchitecture, PixelProjector
from pnp_irib.prompts import Prompt, PromptExtractor, load_extractor
from pnp_irib.registry import find_spec, load_restorer
from pnp_irib.restorer import Restorer
from pnp_irib.revision import source_revision
from pnp_irib.runtime import require, store_channels_last
from pnp_irib.train.checkpoint import latest_checkpoint, load_state, save_checkpoint
from pnp_irib.train.config import TrainConfig
from pnp_irib.train.data import SCALE, Batch, Pictures, make_batch
from pnp_irib.train.progress import Progress
from pnp_irib.weights import weight_files

__all__ = ["train"]

_CLASSES: dict[type[Architecture], type[Projector]] = {cls.config_class: cls for cls in (PixelProjector, LatentProjector)}

log = logging.getLogger("pnp_irib.train")

CONFIG_NAME = "config.yaml"


def train(
    config: TrainConfig,
    run: Path,
    *,
    max_hours: float | None = None,
    resume: bool = False,
    show_progress: bool = True,
) -> Path:
    """Train a projector.

    Args:
        config: the run.
        run: run directory; holds ``config.yaml``, ``checkpoints/``, ``tensorboard/`` and, at the end, ``projector/``.
        max_hours: stop (with a checkpoint) after this time.
        resume: go on from the newest checkpoint.
        show_progress: print steps, speed, loss and time left.

    Returns:
        The newest checkpoint, which is a projector folder; ``run/projector`` is a copy of it once all steps are done.

    Raises:
        ConfigError: the run directory holds another run, or the configuration cannot be carried out.
    """
    require("accelerate", "tensorboard", extra="train")
    from accelerate import Accelerator, DistributedDataParallelKwargs
    from torch.utils.tensorboard import SummaryWriter

    _check_run(config, run, resume=resume)
    # Not every step uses all parameters: those of prompts rest while there is none.
    distributed = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=[distributed])
    session = _Session(config, accelerator)
    if accelerator.is_main_process:
        _record(config, run)
    start = 0
    if resume and (checkpoint := latest_checkpoint(run)) is not None:
        start = session.restore(load_state(checkpoint))
        log.info("resumed at step %d", start)
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=start) if accelerator.is_main_process else None
    progress = Progress(start, config.steps, enabled=show_progress and accelerator.is_main_process)
    deadline = math.inf if max_hours is None else time.monotonic() + 3600 * max_hours
    with progress:
        for step in range(start, config.steps):
            terms = session.step(step)
            done = step + 1
            progress.advance(terms)
            if writer is not None and done % config.log_every == 0:
                for name, value in progress.averages().items():
                    writer.add_scalar(f"loss/{name}", value, done)
                writer.add_scalar("lr", session.learning_rate(step), done)
            stop = done == config.steps or session.agreed(time.monotonic() > deadline)
            if (stop or done % config.checkpoint_every == 0) and accelerator.is_main_process:
                session.save(run, done)
                if writer is not None:
                    writer.add_images("elq_lq_reference", session.preview(step), done)
                    writer.flush()
            if stop:
                break
    if writer is not None:
        writer.close()
    accelerator.wait_for_everyone()
    newest = latest_checkpoint(run) or run
    if accelerator.is_main_process and newest.name == f"step-{config.steps:07d}" and not (run / "projector").exists():
        Projector.from_pretrained(newest, base=session.base).save_pretrained(
            run / "projector", card=(newest / "README.md").read_text()
        )
    return newest


class _Session:
    """Everything that lives for the length of a run."""

    def __init__(self, config: TrainConfig, accelerator: Any) -> None:
        self.config = config
        self.accelerator = accelerator
        self.pictures = Pictures(config.data.folder, smallest=config.data.crop)
        self.restorer = self._load_restorer() if config.objective.uses_restorer else None
        lent = getattr(self.restorer, "base", None)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            if config.init is not None:
                start = Projector.from_pretrained(config.init, base=lent)
            else:
                architecture = config.projector or PixelArchitecture()
                start = _CLASSES[type(architecture)].build(architecture, lent)
            # Of Stable Diffusion; shared by all that use the same.
            self.base: StableDiffusion | None = start.base if isinstance(start, LatentProjector) else None
            self.average = type(start).build(start.architecture, self.base).requires_grad_(False)
            prior = self._load_prior()
        start.train()
        store_channels_last(start)
        self.average.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(
            start.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = accelerator.prepare(_Trained(start), optimizer)
        self.average.to(accelerator.device)
        features = EfficientNetLite.from_package("lite0").to(accelerator.device) if config.objective.uses_features else None
        self.objective = Objective(config.objective, features, prior)
        critic = list(prior.critic.parameters()) if prior is not None else []
        self.critic_optimizer = torch.optim.AdamW(critic, lr=config.prior.lr) if critic and config.prior else None
        # Models of Stable Diffusion that gradients pass through.
        used = (self.base, lent, prior.base if prior is not None else None)
        self.bases = list({id(base): base for base in used if isinstance(base, StableDiffusion)}.values())
        if config.gradient_checkpointing and not self.bases:
            raise ConfigError("gradient_checkpointing: no part of this run is a Stable Diffusion; leave it out.")
        self.extractor: PromptExtractor = load_extractor(config.prompts.extractor)
        self.provenance = self._provenance(start)

    def _load_restorer(self) -> Restorer:
        through = self.config.through
        restorer = load_restorer(through.name, **through.options) if through else load_restorer(self.config.restorer)
        if not restorer.spec.differentiable:
            raise ConfigError(
                f"{restorer.spec.name} passes no gradients, so the HQ terms cannot train through it. "
                f"Set objective.hq, hq_structure and hq_perceptual to 0, or name a differentiable stand-in under 'through'."
            )
        if restorer.spec.scale not in (None, SCALE):
            raise ConfigError(f"{restorer.spec.name} enlarges by {restorer.spec.scale}; training is for {SCALE}.")
        # In float32 whatever the CPU likes best: a projector may put its weights on the restorer's base.
        return restorer.to(self.accelerator.device, torch.float32)

    def _load_prior(self) -> LatentPrior | None:
        config = self.config.prior
        if config is None:
            return None
        if self.base is not None and (config.base is None or known_as(config.base) == self.base.place):
            return LatentPrior(config, self.base)
        if config.base is None:
            raise ConfigError(
                "prior.base is not set, and the projector of 'init' has no base to share; name a Stable Diffusion."
            )
        return LatentPrior(config, StableDiffusion.load(str(config.base)).to(self.accelerator.device))

    def _provenance(self, start: Projector) -> Provenance:
        config = self.config
        files = [
            SourceFile(name="training pictures", sha256=self.pictures.sha256),
            SourceFile(name="training configuration", sha256=_sha256(_dumped(config))),
        ]
        if config.init is not None:
            files.append(SourceFile(name="initial projector", sha256=sha256_of(config.init / WEIGHTS_NAME)))
        if self.restorer is not None:
            name, options = (config.through.name, config.through.options) if config.through else (config.restorer, {})
            files += [SourceFile(name=path.name, sha256=sha256_of(path)) for path in weight_files(find_spec(name), options)]
        if config.objective.uses_features or config.prompts.extractor == "imagenet-tags":
            path = weight_file("lite0")
            files.append(SourceFile(name=path.name, sha256=sha256_of(path)))
        files += [f for f in start.provenance.files if f not in files]
        return Provenance(
            name=f"projector for {config.restorer}",
            lq_profile=find_spec(config.restorer).lq_profile,
            elq_profiles=tuple(entry.profile for entry in config.mixture if entry.profile is not None),
            restorer=config.restorer,
            surrogate=config.through.name if config.through else None,
            training_data=f"{len(self.pictures)} pictures of the folder {config.data.folder.name}",
            steps=start.provenance.steps,
            commit=source_revision(),
            files=tuple(files),
        )

    def step(self, step: int) -> dict[str, float]:
        """One optimisation step; returns the weighted terms."""
        with contextlib.ExitStack() as stack:
            if self.config.gradient_checkpointing:
                for base in self.bases:
                    stack.enter_context(base.checkpointing())
            return self._step(step)

    def _step(self, step: int) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        batch = make_batch(self.pictures, self.config, step, rank=self.accelerator.process_index)
        terms = self._terms(batch, step)
        loss = total(terms)
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss is {loss.item()} at step {step}. Lower lr, or set precision: 'no'.")
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._update_average(step)
        losses = {"total": loss.item()} | {name: value.mean().item() for name, value in terms.items()}
        if self.critic_optimizer is not None and self.agreed("hq_prior" in terms):
            losses["critic"] = self._follow(self.critic_optimizer, step, "hq_prior" in terms)
        return losses

    def _follow(self, optimizer: torch.optim.Optimizer, step: int, seen: bool) -> float:
        """A step of the critic on the pictures that the projector was just trained on; ``seen``: this process had any."""
        prior = self.objective.prior
        assert prior is not None
        critic = list(prior.critic.parameters())
        loss = torch.zeros(())
        gradients = [torch.zeros_like(parameter) for parameter in critic]
        if seen:
            with self.accelerator.autocast():
                loss = prior.follow(self._generator(step, 2)).mean()
            gradients = list(torch.autograd.grad(loss, critic))
        if not torch.isfinite(loss):
            raise ConfigError(f"the loss of the critic is {loss.item()} at step {step}. Lower prior.lr.")
        for parameter, gradient in zip(critic, gradients, strict=True):
            parameter.grad = self.accelerator.reduce(gradient, "mean")
        torch.nn.utils.clip_grad_norm_(critic, self.config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.item()

    def _generator(self, step: int, purpose: int) -> torch.Generator:
        """Randomness of a step as a function of the run, so that resuming needs no state."""
        random = np.random.default_rng([self.config.seed, step, self.accelerator.process_index, purpose])
        return torch.Generator().manual_seed(int(random.integers(2**62)))

    def _terms(self, batch: Batch, step: int) -> Terms:
        config, device = self.config, self.accelerator.device
        elq, reference, hq = (x.to(device) for x in (batch.elq, batch.reference, batch.hq))
        prompts = self._prompts(batch, step)
        with self.accelerator.autocast():
            estimate, severity = self.model(elq, prompts)
        estimate = estimate.float()
        grown = self._projector.enlargement
        compared = resize(reference, (estimate.shape[-2], estimate.shape[-1]))
        terms = self.objective.lq_terms(estimate, compared, enlargement=grown)
        if severity is not None:
            terms |= self.objective.gate_terms(severity.float(), batch.gate.to(device))
        severe = list(batch.severe[: config.hq_pictures])
        if not severe or not (config.objective.uses_restorer or config.objective.uses_features):
            return terms
        # A window of the LQ pictures: the restorer costs far more than the projector, which saw the whole crop.
        generator = np.random.default_rng([config.seed, step, 1])
        side = config.hq_crop or elq.shape[-1]
        top, left = (int(v) for v in generator.integers(elq.shape[-1] - side + 1, size=2))

        def window(pictures: Tensor, factor: int) -> Tensor:
            rows, columns = (slice(start * factor, (start + side) * factor) for start in (top, left))
            return pictures[severe][:, :, rows, columns]

        lq, target = window(estimate, grown), window(hq, SCALE)
        with self.accelerator.autocast():
            if config.objective.lq_perceptual:
                size = (2 * side, 2 * side)  # the feature network halves it at once
                terms |= self.objective.enlarged_terms(resize(lq, size), resize(window(reference, 1), size))
            if self.restorer is not None:
                scale = SCALE if self.restorer.spec.scale is None else None
                chosen = None if prompts is None else [prompts[i] for i in severe]
                given, own_scale = fit_grid(lq, window(elq, 1), self.restorer.spec, scale)
                restored = restore_any_size(self.restorer, given, scale=own_scale, prompts=chosen).float()
                random = self._generator(step, 1)
                terms |= self.objective.hq_terms(restored, target, prompts=chosen, generator=random)
        return terms

    def _prompts(self, batch: Batch, step: int) -> Sequence[Prompt | None] | None:
        config = self.config.prompts
        chance = random.Random(f"{self.config.seed}/{step}")
        wanted = [i for i in range(len(batch.elq)) if chance.random() >= config.dropout]
        if config.extractor == "none" or not wanted:
            return None
        prompts: list[Prompt | None] = [None] * len(batch.elq)
        source = batch.elq if config.on == "elq" else batch.reference
        for i, prompt in zip(wanted, self.extractor(source[wanted]), strict=True):
            prompts[i] = prompt
        return prompts

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to ``final_lr``; a function of the step alone."""
        config = self.config
        if step < config.warmup:
            return config.lr * (step + 1) / config.warmup
        done = (step - config.warmup) / max(1, config.steps - config.warmup)
        return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * done)))

    def _update_average(self, step: int) -> None:
        # A young average forgets its start quickly: min(ema, (1 + n) / (10 + n)).
        decay = min(self.config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self._projector.parameters()), 1 - decay)

    @property
    def _projector(self) -> Projector:
        trained: _Trained = self.accelerator.unwrap_model(self.model)
        return trained.projector

    def agreed(self, vote: bool) -> bool:
        """Whether any process says so, so that all do the same."""
        if self.accelerator.num_processes == 1:
            return vote
        votes = self.accelerator.reduce(torch.tensor(float(vote), device=self.accelerator.device))
        return bool(votes > 0)

    def state(self, step: int) -> dict[str, Any]:
        """What is needed to go on; the averaged weights are the projector of the checkpoint itself."""
        return {
            "step": step,
            "model": self._projector.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            **self._critic_state(),
        }

    def _critic_state(self) -> dict[str, Any]:
        prior = self.objective.prior
        if prior is None or self.critic_optimizer is None:
            return {}
        return {"critic": prior.critic.state_dict(), "critic_optimizer": self.critic_optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> int:
        """Take over a saved state; returns its step."""
        self._projector.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.objective.prior is not None and self.critic_optimizer is not None:
            self.objective.prior.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        return int(state["step"])

    def save(self, run: Path, step: int) -> Path:
        """Write a checkpoint."""
        self.average.provenance = self.provenance.model_copy(update={"steps": self.provenance.steps + step})
        card = self.average.card()
        return save_checkpoint(run, self.average, self.state(step), step, keep=self.config.keep, card=card)

    @torch.no_grad()
    def preview(self, step: int) -> Tensor:
        """ELQ, projection and reference of the first pictures of a batch, side by side: (n, 3, H, 3W)."""
        batch = make_batch(self.pictures, self.config, step)
        device = self.accelerator.device
        estimate = self.average.project(batch.elq[:4].to(device)).cpu()
        estimate = resize(estimate, (batch.elq.shape[-2], batch.elq.shape[-1])).clamp(0, 1)
        return torch.cat((batch.elq[:4], estimate, batch.reference[:4].clamp(0, 1)), 3)


class _Trained(nn.Module):
    """Projection and severity as one forward pass: gradients of several processes are averaged around that."""

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None) -> tuple[Tensor, Tensor | None]:
        return self.projector.project_with_severity(elq, prompts)


def _check_run(config: TrainConfig, run: Path, *, resume: bool) -> None:
    """Check that the directory is free, or holds this very run; before the first checkpoint there is nothing to lose.

    Raises:
        ConfigError: it holds another run, or it is one and ``resume`` was not asked for.
    """
    if latest_checkpoint(run) is None:
        return
    if not resume:
        raise ConfigError(f"{run} holds a run already. Resume it with --resume, or name another directory.")
    record = run / CONFIG_NAME
    try:
        recorded = yaml.safe_load(record.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{record} cannot be read: {' '.join(str(error).split())}. Name another directory.") from error
    if recorded != yaml.safe_load(_dumped(config)):
        raise ConfigError(f"{record} differs from the given configuration; a run is resumed with what it was begun with.")


def _record(config: TrainConfig, run: Path) -> None:
    """Write the configuration; called when everything that it names could be loaded."""
    run.mkdir(parents=True, exist_ok=True)
    with atomic_file(run / CONFIG_NAME) as file:
        file.write(_dumped(config).encode())


def _dumped(config: TrainConfig) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _sha256(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()
