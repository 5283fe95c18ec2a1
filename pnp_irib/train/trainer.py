"""The training loop, on accelerate. A run directory alone reproduces the run and resumes it on the same trajectory."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

from pnp_irib.projectors.base import Projector
from pnp_irib.runtime import require
from pnp_irib.train.checkpoint import latest_checkpoint, load_state
from pnp_irib.train.config import TrainConfig
from pnp_irib.train.processes import agreed, check_start, make_accelerator
from pnp_irib.train.progress import Progress
from pnp_irib.train.run import check_run, learning_rate, record
from pnp_irib.train.session import Session

__all__ = ["train"]

log = logging.getLogger("pnp_irib.train")


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
    from accelerate import DistributedDataParallelKwargs
    from torch.utils.tensorboard import SummaryWriter

    check_run(config, run, resume=resume)
    # Not every step uses all parameters: those of prompts rest while there is none.
    distributed = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = make_accelerator(config.precision, distributed)
    session = Session(config, accelerator)
    if accelerator.is_main_process:
        record(config, run)
    start = 0
    if resume and (checkpoint := latest_checkpoint(run)) is not None:
        start = session.restore(load_state(checkpoint))
        log.info("resumed at step %d", start)
    check_start(accelerator, start)
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
                writer.add_scalar("lr", learning_rate(config, step), done)
            if session.validation is not None and (done == config.steps or done % session.validation.every == 0):
                _validate(session, writer, done)
            stop = done == config.steps or agreed(accelerator, time.monotonic() > deadline)
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
    if accelerator.is_main_process and progress.done > start and show_progress:
        log.info(progress.summary(accelerator.device))
        log.info("bit for bit unchanged: %s", ", ".join(session.frozen.check()) or "nothing was frozen")
    newest = latest_checkpoint(run) or run
    if accelerator.is_main_process and newest.name == f"step-{config.steps:07d}" and not (run / "projector").exists():
        Projector.from_pretrained(newest, base=session.base).save_pretrained(
            run / "projector", card=(newest / "README.md").read_text()
        )
    return newest


def _validate(session: Session, writer: Any, step: int) -> None:
    """Try the averaged projector; into TensorBoard and the log."""
    validation = session.validation
    if validation is None:
        return
    found, grid = validation(session.average)
    for name, value in found.items():
        writer.add_scalar(f"validation/{name}", value, step)
        writer.add_scalar(f"validation/{name} - alone", value - validation.alone[name], step)
    writer.add_image("validation/elq_projection_restored_hq", grid, step)
    told = ", ".join(f"{name} {value:.4f} (alone {validation.alone[name]:.4f})" for name, value in found.items())
    log.info("validation at step %d: %s", step, told)
