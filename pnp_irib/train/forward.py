"""From a batch to the terms of the objective."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pnp_irib.any_size import fit_grid, restore_any_size
from pnp_irib.errors import ConfigError
from pnp_irib.images.resize import resize
from pnp_irib.irib import HQ_TERMS, DegradeBack, Objective, Terms
from pnp_irib.projectors.base import Projector
from pnp_irib.prompts import Prompt, PromptExtractor
from pnp_irib.restorer import MultiStepRestorer, Restorer
from pnp_irib.train.config import TrainConfig
from pnp_irib.train.data import SCALE, Batch, picture_generators, picture_random

__all__ = ["Forward", "Trained"]

# Streams of random numbers of a picture, beside the one that made it.
PROMPT, PRIOR, CRITIC, CYCLE, WINDOW = 1, 2, 3, 4, 5

NOTHING = "nothing"  # a term of value zero


class Trained(nn.Module):
    """Projection and severity as one forward pass: gradients of several processes are averaged around that."""

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None) -> tuple[Tensor, Tensor | None]:
        """See `Projector.project_with_severity`."""
        return self.projector.project_with_severity(elq, prompts)


class Forward:
    """The terms of a batch, and their sum.

    Every term is summed over its pictures and divided by how many of them a batch has on average. The sum is thus additive:
    two processes, or two micro-batches, have together the gradient of one batch of twice the size.

    Args:
        config: the run.
        objective: the terms.
        restorer: in the loop; None where no term needs it.
        extractor: of prompts.
        accelerator: whose device and precision.

    Raises:
        ConfigError: gradients through the last steps are asked of a restorer that does not offer that.
    """

    def __init__(
        self,
        config: TrainConfig,
        objective: Objective,
        restorer: Restorer | None,
        extractor: PromptExtractor,
        accelerator: Any,
    ) -> None:
        self._config, self._objective, self._restorer = config, objective, restorer
        self._extractor, self._accelerator = extractor, accelerator
        self._back = DegradeBack(config.reference, SCALE)
        self._slots = config.hq_pictures or config.batch
        shares = [(entry.share, entry.target == "reference") for entry in config.mixture]
        severe = sum(share for share, is_severe in shares if is_severe) / sum(share for share, _ in shares)
        self._expected = {"lq": config.batch, "gate": config.batch}
        self._expected_severe = max(1e-9, severe * self._slots)
        if restorer is not None and config.gradient_steps is not None and not isinstance(restorer, MultiStepRestorer):
            raise ConfigError(
                f"gradient_steps={config.gradient_steps}: {restorer.spec.name} does not take several steps. Leave it out."
            )

    def total(self, terms: Terms) -> Tensor:
        """What is minimised."""
        return torch.stack([value.sum() / self._count(name) for name, value in terms.items()]).sum()

    def none_restored(self) -> dict[str, float]:
        """`shares` of the terms on windows in a step without any."""
        return {name: 0.0 for name in ("lq_perceptual", *HQ_TERMS) if getattr(self._objective.config, name) > 0}

    def shares(self, terms: Terms) -> dict[str, float]:
        """The summands of `total`."""
        return {name: value.sum().item() / self._count(name) for name, value in terms.items() if name != NOTHING}

    def restored_numbers(self, batch: Batch) -> list[int]:
        """Numbers of the pictures that go through the restorer."""
        return [batch.numbers[place] for place in self._restored_places(batch)]

    def _restored_places(self, batch: Batch) -> list[int]:
        return [place for place in batch.severe if place < self._slots]

    def _count(self, name: str) -> float:
        return self._expected.get(name, self._expected_severe)

    def __call__(self, model: nn.Module, projector: Projector, batch: Batch, step: int) -> Terms:
        """The terms.

        Args:
            model: a `Trained`, perhaps with what averages gradients around it.
            projector: the one inside.
            batch: the pictures.
            step: its number.
        """
        device = self._accelerator.device
        elq, reference, hq = (x.to(device) for x in (batch.elq, batch.reference, batch.hq))
        prompts = self._prompts(batch, elq, step, projector)
        with self._accelerator.autocast():
            estimate, severity = model(elq, prompts)
        estimate = estimate.float()
        grown = projector.enlargement
        compared = resize(reference, (estimate.shape[-2], estimate.shape[-1]))
        terms = self._objective.lq_terms(estimate, compared, enlargement=grown)
        if severity is not None:
            terms |= self._objective.gate_terms(severity.float(), batch.gate.to(device))
        severe = self._restored_places(batch)
        config = self._objective.config
        if severe and (config.uses_restorer or config.uses_perceptual):
            chosen = None if prompts is None else [prompts[place] for place in severe]
            rows, columns = self._window(elq.shape[-1], step)

            def cut(pictures: Tensor, factor: int) -> Tensor:
                down, across = (slice(factor * span.start, factor * span.stop) for span in (rows, columns))
                return pictures[severe][:, :, down, across]

            parts = (cut(estimate, grown), cut(elq, 1), cut(reference, 1), cut(hq, SCALE))
            numbers = self.restored_numbers(batch)
            terms |= self._behind(*parts, prompts=chosen, numbers=numbers, step=step, grown=grown)
        # Where nothing else is left, the pass still counts: processes wait for each other's gradients.
        return terms or {NOTHING: 0 * estimate.flatten(1).mean(1)}

    def _behind(
        self,
        estimate: Tensor,
        elq: Tensor,
        reference: Tensor,
        hq: Tensor,
        *,
        prompts: Sequence[Prompt | None] | None,
        numbers: Sequence[int],
        step: int,
        grown: int,
    ) -> Terms:
        """Terms on windows of the severe pictures: behind the restorer, and on enlarged estimates."""
        objective, seed = self._objective, self._config.seed
        terms: Terms = {}
        if objective.config.lq_perceptual:
            size = (2 * elq.shape[-2], 2 * elq.shape[-1])  # the feature network halves it at once
            terms |= objective.enlarged_terms(resize(estimate, size), resize(reference, size))
        if self._restorer is None:
            return terms
        given, scale = fit_grid(estimate, elq, self._restorer.spec, SCALE if self._restorer.spec.scale is None else None)
        with self._truncated(), self._accelerator.autocast():
            restored = restore_any_size(self._restorer, given, scale=scale, prompts=prompts, elq=elq)
        restored = restored.float()
        if not bool(restored.isfinite().all()):
            raise ConfigError(
                f"{self._restorer.spec.name} gives values that are not finite at step {step}. "
                f"Lower lr, or set precision: 'no'."
            )
        terms |= objective.hq_terms(restored, hq)
        if objective.prior is not None:
            with self._accelerator.autocast():
                generators = picture_generators(seed, step, numbers, PRIOR)
                terms |= objective.prior_terms(restored, prompts=prompts, generators=generators)
        if objective.config.lq_cycle:
            seeds = [int(picture_random(seed, step, number, CYCLE).integers(2**62)) for number in numbers]
            back = resize(self._back(restored, seeds), (estimate.shape[-2], estimate.shape[-1]))
            terms |= objective.cycle_terms(estimate, back, enlargement=grown)
        return terms

    def _truncated(self) -> contextlib.AbstractContextManager[None]:
        steps = self._config.gradient_steps
        if steps is None or not isinstance(self._restorer, MultiStepRestorer):
            return contextlib.nullcontext()
        return self._restorer.gradients_through(steps)

    def _window(self, side: int, step: int) -> tuple[slice, slice]:
        """Part of the LQ pictures: the restorer costs far more than the projector, which sees the whole crop."""
        length = self._config.hq_crop or side
        random = picture_random(self._config.seed, step, 0, WINDOW)  # the same for all pictures of a step
        top, left = (int(start) for start in random.integers(side - length + 1, size=2))
        return slice(top, top + length), slice(left, left + length)

    def _prompts(self, batch: Batch, elq: Tensor, step: int, projector: Projector) -> list[Prompt | None] | None:
        """Prompts as in use: some pictures have none, and some have one that was read off a first estimate."""
        config = self._config.prompts
        if config.extractor == "none":
            return None
        draws = [picture_random(self._config.seed, step, number, PROMPT).random(2) for number in batch.numbers]
        wanted = [place for place, (drop, _) in enumerate(draws) if drop >= config.dropout]
        if not wanted:
            return None
        prompts: list[Prompt | None] = [None] * len(draws)
        source = elq if config.on == "elq" else batch.reference.to(elq.device)  # extractors work where their pictures are
        self._read(prompts, wanted, source)
        if ahead := [place for place in wanted if draws[place][1] < config.look_forward]:
            with torch.no_grad(), self._accelerator.autocast():
                estimate = projector.project(elq[ahead], prompts=[prompts[place] for place in ahead]).float().clamp(0, 1)
            self._read(prompts, ahead, dict(zip(ahead, estimate, strict=True)))
        return prompts

    def _read(self, prompts: list[Prompt | None], places: list[int], source: Tensor | dict[int, Tensor]) -> None:
        """Put what the extractor reads off the pictures at ``places`` into ``prompts``; None, no opinion, changes nothing."""
        seen = self._extractor(torch.stack([source[place] for place in places]))
        for place, prompt in zip(places, seen, strict=True):
            prompts[place] = prompt if prompt is not None else prompts[place]
