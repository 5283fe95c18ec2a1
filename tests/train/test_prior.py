"""Training pixel denoisers: they learn, survive being killed, and say what they come from."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from pnp_irib.errors import ConfigError
from pnp_irib.files import sha256_of
from pnp_irib.images.io import read_picture
from pnp_irib.priors import PixelDenoiser, PixelPriorConfig, load_prior
from pnp_irib.train.checkpoint import latest_checkpoint, load_state
from pnp_irib.train.prior import PriorTrainConfig, _Session, load_prior_config, train_prior
from pnp_irib.train.run import Schedule, follow_average, learning_rate

COMMAND = [str(Path(sys.executable).with_name("pnp-irib")), "train-prior", "--threads", "1"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prior_file(tmp_path: Path, shared_dir: Path) -> Path:
    """A configuration of seconds, beside a folder of three photographs."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for path in sorted((shared_dir / "data" / "train").glob("*.webp"))[:3]:
        shutil.copy(path, folder)
    content: dict[str, Any] = {
        "seed": 3,
        "denoiser": {"widths": [8, 16]},
        "data": {"folder": "photographs", "crop": 32},
        "steps": 30,
        "batch": 4,
        "lr": 1e-3,
        "warmup": 2,
        "checkpoint_every": 1,
        "log_every": 1,
    }
    path = tmp_path / "prior.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_kill_and_resume_gives_the_same_weights(prior_file: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train_prior(load_prior_config(prior_file), whole, show_progress=False)
    process = subprocess.Popen([*COMMAND, str(prior_file), "--run", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while latest_checkpoint(killed) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = latest_checkpoint(killed)
    assert first is not None
    assert first.name != "step-0000030", "the run was over before it could be killed"
    with pytest.raises(ConfigError, match="--resume"):
        train_prior(load_prior_config(prior_file), killed, show_progress=False)
    done = subprocess.run(
        [*COMMAND, str(prior_file), "--run", str(killed), "--resume"], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(killed / "checkpoints" / "step-0000030")
    assert "resumed at step" in done.stderr
    assert "step 30/30" in done.stderr
    assert re.search(r"\d+ steps, [\d.]+ steps/s, peak memory [\d.]+ GiB", done.stderr)
    expected, found = (load_file(run / "denoiser" / "model.safetensors") for run in (whole, killed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    trained, resumed = (load_state(run / "checkpoints" / "step-0000030") for run in (whole, killed))
    assert all(torch.equal(value, resumed["model"][name]) for name, value in trained["model"].items())
    assert any(not torch.equal(value, trained["average"][name]) for name, value in trained["model"].items())


def test_two_processes_are_one_of_twice_the_batch(prior_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(prior_file.read_text()) | {"steps": 4, "checkpoint_every": 4}
    prior_file.write_text(yaml.safe_dump(content | {"batch": 2}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--", *COMMAND]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    run = ["--run", str(tmp_path / "both")]
    done = subprocess.run([*launch, str(prior_file), *run], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    prior_file.write_text(yaml.safe_dump(content))
    train_prior(load_prior_config(prior_file), tmp_path / "alone", show_progress=False)
    both, alone = (
        [event.value for event in EventAccumulator(str(tmp_path / name / "tensorboard")).Reload().Scalars("loss")]
        for name in ("both", "alone")
    )
    assert both == pytest.approx(alone, rel=1e-4)
    assert len(set(both)) == 4
    expected = load_file(tmp_path / "alone" / "denoiser" / "model.safetensors")
    for name, value in load_file(tmp_path / "both" / "denoiser" / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], atol=2e-4, rtol=0)


def test_a_run_says_what_it_comes_from(prior_file: Path, tmp_path: Path) -> None:
    config = load_prior_config(prior_file).model_copy(update={"steps": 6, "checkpoint_every": 4, "keep": 1})
    state = torch.get_rng_state()
    newest = train_prior(config, tmp_path / "run", show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == [newest.name] == ["step-0000006"]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(events.Scalars("loss")) == len(events.Scalars("lr")) == 6
    assert [event.step for event in events.Images("noisy_denoised_hq")] == [4, 6]
    facts = PixelDenoiser.from_pretrained(tmp_path / "run" / "denoiser").provenance
    assert facts.steps == 6
    assert facts.training_data == "3 pictures of the folder photographs"
    assert facts.sigmas == pytest.approx((0.01423, 1.5717), rel=1e-3)  # exp(-1.9 - 1.96 * 1.2), exp(-1.9 + 1.96 * 1.2)
    files = {file.name: file.sha256 for file in facts.files}
    assert files["training configuration"] == sha256_of(tmp_path / "run" / "config.yaml")
    assert files["training pictures"]
    term = load_prior(PixelPriorConfig(denoiser=str(newest), kind="sds"))
    assert term(torch.rand(1, 3, 20, 21), None, [torch.Generator().manual_seed(0)]).item() > 0


def error(denoiser: PixelDenoiser, pictures: Tensor, level: float) -> float:
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        clean = denoiser(pictures + level * noise, torch.full((len(pictures),), level))
    return float((clean - pictures).square().mean())


def test_a_run_learns_to_denoise_photographs(prior_file: Path, tmp_path: Path, shared_dir: Path) -> None:
    content = yaml.safe_load(prior_file.read_text())
    content["denoiser"] = {"widths": [16, 32]}
    content |= {"steps": 150, "batch": 8, "lr": 3e-3, "ema": 0.9, "warmup": 10, "checkpoint_every": 150}
    content["log_sigma"] = [-1.7, 0.5]
    prior_file.write_text(yaml.safe_dump(content))
    config = load_prior_config(prior_file)
    trained = PixelDenoiser.from_pretrained(train_prior(config, tmp_path / "run", show_progress=False))
    # Photographs that it never saw; a new denoiser knows the mean and the spread of pixels.
    paths = sorted((shared_dir / "data" / "dev").glob("kodak_*.webp"))[:6]
    pictures = torch.cat([read_picture(path).rgb[..., 100:148, 100:148] for path in paths])
    new = PixelDenoiser(config.denoiser)
    for level, share in ((0.1, 0.75), (0.2, 0.6), (0.5, 0.75)):
        assert error(trained, pictures, level) < share * error(new, pictures, level), level


def test_batches_depend_on_seed_step_and_number_alone(prior_file: Path) -> None:
    config = load_prior_config(prior_file)
    session = _Session(config, Accelerator())
    hq, sigma, noise = session.batch(7)
    assert hq.shape == noise.shape == (4, 3, 32, 32)
    assert all(torch.equal(a, b) for a, b in zip(session.batch(7), (hq, sigma, noise), strict=True))
    assert not torch.equal(session.batch(8)[0], hq)
    assert not torch.equal(session.batch(8)[1], sigma)
    session.config = config.model_copy(update={"seed": 4})
    assert not torch.equal(session.batch(7)[0], hq)
    # Two processes of two pictures see what one of four sees.
    session.config = config.model_copy(update={"batch": 2})
    for rank in (0, 1):
        session.accelerator = SimpleNamespace(num_processes=2, process_index=rank, device=torch.device("cpu"))
        for found, expected in zip(session.batch(7), (hq, sigma, noise), strict=True):
            assert torch.equal(found, expected[rank::2])


def test_sigmas_are_log_normal(prior_file: Path) -> None:
    config = load_prior_config(prior_file)
    session = _Session(config.model_copy(update={"batch": 300, "log_sigma": (-1.0, 0.5)}), Accelerator())
    _, sigma, noise = session.batch(0)
    assert sigma.log().mean().item() == pytest.approx(-1.0, abs=0.1)
    assert sigma.log().std().item() == pytest.approx(0.5, rel=0.15)
    assert noise.std().item() == pytest.approx(1, rel=0.01)


def test_learning_rate_and_average_by_hand() -> None:
    schedule: Schedule = SimpleNamespace(steps=110, lr=2.0, final_lr=0.5, warmup=10)
    assert [learning_rate(schedule, step) for step in (0, 9, 10, 60, 110)] == pytest.approx([0.2, 2.0, 2.0, 1.5, 1.0])
    average, trained = [torch.zeros(1)], [torch.ones(1)]
    follow_average(average, trained, 0, 0.99)
    assert average[0].item() == pytest.approx(0.9)  # 1 - 1 / 10
    follow_average(average, trained, 10**6, 0.5)
    assert average[0].item() == pytest.approx(0.95)


def test_max_hours_stops_with_a_checkpoint(prior_file: Path, tmp_path: Path) -> None:
    config = load_prior_config(prior_file)
    newest = train_prior(config, tmp_path / "run", max_hours=0, show_progress=False)
    assert newest.name == "step-0000001"
    assert not (tmp_path / "run" / "denoiser").exists()
    with pytest.raises(ConfigError, match="differs"):
        train_prior(config.model_copy(update={"seed": 4}), tmp_path / "run", resume=True, show_progress=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("steps: 30", "stepz: 30", "stepz: no such setting"),
        ("steps: 30", "steps: 0", "greater than 0"),
        ("lr: 0.001", "lr: .inf", "finite number"),
        ("seed: 3", "seed: 3\nlog_sigma: [-1, 9]", "within 0 to 3"),
        ("- 8\n", "- 9\n", "multiple of 8"),
        ("folder: photographs", "folder: $NO_SUCH_FOLDER/x", "environment variable that is not set"),
        ("seed: 3", "seed: [", "not valid YAML"),
    ],
)
def test_impossible_configurations(prior_file: Path, old: str, new: str, said: str) -> None:
    content = prior_file.read_text()
    assert old in content
    prior_file.write_text(content.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said) as caught:
        load_prior_config(prior_file)
    assert "\n" not in str(caught.value)


def test_the_recipe_is_valid(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_SHARED", str(shared_dir))
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "pixel-prior" / "prior.yaml"
    config = load_prior_config(recipe)
    assert config.data.folder == (shared_dir / "data" / "train").resolve()
    assert isinstance(config, PriorTrainConfig)


def test_mistakes_on_the_command_line_are_one_line(prior_file: Path, tmp_path: Path) -> None:
    prior_file.write_text(prior_file.read_text().replace("folder: photographs", "folder: elsewhere"))
    ran = subprocess.run(
        [*COMMAND, str(prior_file), "--run", str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "no pictures under" in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
