"""Everything that lives for the length of a run: models, optimisers, and one step of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pnp_irib.classifiers import weight_file
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.errors import ConfigError
from pnp_irib.files import sha256_of
from pnp_irib.hub import SourceFile
from pnp_irib.images.resize import resize
from pnp_irib.irib import TERMS, Objective, load_perceptual
from pnp_irib.priors import load_prior
from pnp_irib.projectors.base import WEIGHTS_NAME, Architecture, Projector, Provenance
from pnp_irib.projectors.latent import LatentProjector
from pnp_irib.projectors.pixel import PixelArchitecture, PixelProjector
from pnp_irib.prompts import load_extractor
from pnp_irib.registry import find_spec, load_restorer, placed
from pnp_irib.restorer import Restorer
from pnp_irib.revision import source_revision
from pnp_irib.runtime import store_channels_last
from pnp_irib.train.checkpoint import save_checkpoint
from pnp_irib.train.config import TrainConfig
from pnp_irib.train.data import SCALE, Pictures, make_batch, picture_generators
from pnp_irib.train.forward import CRITIC, Forward, Trained
from pnp_irib.train.frozen import FrozenParts
from pnp_irib.train.processes import agreed, means
from pnp_irib.train.run import follow_average, learning_rate, source_of
from pnp_irib.train.validation import Validation
from pnp_irib.weights import weight_files

__all__ = ["Session"]

_CLASSES: dict[type[Architecture], type[Projector]] = {cls.config_class: cls for cls in (PixelProjector, LatentProjector)}

log = logging.getLogger("pnp_irib.train")


class Session:
    """The models of a run and their optimisers.

    Args:
        config: the run.
        accelerator: of accelerate.

    Raises:
        ConfigError: the configuration cannot be carried out.
    """

    def __init__(self, config: TrainConfig, accelerator: Any) -> None:
        self.config = config
        self.accelerator = accelerator
        self.pictures = Pictures(config.data.folder, smallest=config.data.crop)
        self.notes: tuple[str, ...] = ()
        terms = config.objective
        self.restorer = self._load_restorer() if terms.uses_restorer else None
        if self.restorer is None:
            terms = terms.without_restorer()
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
            wanted = config.prior if terms.hq_prior else None
            prior = load_prior(wanted, base=self.base, device=accelerator.device) if wanted is not None else None
        start.train()
        store_channels_last(start)
        self.average.load_state_dict(start.state_dict())
        optimizer = torch.optim.AdamW(
            start.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.model, self.optimizer = accelerator.prepare(Trained(start), optimizer)
        self.average.to(accelerator.device)
        perceptual = load_perceptual(terms.perceptual, accelerator.device) if terms.uses_perceptual else None
        self.objective = Objective(terms, perceptual, prior)
        critic = list(prior.critic.parameters()) if prior is not None else []
        self.critic_optimizer = torch.optim.AdamW(critic, lr=config.prior.lr) if critic and config.prior else None
        # Models of Stable Diffusion that gradients pass through.
        used = (self.base, lent, getattr(prior, "base", None))
        self.bases = list({id(base): base for base in used if isinstance(base, StableDiffusion)}.values())
        if config.gradient_checkpointing and not self.bases:
            raise ConfigError("gradient_checkpointing: no part of this run is a Stable Diffusion; leave it out.")
        extractor = load_extractor(config.prompts.extractor)
        self.forward = Forward(config, self.objective, self.restorer, extractor, accelerator)
        self.extractor = extractor
        self.validation = self._load_validation() if accelerator.is_main_process else None
        self.provenance = self._provenance(start)
        held = {"the restorer": self.restorer, "the prior": prior, "the base": self.base}
        trained = [start, self.average, *([prior.critic] if prior is not None else [])]
        self.frozen = FrozenParts(held if accelerator.is_main_process else {}, trained)

    def _load_restorer(self) -> Restorer | None:
        """In float32 whatever the CPU likes best: a projector may put its weights on the restorer's base."""
        config, through = self.config, self.config.through
        restorer = self._read(through.name, through.options) if through else self._read(config.restorer, {})
        name = restorer.spec.name
        if not restorer.spec.differentiable:
            if not config.objective.without_restorer().is_set:
                raise ConfigError(
                    f"{name} passes no gradients, so that no term behind it can train the projector, and no other term has a "
                    f"weight. Set objective.lq above 0, or name a differentiable stand-in under 'through'."
                )
            self.notes = (f"trained without the terms behind the restorer: {name} passes no gradients",)
            log.warning("%s.", self.notes[0])
            return None
        if restorer.spec.scale not in (None, SCALE):
            raise ConfigError(f"{name} enlarges by {restorer.spec.scale}; training is for {SCALE}.")
        if config.precision == "bf16" and "bfloat16" not in restorer.spec.safe_dtypes:
            log.warning("precision: bf16 is not known to be safe for %s; single pixels may differ much.", name)
        if restorer.spec.prompts == "required" and config.prompts.extractor == "none":
            raise ConfigError(f"{name} needs prompts. Name an extractor under prompts, such as imagenet-tags.")
        return restorer

    def _read(self, name: str, options: dict[str, Any]) -> Restorer:
        where = (self.accelerator.device, torch.float32)
        return load_restorer(name, **placed(name, *where) | options).to(*where)

    def _load_validation(self) -> Validation | None:
        config = self.config
        if config.validation is None:
            return None
        restorer = self.restorer
        if restorer is None or config.through is not None or config.validation.options:
            restorer = self._read(config.restorer, config.validation.options)
        return Validation(config.validation, config.seed, restorer, self.accelerator.device)

    def _provenance(self, start: Projector) -> Provenance:
        config = self.config
        files = [
            SourceFile(name="training pictures", sha256=self.pictures.sha256),
            source_of(config),
        ]
        if start.origin is not None and (sha256 := start.origin.hash_of(WEIGHTS_NAME)) is not None:
            files.append(SourceFile(name="initial projector", sha256=sha256))
        if self.restorer is not None:
            name, options = (config.through.name, config.through.options) if config.through else (config.restorer, {})
            files += [SourceFile(name=path.name, sha256=sha256_of(path)) for path in weight_files(find_spec(name), options)]
        uses_lite0 = self.objective.config.uses_perceptual and self.objective.config.perceptual == "efficientnet-lite0"
        if uses_lite0 or config.prompts.extractor == "imagenet-tags":
            path = weight_file("lite0")
            files.append(SourceFile(name=path.name, sha256=sha256_of(path)))
        files += [file for origin in getattr(self.extractor, "origins", ()) for file in origin.files]
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
            notes=self.notes,
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
            group["lr"] = learning_rate(self.config, step)
        losses = self.forward.none_restored()
        critic = _Critic(self, step) if self.critic_optimizer is not None else None
        for batch, synchronised in self._batches(step):
            with contextlib.nullcontext() if synchronised else self.accelerator.no_sync(self.model):
                terms = self.forward(self.model, self.projector, batch, step)
                loss = self.forward.total(terms)
                if not torch.isfinite(loss):
                    raise ConfigError(f"the loss is {loss.item()} at step {step}. Lower lr, or set precision: 'no'.")
                self.accelerator.backward(loss / self.config.accumulate)
            for name, share in self.forward.shares(terms).items():
                losses[name] = losses.get(name, 0.0) + share / self.config.accumulate
            if critic is not None:
                critic.follow(self.forward.restored_numbers(batch))
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        follow_average(self.average.parameters(), self.projector.parameters(), step, self.config.ema)
        losses = self._averaged(losses)
        if critic is not None and agreed(self.accelerator, critic.pictures > 0):
            losses["critic"] = critic.step()
        return losses

    def _averaged(self, losses: dict[str, float]) -> dict[str, float]:
        """Over the processes; and the total."""
        # A process may have had nothing to restore.
        found = means(self.accelerator, [losses.get(name, 0.0) for name in TERMS])
        losses = {name: value for name, value in zip(TERMS, found, strict=True) if value or name in losses}
        return {"total": sum(losses.values())} | {name: losses[name] for name in TERMS if name in losses}

    def _batches(self, step: int) -> Iterator[tuple[Any, bool]]:
        """The batches of a step, and whether gradients are averaged over the processes behind it."""
        config, accelerator = self.config, self.accelerator
        parts = accelerator.num_processes * config.accumulate
        for i in range(config.accumulate):
            part = accelerator.process_index * config.accumulate + i
            yield make_batch(self.pictures, config, step, part=part, parts=parts), i == config.accumulate - 1

    @property
    def projector(self) -> Projector:
        """The one that is trained."""
        trained: Trained = self.accelerator.unwrap_model(self.model)
        return trained.projector

    def state(self, step: int) -> dict[str, Any]:
        """What is needed to go on; the averaged weights are the projector of the checkpoint itself."""
        return {
            "step": step,
            "model": self.projector.state_dict(),
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
        self.projector.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.objective.prior is not None and self.critic_optimizer is not None:
            self.objective.prior.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        return int(state["step"])

    def save(self, run: Path, step: int) -> Path:
        """Write a checkpoint.

        Raises:
            PnPIribError: a part that is frozen changed.
        """
        self.frozen.check()
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


class _Critic:
    """Gradients of the critic over the batches of a step: it follows the pictures that the projector was just trained on."""

    def __init__(self, session: Session, step: int) -> None:
        prior, optimizer = session.objective.prior, session.critic_optimizer
        assert prior is not None
        assert optimizer is not None
        self._prior, self._optimizer, self._session, self._step = prior, optimizer, session, step
        self._parameters = list(prior.critic.parameters())
        self._gradients = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._loss = 0.0
        self.pictures = 0

    def follow(self, numbers: list[int]) -> None:
        """Add the gradients for the pictures of the prior's last call, whose numbers these are."""
        if not numbers:
            return
        session = self._session
        generators = picture_generators(session.config.seed, self._step, numbers, CRITIC)
        with session.accelerator.autocast():
            losses = self._prior.follow(generators)
        if not torch.isfinite(losses).all():
            raise ConfigError(f"the loss of the critic is {losses.mean().item()} at step {self._step}. Lower prior.lr.")
        found = torch.autograd.grad(losses.sum(), self._parameters)
        for total, gradient in zip(self._gradients, found, strict=True):
            total += gradient
        self._loss += losses.sum().item()
        self.pictures += len(losses)

    def step(self) -> float:
        """Change it; returns its mean loss over the pictures of all processes."""
        session = self._session
        reduce = session.accelerator.reduce
        counted = torch.tensor([self._loss, float(self.pictures)], device=session.accelerator.device)
        loss, pictures = (counted if session.accelerator.num_processes == 1 else reduce(counted, "sum")).tolist()
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = reduce(gradient, "sum") / pictures
        torch.nn.utils.clip_grad_norm_(self._parameters, session.config.clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss / pictures)
