"""The baseline that a projector is measured against: the restorer itself trained from ELQ to HQ, in memory only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pnp_irib.diffusion.lora import active, add_adapter, layers_named, load_tensors, merge
from pnp_irib.errors import ConfigError
from pnp_irib.files import atomic_file, write_atomically
from pnp_irib.irib import Objective, load_perceptual
from pnp_irib.priors import load_prior
from pnp_irib.prompts import NoPrompt
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer
from pnp_irib.runtime import modules_held_by, require
from pnp_irib.studies.config import LoRA
from pnp_irib.train import TrainConfig
from pnp_irib.train.checkpoint import load_state
from pnp_irib.train.data import Pictures, make_batch
from pnp_irib.train.forward import Forward
from pnp_irib.train.run import follow_average, learning_rate

__all__ = ["Finetuning", "finetune", "load_finetuned"]

ADAPTER = "finetune"
STATE_NAME = "training_state.pt"
WEIGHTS_NAME = "restorer.safetensors"


class Finetuning:
    """A restorer of its own, with the weights that are trained.

    Args:
        config: the run; its restorer is trained.
        lora: adapters that are trained; None: all weights.

    Attributes:
        restorer: read anew, so that no other copy changes.
        module: its network.
        trained: parameters that are trained, by their names in it.

    Raises:
        ConfigError: the restorer is not differentiable, has no single network, or is not the one in the loop.
    """

    def __init__(self, config: TrainConfig, lora: LoRA | None) -> None:
        if config.through is not None:
            raise ConfigError(
                f"'through' names {config.through.name}, but {config.restorer} itself is finetuned. Leave it out."
            )
        self.lora = lora
        self.restorer: Restorer = load_restorer(config.restorer).to(dtype=torch.float32)
        modules = modules_held_by(self.restorer)
        if not self.restorer.spec.differentiable or len(modules) != 1:
            raise ConfigError(
                f"{config.restorer} cannot be finetuned here: it holds {len(modules)} networks and is "
                f"{'' if self.restorer.spec.differentiable else 'not '}differentiable; expected one that is. Choose another."
            )
        self.module = modules[0]
        if lora is not None:
            layers = layers_named(self.module, [name for name, _ in self.module.named_modules() if name])
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                add_adapter(self.module, ADAPTER, layers, rank=lora.rank, alpha=lora.alpha or lora.rank)
        wanted = f".{ADAPTER}." if lora is not None else ""
        self.trained = {name: p for name, p in self.module.named_parameters() if wanted in name}

    @property
    def parameter_count(self) -> int:
        """How many weights are trained."""
        return sum(p.numel() for p in self.trained.values())

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """Inside, gradients reach what is trained, and adapters act."""
        for parameter in self.trained.values():
            parameter.requires_grad_(True)
        try:
            with active(self.module, [ADAPTER]) if self.lora is not None else contextlib.nullcontext():
                yield
        finally:
            for parameter in self.trained.values():
                parameter.requires_grad_(False)

    def finished(self, tensors: dict[str, Tensor]) -> Restorer:
        """The restorer with trained weights, adapters folded in."""
        load_tensors(self.module, tensors, required=self.trained)
        if self.lora is not None:
            merge(self.module, [ADAPTER])
        return self.restorer


def finetune(config: TrainConfig, lora: LoRA | None, run: Path, *, out_of_time: Callable[[], bool]) -> tuple[int, int]:
    """Train the restorer from ELQ to HQ on the batches, windows and schedule that a projector would be trained with.

    Its terms are those behind the restorer; those on the LQ grid and the gate's have no place where nothing is projected.

    Args:
        config: the run.
        lora: adapters that are trained; None: all weights.
        run: folder of its state and, at the end, of its weights.
        out_of_time: asked after each step; True: stop, with the state written.

    Returns:
        The steps that were done before, and those that are done now.

    Raises:
        ConfigError: the configuration cannot be carried out.
    """
    require("accelerate", extra="train")
    from accelerate import Accelerator

    weights = dict.fromkeys(("lq", "lq_cycle", "lq_perceptual", "gate"), 0.0)
    terms = config.objective.model_copy(update=weights)
    if not terms.uses_restorer:
        raise ConfigError(
            "no term behind the restorer has a weight, so there is nothing to finetune it with. Set objective.hq."
        )
    accelerator = Accelerator(mixed_precision=config.precision)
    subject = Finetuning(config, lora)
    pictures = Pictures(config.data.folder, smallest=config.data.crop)
    perceptual = load_perceptual(terms.perceptual, accelerator.device) if terms.uses_perceptual else None
    prior = load_prior(config.prior, device=accelerator.device) if config.prior is not None else None
    if prior is not None and list(prior.critic.parameters()):
        raise ConfigError("the prior trains a critic, which finetuning here does not do. Use score-matching or sds.")
    subject.restorer.to(accelerator.device)
    forward = Forward(config, Objective(terms, perceptual, prior), subject.restorer, NoPrompt(), accelerator)
    trained = list(subject.trained.values())
    average = [parameter.detach().clone() for parameter in trained]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True)
    start = _resume(run, subject, average, optimizer)
    untouched, done = _Untouched(), start
    with subject.training():
        for step in range(start, config.steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            for part in range(config.accumulate):
                batch = make_batch(pictures, config, step, part=part, parts=config.accumulate)
                loss = forward.total(forward(untouched, cast(Any, untouched), batch, step))
                if not torch.isfinite(loss):
                    raise ConfigError(f"the loss is {loss.item()} at step {step}. Lower lr, or set precision: 'no'.")
                if not loss.requires_grad and forward.restored_numbers(batch):
                    raise ConfigError(
                        f"{config.restorer} passes no gradients to its own weights, so it cannot be finetuned here. A "
                        f"restorer that is a torch module is borrowed frozen: hold the module in an attribute instead."
                    )
                if loss.requires_grad:  # a batch of near-clean pictures alone has nothing to restore
                    accelerator.backward(loss / config.accumulate)
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            follow_average(average, trained, step, config.ema)
            done = step + 1
            stop = done == config.steps or out_of_time()
            if stop or done % config.checkpoint_every == 0:
                _save(run, subject, average, optimizer, done)
            if stop:
                break
    if done == config.steps:
        tensors = {name: value.cpu().contiguous() for name, value in zip(subject.trained, average, strict=True)}
        write_atomically(run / WEIGHTS_NAME, lambda part: save_file(tensors, part))
    return start, done


def load_finetuned(config: TrainConfig, lora: LoRA | None, run: Path) -> tuple[Restorer, int]:
    """The restorer that `finetune` made, and how many weights were trained."""
    subject = Finetuning(config, lora)
    count = subject.parameter_count
    return subject.finished(load_file(run / WEIGHTS_NAME)), count


class _Untouched(nn.Module):
    """In the place of the projector: pictures as they are."""

    enlargement = 1

    def forward(self, elq: Tensor, prompts: Any) -> tuple[Tensor, None]:
        return elq, None


def _resume(run: Path, subject: Finetuning, average: list[Tensor], optimizer: torch.optim.Optimizer) -> int:
    if not (run / STATE_NAME).exists():
        return 0
    state = load_state(run)
    with torch.no_grad():
        for name, parameter in subject.trained.items():
            parameter.copy_(state["model"][name])
        for mean, name in zip(average, subject.trained, strict=True):
            mean.copy_(state["average"][name])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])


def _save(run: Path, subject: Finetuning, average: list[Tensor], optimizer: torch.optim.Optimizer, step: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "model": {name: parameter.detach() for name, parameter in subject.trained.items()},
        "average": dict(zip(subject.trained, average, strict=True)),
        "optimizer": optimizer.state_dict(),
    }
    with atomic_file(run / STATE_NAME) as file:
        torch.save(state, file)
