"""The objective in training runs: processes, references, prompts, restorers of many steps, validation, frozen parts."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from pnp_irib import RestorerSpec, load_projector, wrap
from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError, PnPIribError
from pnp_irib.images.folder import pictures_under
from pnp_irib.images.io import read_picture
from pnp_irib.images.similarity import psnr
from pnp_irib.noise import picture_seed
from pnp_irib.priors import DenoiserArchitecture, PixelDenoiser, PixelPrior
from pnp_irib.prompts import Prompt
from pnp_irib.registry import find_spec, load_restorer, placed
from pnp_irib.spec import Licence
from pnp_irib.train import load_config, session, train
from pnp_irib.train.data import make_batch
from pnp_irib.train.frozen import FrozenParts
from pnp_irib.train.session import Session
from tests.train.test_trainer import COMMAND


def rewritten(path: Path, **changes: Any) -> Path:
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | changes))
    return path


def curve(run: Path, name: str = "loss/total") -> list[float]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [event.value for event in events.Scalars(name)]


CYCLE = {"lq": 0.5, "lq_cycle": 0.5, "hq": 0.5, "hq_perceptual": 0.05, "gate": 0.1}
PROMPTS = {"extractor": "imagenet-tags", "dropout": 0.3, "look_forward": 0.5}


def test_two_processes_are_one_of_twice_the_batch(config_file: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"objective": CYCLE, "prompts": PROMPTS, "steps": 6, "checkpoint_every": 6}
    changes["restorer"] = "realesr-animevideov3"
    changes["validation"] = {"folder": "photographs", "profile": "extreme", "pictures": 1, "every": 3}
    rewritten(config_file, batch=2, hq_pictures=1, **changes)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", *COMMAND]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    both = tmp_path / "both"
    done = subprocess.run([*launch, str(config_file), "--run", str(both)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("step 6/6") == 1  # one of them speaks
    config = load_config(rewritten(config_file, batch=4, hq_pictures=2))
    train(config, tmp_path / "alone", show_progress=False)
    micro = load_config(rewritten(config_file, batch=1, hq_pictures=None, accumulate=4, validation=None))
    assert curve(both) == pytest.approx(curve(tmp_path / "alone"), rel=2e-4)
    assert len(set(curve(both))) == 6
    tried = [curve(run, "validation/ms_ssim") for run in (both, tmp_path / "alone")]
    assert len(tried[0]) == 2
    assert tried[0] == pytest.approx(tried[1], abs=2e-4)
    expected = load_file(tmp_path / "alone" / "projector" / "model.safetensors")
    for name, value in load_file(both / "projector" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=0)
    # Micro-batches as well, with every picture through the restorer.
    train(micro, tmp_path / "micro", show_progress=False)
    train(load_config(rewritten(config_file, batch=4, accumulate=1)), tmp_path / "whole", show_progress=False)
    assert curve(tmp_path / "micro") == pytest.approx(curve(tmp_path / "whole"), rel=2e-4)


def test_weights_are_means_over_what_a_batch_has_on_average(config_file: Path) -> None:
    """Half of the pictures are severe and the first two of four may be restored: one picture on average."""
    config = load_config(config_file)
    running = Session(config, Accelerator())
    sums: dict[str, Tensor] = {"hq": torch.full((2,), 3.0), "lq": torch.full((4,), 2.0)}
    assert running.forward.shares(sums) == pytest.approx({"hq": 6.0, "lq": 2.0})
    assert running.forward.total(sums).item() == pytest.approx(8.0)


def test_the_cycle_term_trains_through_the_restorer(config_file: Path) -> None:
    config = load_config(rewritten(config_file, objective={"lq": 0, "lq_cycle": 1.0, "gate": 0}))
    running = Session(config, Accelerator())
    batch = next(b for step in range(9) if (b := make_batch(running.pictures, config, step)).severe[:1] in ((0,), (1,)))
    terms = running.forward(running.model, running.projector, batch, 0)
    assert terms.keys() == {"lq_cycle"}
    running.forward.total(terms).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in running.projector.parameters())
    assert running.step(0)["lq_cycle"] > 0


class Seeing:
    """An extractor that says how bright a picture is, and remembers what it was shown."""

    name = "brightness"

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, pictures: Tensor) -> list[Prompt | None]:
        self.seen.append(pictures)
        return [Prompt(f"{picture.mean().item():.6f}") for picture in pictures]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_prompts_of_training_are_those_of_use(config_file: Path, share: float) -> None:
    prompts = {"extractor": "fixed:x", "dropout": 0.0, "look_forward": share}
    config = load_config(rewritten(config_file, prompts=prompts, through=None, objective={"lq": 1.0}))
    running = Session(config, Accelerator())
    extractor = Seeing()
    running.forward._extractor = extractor
    with torch.no_grad():  # a fresh projector changes nothing
        for parameter in running.projector.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    batch = make_batch(running.pictures, config, 0)
    found = running.forward._prompts(batch, batch.elq, 0, running.projector)
    assert found is not None
    first = [Prompt(f"{picture.mean().item():.6f}") for picture in batch.elq]
    assert torch.equal(extractor.seen[0], batch.elq)
    if not share:
        assert found == first
        return
    with torch.no_grad():
        estimate = running.projector.project(batch.elq, prompts=first).clamp(0, 1)
    assert len(extractor.seen) == 2
    torch.testing.assert_close(extractor.seen[1], estimate)
    assert found != first


MIT = Licence(name="MIT", commercial=True)


class Steps(nn.Module):
    """A restorer that sharpens in many steps."""

    spec = RestorerSpec(
        name="test-steps",
        title="Steps",
        scale=4,
        differentiable=True,
        safe_dtypes=("float32",),
        code_licence=MIT,
        weights_licence=MIT,
    )

    def __init__(self, steps: int = 6) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.tensor(0.3), requires_grad=False)
        self.steps, self.last, self.recorded = steps, steps, 0

    def restore(self, lq: Tensor, *, scale: float | None = None, prompts: Any = None, noise: Any = None) -> Tensor:
        x = given = F.interpolate(lq, scale_factor=4, mode="nearest")
        for step in range(self.steps):
            with torch.set_grad_enabled(torch.is_grad_enabled() and step >= self.steps - self.last):
                x = 0.5 * (x + given + self.strength * (x - F.avg_pool2d(x, 3, 1, 1)))
                self.recorded += x.requires_grad
        return x

    @contextlib.contextmanager
    def gradients_through(self, steps: int) -> Iterator[None]:
        before, self.last = self.last, steps
        try:
            yield
        finally:
            self.last = before

    def to(self, *place: Any, **named: Any) -> Self:
        return self


class Opaque(Steps):
    spec = Steps.spec.model_copy(update={"name": "test-opaque", "differentiable": False})


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, Steps]:
    known = {"test-steps": Steps(), "test-opaque": Opaque()}
    monkeypatch.setattr(session, "load_restorer", lambda name, **o: known.get(name) or load_restorer(name, **o))
    monkeypatch.setattr(session, "placed", lambda name, *where: {} if name in known else placed(name, *where))
    monkeypatch.setattr(session, "find_spec", lambda name: known[name].spec if name in known else find_spec(name))
    return known


@pytest.mark.parametrize(("last", "recorded"), [(2, 2), (None, 6)])
def test_gradients_pass_through_the_last_steps_only(
    config_file: Path, registered: dict[str, Steps], last: int | None, recorded: int
) -> None:
    changes: dict[str, Any] = {"restorer": "test-steps", "through": None, "hq_pictures": None, "gradient_steps": last}
    running = Session(load_config(rewritten(config_file, objective={"lq": 0, "hq": 1.0}, **changes)), Accelerator())
    step = next(s for s in range(9) if make_batch(running.pictures, running.config, s).severe)
    running.step(step)
    assert registered["test-steps"].recorded == recorded
    lq = torch.rand(1, 3, 4, 4, requires_grad=True)
    with running.forward._truncated():
        running.forward._restorer.restore(lq).mean().backward()  # type: ignore[union-attr]
    assert lq.grad is not None
    # Every step halves what came before and adds half of the input; the borders are sharpened a little otherwise.
    assert lq.grad.sum().item() == pytest.approx(0.75 if last else 1.0, abs=0.05)


def test_gradient_steps_need_a_restorer_that_has_steps(config_file: Path) -> None:
    with pytest.raises(ConfigError, match="gradient_steps=2: realesr-animevideov3 does not take several steps"):
        Session(load_config(rewritten(config_file, gradient_steps=2)), Accelerator())


def test_without_gradients_the_other_terms_train_and_it_is_said(
    config_file: Path, registered: dict[str, Steps], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rewritten(config_file, restorer="test-opaque", through=None)
    with caplog.at_level(logging.WARNING):
        newest = train(load_config(config_file), tmp_path / "run", show_progress=False)
    assert "trained without the terms behind the restorer: test-opaque passes no gradients" in caplog.text
    assert load_projector(f"local-dir:{newest}").provenance.notes[0].startswith("trained without the terms behind")
    tags = set(EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload().Tags()["scalars"])
    assert {"loss/lq", "loss/lq_perceptual"} <= tags
    assert not tags & {"loss/hq", "loss/hq_perceptual"}
    with pytest.raises(ConfigError, match=r"passes no gradients.*objective\.lq"):
        Session(load_config(rewritten(config_file, objective={"lq": 0, "hq": 1.0})), Accelerator())


def test_validation_is_with_the_restorer_that_the_projector_is_for(
    config_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validation = {"folder": "photographs", "profile": "extreme", "pictures": 2, "every": 2}
    rewritten(config_file, restorer="realesrgan-x4plus-anime", validation=validation, steps=3, checkpoint_every=3)
    with caplog.at_level(logging.INFO):
        train(load_config(config_file), tmp_path / "run")
    told = re.findall(r"validation at step (\d): psnr ([\d.]+) \(alone ([\d.]+)\), ms_ssim [\d.]+", caplog.text)
    assert [step for step, _, _ in told] == ["2", "3"]
    found = curve(tmp_path / "run", "validation/psnr")
    assert found == pytest.approx([float(value) for _, value, _ in told], abs=1e-3)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert events.Images("validation/elq_projection_restored_hq")[0].width == 4 * 256
    # Measured again by what users call, on the picture that comes first in the folder and the one after it.
    robust = wrap("realesrgan-x4plus-anime", projector=f"local-dir:{tmp_path / 'run' / 'projector'}")
    values = []
    for path in pictures_under(tmp_path / "photographs")[:2]:
        hq = read_picture(path).rgb
        elq = degrade(hq, "extreme", seeds=[picture_seed(3, path.name)], scale=4)
        values.append(psnr(robust(elq).restored, hq))
    assert found[-1] == pytest.approx(sum(values) / 2, abs=1e-3)
    assert "3 steps" in caplog.text
    assert re.search(r"peak memory [\d.]+ GiB", caplog.text)
    assert "bit for bit unchanged: the restorer (SRVGGNetCompact)" in caplog.text


def test_what_changes_a_frozen_part_is_found() -> None:
    frozen, trained = nn.BatchNorm1d(2), nn.Linear(2, 2)
    both = nn.ModuleList([frozen, trained])
    parts = FrozenParts({"all": both, "again": [both], "trained": trained}, [trained])
    with torch.no_grad():
        trained.weight.add_(1)
    assert parts.check() == ["all (ModuleList)"]
    assert frozen.running_mean is not None
    for value in (frozen.weight, frozen.running_mean):
        kept = value.detach().clone()
        with torch.no_grad():
            value.add_(1e-7 if value is frozen.weight else 1)
        with pytest.raises(PnPIribError, match=r"was to stay frozen: all \(ModuleList\)"):
            parts.check()
        with torch.no_grad():
            value.copy_(kept)


def test_every_frozen_part_of_a_run_is_looked_at(config_file: Path, tmp_path: Path) -> None:
    PixelDenoiser(DenoiserArchitecture(widths=(8, 16), blocks=1)).save_pretrained(tmp_path / "denoiser")
    prior = {"family": "pixel", "denoiser": "denoiser", "kind": "vsd"}
    changes: dict[str, Any] = {"objective": {"lq": 1.0, "hq_prior": 0.1}, "hq_pictures": None}
    running = Session(load_config(rewritten(config_file, prior=prior, **changes)), Accelerator())
    assert isinstance(running.objective.prior, PixelPrior)
    frozen: list[Any] = [running.objective.prior.denoiser, running.objective.prior._follower, running.restorer.network]  # type: ignore[union-attr]
    assert len(running.frozen.check()) == len(frozen)
    for module in frozen:
        value = next(p for name, p in module.named_parameters() if "lora" not in name)
        kept = value.detach().clone()
        with torch.no_grad():
            value.add_(1)
        with pytest.raises(PnPIribError, match=type(module).__name__):
            running.frozen.check()
        with torch.no_grad():
            value.copy_(kept)
    running.frozen.check()


def test_steps_without_severe_pictures_count_in_the_curves(config_file: Path) -> None:
    config = load_config(rewritten(config_file, batch=1, hq_pictures=1, objective={"lq": 1.0, "hq": 1.0}))
    running = Session(config, Accelerator())
    found = [running.step(step) for step in range(6)]
    assert all(losses.keys() == {"total", "lq", "hq", "gate"} for losses in found)
    assert {losses["hq"] == 0 for losses in found} == {True, False}


def test_an_unfaithful_restorer_ends_the_run_with_an_error(
    config_file: Path, registered: dict[str, Steps], tmp_path: Path
) -> None:
    class Drifting(Steps):
        def restore(self, lq: Tensor, *, scale: float | None = None, prompts: Any = None, noise: Any = None) -> Tensor:
            with torch.no_grad():
                self.strength.add_(0.01)
            return super().restore(lq, scale=scale, prompts=prompts, noise=noise)

    registered["test-steps"] = Drifting()
    changes: dict[str, Any] = {"restorer": "test-steps", "through": None, "hq_pictures": None, "steps": 3}
    config = load_config(rewritten(config_file, objective={"lq": 1.0, "hq": 1.0}, **changes))
    for resume in (False, True):
        with pytest.raises(PnPIribError, match=r"the restorer \(Drifting\)"):
            train(config, tmp_path / "run", resume=resume, show_progress=False)
    assert not (tmp_path / "run" / "projector").exists()


@pytest.mark.parametrize("kind", ["score-matching", "vsd"])
def test_a_prior_on_pixels_trains_the_projector_and_its_critic(config_file: Path, tmp_path: Path, kind: str) -> None:
    PixelDenoiser(DenoiserArchitecture(widths=(8, 16), blocks=1)).save_pretrained(tmp_path / "denoiser")
    prior = {"family": "pixel", "denoiser": "denoiser", "kind": kind, "lr": 1e-2}
    changes: dict[str, Any] = {"objective": {"lq": 1.0, "hq_prior": 0.1}, "hq_pictures": None, "steps": 3}
    config = load_config(rewritten(config_file, prior=prior, **changes))
    running = Session(config, Accelerator())
    critic = running.objective.prior
    assert critic is not None
    first = [p.detach().clone() for p in (*running.projector.parameters(), *critic.critic.parameters())]
    losses = [running.step(step) for step in range(3)]
    assert all(math.isfinite(value) for found in losses for value in found.values())
    assert (losses[0]["hq_prior"] > 0) == (kind == "score-matching")  # a young critic is the prior
    assert losses[2]["hq_prior"] > 0
    assert ("critic" in losses[0]) == (kind == "vsd")
    now = [*running.projector.parameters(), *critic.critic.parameters()]
    changed = [not torch.equal(a, b) for a, b in zip(first, now, strict=True)]
    count = sum(1 for _ in running.projector.parameters())
    assert sum(changed[:count]) > 0.9 * count
    assert any(changed[count:]) == (kind == "vsd")
    assert any("the prior" in name for name in running.frozen.check())
    # It goes on where it stopped, the critic too.
    state = running.state(3)
    again = Session(config, Accelerator())
    assert again.restore(state) == 3
    assert again.step(3) == pytest.approx(running.step(3))
