"""Training the latent projector through OSEDiff with a diffusion prior, all three on one tiny Stable Diffusion."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from pnp_irib import wrap
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.errors import ConfigError
from pnp_irib.images.resize import resize
from pnp_irib.irib import LQReconstruction
from pnp_irib.priors import LatentPrior
from pnp_irib.projectors import LatentProjector, PixelProjector, Projector
from pnp_irib.train import load_config, train
from pnp_irib.train.checkpoint import latest_checkpoint
from pnp_irib.train.data import Pictures, make_batch
from pnp_irib.train.run import dumped
from pnp_irib.train.session import Session
from tests.golden import golden_folder, missing
from tests.train.test_trainer import COMMAND

MODEL = golden_folder("osediff") / "model"
PLACE = str(MODEL / "sd21base")


def write(folder: Path, photographs: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "projector": {"kind": "latent", "base": PLACE, "timestep": 999},
        "data": {"folder": str(photographs), "crop": 64},
        "mixture": [{"profile": "extreme", "share": 3}, {"profile": "light", "share": 1, "target": "input"}],
        "prompts": {"extractor": "fixed:cat", "dropout": 0.3},
        "restorer": "osediff",
        "through": {
            "name": "osediff",
            "options": {
                "base": f"{PLACE}/../sd21base",  # another spelling of the same place
                "checkpoint": str(MODEL / "osediff.pkl"),
                "merged": False,
                "process_size": 16,
                "dtype": "float32",  # on every machine
            },
        },
        "objective": {"lq": 1.0, "hq": 0.5, "hq_prior": 0.05},
        "prior": {"kind": "vsd", "guidance": 2.0, "lr": 1e-3},
        "steps": 4,
        "batch": 2,
        "lr": 2e-3,
        "warmup": 2,
        "checkpoint_every": 1,
    } | changes
    path = folder / "latent.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photographs(shared_dir: Path) -> Path:
    if not MODEL.is_dir():
        missing("osediff")
    return shared_dir / "data" / "dev"


def test_only_the_lora_changes(photographs: Path, tmp_path: Path) -> None:
    session = Session(load_config(write(tmp_path, photographs)), Accelerator())
    base, prior, restorer, projector = session.base, session.objective.prior, session.restorer, session.projector
    assert base is not None
    assert isinstance(prior, LatentPrior)
    assert restorer is not None
    assert restorer.base is base is prior.base  # type: ignore[attr-defined]
    own = {id(p) for module in (projector, session.average, prior.critic) for p in module.parameters()}
    others = {
        f"{i}.{name}": value
        for i, part in enumerate(base.modules)
        for name, value in part.named_parameters()
        if id(value) not in own
    }
    kept = {name: value.detach().clone() for name, value in others.items()}
    picture = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    latents, times = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([500])

    def acts() -> list[Tensor]:
        with torch.no_grad():
            restored, critic = restorer.restore(picture), prior._critic(latents, times, base.text(["cat"]))
            return [restored, prior._frozen(latents, times, base.text(["cat"])), critic, projector.project(picture)]

    before = acts()
    alone = StableDiffusion.load(PLACE)
    with torch.no_grad():
        expected = alone.unet(latents, times, encoder_hidden_states=alone.text(["cat"])).sample
    torch.testing.assert_close(before[1], expected, atol=1e-5, rtol=0, msg="the prior is not the model as it was loaded")
    torch.testing.assert_close(before[2], expected, atol=1e-5, rtol=0, msg="a young critic is the prior")
    first = {name: value.detach().clone() for name, value in projector.named_parameters()}
    losses = [session.step(step) for step in range(3)]
    assert {"lq", "hq", "hq_prior", "critic", "total"} <= losses[0].keys()
    after = acts()
    assert torch.equal(before[0], after[0]), "the restorer changed"
    assert torch.equal(before[1], after[1]), "the prior changed"
    assert not torch.equal(before[2], after[2]), "the critic rests"
    assert not torch.equal(before[3], after[3])
    assert all(torch.equal(value, kept[name]) for name, value in others.items())
    assert not any(value.requires_grad or value.grad is not None for value in others.values())
    changed = [name for name, value in projector.named_parameters() if not torch.equal(value, first[name])]
    # Attention over the single position of the deepest level leaves its keys and queries without a gradient.
    still = set(first) - set(changed)
    assert all("mid_block" in name and "attn1.to_" in name for name in still), still


@pytest.mark.slow  # the same promise is tested of pixel projectors in less time
def test_kill_and_resume_gives_the_same_trajectory_and_a_projector_for_wrap(photographs: Path, tmp_path: Path) -> None:
    path = write(tmp_path, photographs)
    whole = tmp_path / "whole"
    subprocess.run([*COMMAND, str(path), "--run", str(whole)], check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen([*COMMAND, str(path), "--run", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while latest_checkpoint(killed) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = latest_checkpoint(killed)
    assert first is not None
    assert first.name != "step-0000004", "the run was over before it could be killed"
    with pytest.raises(ConfigError, match="--resume"):
        train(load_config(path), killed, show_progress=False)
    subprocess.run([*COMMAND, str(path), "--run", str(killed), "--resume"], check=True, capture_output=True)
    expected, found = (load_file(folder / "projector" / "model.safetensors") for folder in (whole, killed))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    options: dict[str, Any] = {"base": PLACE, "checkpoint": MODEL / "osediff.pkl", "merged": False, "process_size": 16}
    robust = wrap("osediff", projector=f"local-dir:{killed / 'projector'}", **options)
    assert isinstance(robust.projector, LatentProjector)
    result = robust(torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(1)), prompt="cat", lfo=0)
    assert result.restored.shape == (1, 3, 40, 48)
    assert (result.restored - wrap(robust.restorer, projector=None)(result.picture.rgb).restored).abs().max() > 1e-3


@pytest.mark.slow
def test_bfloat16_trains_float32_weights(photographs: Path, tmp_path: Path) -> None:
    path = write(tmp_path, photographs, steps=2, precision="bf16", gradient_checkpointing=True)
    # accelerate allows one precision a process
    subprocess.run([*COMMAND, str(path), "--run", str(tmp_path / "half")], check=True, capture_output=True)
    whole = train(load_config(write(tmp_path, photographs, steps=2)), tmp_path / "whole", show_progress=False)
    found = [load_file(folder / "model.safetensors") for folder in (whole, tmp_path / "half" / "projector")]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in found[1].values())
    assert any(not torch.equal(value, found[1][name]) for name, value in found[0].items())
    for name, value in found[0].items():
        assert (found[1][name] - value).abs().mean() < 0.02


def test_the_loss_falls(photographs: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"steps": 24, "checkpoint_every": 24, "ema": 0.7, "lr": 1e-2}
    config = load_config(write(tmp_path, photographs, objective={"lq": 1.0, "hq": 0.5}, prior=None, **changes))
    newest = train(config, tmp_path / "run", show_progress=False)
    trained = Projector.from_pretrained(newest)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        assert config.projector is not None
        fresh = LatentProjector.build(config.projector)
    session = Session(config, Accelerator())
    losses = []
    for projector in (fresh, trained):
        found = []
        for step in (1000, 1001, 1002):  # pictures that training never saw so
            batch = make_batch(session.pictures, config, step)
            with torch.no_grad():
                estimate = projector.project(batch.elq)
            reference = resize(batch.reference, (estimate.shape[-2], estimate.shape[-1]))
            found.append(LQReconstruction(norm="l1")(estimate, reference).mean())
        losses.append(torch.stack(found).mean())
    assert losses[1] < 0.9 * losses[0], losses  # a decoder of random weights cannot show much


def generators(seed: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in (0, 100)]


@pytest.mark.parametrize("kind", ["score-matching", "sds", "vsd"])
def test_each_prior_leads_pictures_somewhere(photographs: Path, tmp_path: Path, kind: str) -> None:
    session = Session(load_config(write(tmp_path, photographs, prior={"kind": kind})), Accelerator())
    prior = session.objective.prior
    assert prior is not None
    picture = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    term = prior(picture, None, generators(5))
    assert term.shape == (2,)
    term.sum().backward()
    assert picture.grad is not None
    assert picture.grad.isfinite().all()
    assert picture.grad.abs().sum((1, 2, 3)).min() > 0
    again = prior(picture.detach(), None, generators(5))
    torch.testing.assert_close(again, term.detach())
    assert not torch.equal(prior(picture.detach(), None, generators(6)), again)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prior": None}, "objective.hq_prior"),
        ({"objective": {"lq": 1.0}}, "objective.hq_prior"),
        ({"projector": {}}, "prior.base"),
        ({"mixture": [{"profile": "extreme", "share": 1, "gate": 1}]}, "labels of the gate"),
        ({"init": "somewhere"}, "leave one of them out"),
        ({"through": {"name": "osediff", "options": {"base": "$NO_SUCH_PLACE/base"}}}, "NO_SUCH_PLACE"),
        ({"prior": {"timesteps": [900, 20]}}, "ordered"),
        ({"projector": {"kind": "latent"}}, "base"),
        ({"projector": {"kind": "laten"}}, "latent"),
    ],
)
def test_what_cannot_be_is_told(photographs: Path, tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(write(tmp_path, photographs, **changes))


def test_what_shows_only_when_it_is_loaded_is_told(photographs: Path, tmp_path: Path) -> None:
    init = PixelProjector().save_pretrained(tmp_path / "pixel")
    changes: dict[str, Any] = {"projector": None, "init": str(init)}
    with pytest.raises(ConfigError, match=r"prior\.base"):
        Session(load_config(write(tmp_path, photographs, **changes)), Accelerator())
    changes |= {"restorer": "realesr-animevideov3", "objective": {"lq": 1.0}, "prior": None, "through": None}
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        Session(load_config(write(tmp_path, photographs, gradient_checkpointing=True, **changes)), Accelerator())


def test_places_of_models_are_relative_to_the_configuration(photographs: Path, tmp_path: Path) -> None:
    through = {"name": "osediff", "options": {"base": "models/base", "checkpoint": "hf-hub:a/b/c.pkl", "compat": "x"}}
    prompts = {"extractor": "dape:models/dape.safetensors"}
    path = write(tmp_path, photographs, through=through, prompts=prompts, projector=None, init="local-dir:start/here")
    for folder in ("base", "dape.safetensors"):
        (tmp_path / "models" / folder).mkdir(parents=True)
    config = load_config(path)
    assert config.through is not None
    assert config.through.options == {
        "base": str(tmp_path / "models" / "base"),
        "checkpoint": "hf-hub:a/b/c.pkl",
        "compat": "x",
    }
    assert config.prompts.extractor == f"dape:{tmp_path}/models/dape.safetensors"
    assert config.init == str(tmp_path / "start" / "here")  # which may yet be made
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(dumped(config))
    assert load_config(tmp_path / "run" / "config.yaml") == config


@pytest.mark.parametrize(
    "changes",
    [
        {"projector": {"kind": "latent", "base": "owner/name"}},
        {"projector": None, "init": "owner/name"},
        {"prior": {"base": "owner/name"}},
        {"prior": {"family": "pixel", "denoiser": "owner/name"}},
        {"through": {"name": "osediff", "options": {"base": "owner/name"}}},
        {"prompts": {"extractor": "dape:owner/name"}},
    ],
)
def test_a_bare_name_on_the_hub_is_told_how_to_be_written(photographs: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    path = write(tmp_path, photographs, **changes)
    with pytest.raises(
        ConfigError, match=f"nothing at {tmp_path}/owner/name. A name on the Hub is written hf-hub:owner/name$"
    ):
        load_config(path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    load_config(path)


@pytest.mark.slow
def test_processes_without_severe_pictures_do_not_wait_for_each_other(photographs: Path, tmp_path: Path) -> None:
    mixture = [{"profile": "extreme", "share": 1}, {"profile": "light", "share": 1, "target": "input"}]
    path = write(tmp_path, photographs, mixture=mixture, batch=1, steps=6, checkpoint_every=6)
    config = load_config(path)
    pictures = Pictures(config.data.folder, smallest=config.data.crop)
    severe = {
        tuple(len(make_batch(pictures, config, step, part=rank, parts=2).severe) for rank in (0, 1)) for step in range(6)
    }
    assert {(0, 1), (1, 0)} & severe  # else nothing is shown
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", *COMMAND]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = ["--run", str(tmp_path / "run")]
    done = subprocess.run([*launch, str(path), *run], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "projector" / "model.safetensors").is_file()
