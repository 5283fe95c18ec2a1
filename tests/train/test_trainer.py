"""Training runs: they learn, survive being killed, and leave everything else alone."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pnp_irib import load_projector, load_restorer, wrap
from pnp_irib.classifiers import weight_file
from pnp_irib.errors import ConfigError
from pnp_irib.files import sha256_of
from pnp_irib.train import load_config, train
from pnp_irib.train.checkpoint import latest_checkpoint
from pnp_irib.train.data import Pictures, make_batch
from pnp_irib.train.session import Session
from pnp_irib.weights import find_place
from pnp_irib_realesrgan.spec import ANIME_VIDEO
from tests.hub.server import HubServer

COMMAND = [str(Path(sys.executable).with_name("pnp-irib")), "train", "--threads", "1"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_kill_and_resume_gives_the_same_trajectory(config_file: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    done = subprocess.run([*COMMAND, str(config_file), "--run", str(whole)], check=True, capture_output=True, text=True)
    assert re.search(r"step 12/12  [\d.]+ steps/s  0:00:00 left  total [\d.]+ lq ", done.stderr)

    killed = tmp_path / "killed"
    # Killed as soon as the first checkpoint is there; a hundred times the steps, so that it cannot be over before.
    process = subprocess.Popen([*COMMAND, str(config_file), "--run", str(killed)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while latest_checkpoint(killed) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = latest_checkpoint(killed)
    assert first is not None
    assert first.name != "step-0000012", "the run was over before it could be killed"

    subprocess.run([*COMMAND, str(config_file), "--run", str(killed), "--resume"], check=True, capture_output=True)
    expected, found = weights(whole / "projector"), weights(killed / "projector")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name


def test_a_run_leaves_everything_else_alone_and_tells_where_it_came_from(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file).model_copy(update={"steps": 40, "checkpoint_every": 40})
    state = torch.get_rng_state()
    restorer = load_restorer("realesr-animevideov3", dtype="float32")
    before = {k: v.clone() for k, v in restorer.network.state_dict().items()}  # type: ignore[attr-defined]
    newest = train(config, tmp_path / "run", show_progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in restorer.network.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(value, before[key])

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(events.Scalars("loss/total")) == 40
    assert {"loss/lq", "loss/hq", "loss/hq_perceptual", "loss/lq_perceptual", "loss/gate"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"]

    projector = load_projector(f"local-dir:{tmp_path / 'run' / 'projector'}")
    assert projector.provenance.steps == 40
    assert projector.provenance.restorer == "realesrgan-x4plus"
    assert projector.provenance.surrogate == "realesr-animevideov3"
    assert [p.name for p in projector.provenance.elq_profiles] == ["extreme", "light"]
    files = {f.name: f.sha256 for f in projector.provenance.files}
    assert files["training configuration"] == sha256_of(tmp_path / "run" / "config.yaml")
    assert files["training pictures"]
    assert load_config(tmp_path / "run" / "config.yaml") == config  # it can be run again from there
    for path in (weight_file("lite0"), find_place(ANIME_VIDEO.weights[0])[1]):  # type: ignore[index]
        assert files[path.name] == sha256_of(path)
    assert newest.name == "step-0000040"
    robust = wrap("realesr-animevideov3", projector=projector)
    assert not torch.equal(robust.project(torch.full((1, 3, 9, 9), 0.5)), torch.full((1, 3, 9, 9), 0.5))


def test_a_run_learns(config_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config_file.read_text())
    content |= {
        "objective": {"lq": 1.0, "gate": 0.3},
        "steps": 250,
        "batch": 8,
        "lr": 3e-3,
        "ema": 0.9,
        "checkpoint_every": 250,
    }
    content["mixture"] = [{"profile": "extreme", "share": 0.6, "gate": 1}, {"profile": "light", "share": 0.4, "gate": 0}]
    config_file.write_text(yaml.safe_dump(content))
    config = load_config(config_file)
    projector = load_projector(f"local-dir:{train(config, tmp_path / 'run', show_progress=False)}")
    pictures = Pictures(config.data.folder, smallest=64)
    before, after = 0.0, 0.0
    with torch.no_grad():
        for step in range(1000, 1010):  # batches that training never saw
            batch = make_batch(pictures, config, step)
            before += (batch.elq - batch.reference).abs().mean().item()
            after += (projector.project(batch.elq) - batch.reference).abs().mean().item()
    assert after < 0.97 * before


def test_max_hours_stops_with_a_checkpoint(config_file: Path, tmp_path: Path) -> None:
    newest = train(load_config(config_file), tmp_path / "run", max_hours=0, show_progress=False)
    assert newest.name == "step-0000001"
    assert not (tmp_path / "run" / "projector").exists()


def test_a_run_directory_is_not_reused_by_accident(config_file: Path, tmp_path: Path) -> None:
    config = load_config(config_file)
    train(config, tmp_path / "run", max_hours=0, show_progress=False)
    with pytest.raises(ConfigError, match="--resume"):
        train(config, tmp_path / "run", show_progress=False)
    with pytest.raises(ConfigError, match="differs"):
        train(config.model_copy(update={"seed": 4}), tmp_path / "run", resume=True, show_progress=False)


def test_starts_from_another_projector(config_file: Path, tmp_path: Path) -> None:
    first = train(load_config(config_file), tmp_path / "first", show_progress=False)
    config = load_config(config_file).model_copy(update={"init": str(first), "lr": 1e-12})
    second = train(config, tmp_path / "second", show_progress=False)
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value, atol=1e-6, rtol=1e-5)
    facts = load_projector(f"local-dir:{second}").provenance
    assert facts.steps == 24
    assert sha256_of(first / "model.safetensors") in [f.sha256 for f in facts.files if f.name == "initial projector"]


def test_starts_from_a_projector_of_the_hub(config_file: Path, hub: HubServer) -> None:
    start = load_projector("pixel-x4plus")
    start.push_to_hub("owner/start")
    config_file.write_text(
        yaml.safe_dump(yaml.safe_load(config_file.read_text()) | {"init": "hf-hub:owner/start", "projector": None})
    )
    running = Session(load_config(config_file), Accelerator())
    assert all(torch.equal(value, running.projector.state_dict()[name]) for name, value in start.state_dict().items())
    recorded = {file.name: file.sha256 for file in running.provenance.files}
    assert recorded["initial projector"] == start.origin.hash_of("model.safetensors")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"hq_pictures": 99}, "hq_pictures=99 exceeds batch=4"),
        ({"data": {"folder": "photographs", "crop": 66}}, "use 64"),
        ({"mixture": [{"profile": "extrem", "share": 1}]}, "extreme"),
    ],
)
def test_wrong_configurations_are_one_line(config_file: Path, change: dict[str, object], message: str) -> None:
    content = yaml.safe_load(config_file.read_text()) | change
    config_file.write_text(yaml.safe_dump(content))
    ran = subprocess.run([*COMMAND, str(config_file), "--run", "never"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ran.stderr


def test_pictures_that_are_too_small_are_named(config_file: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(config_file.read_text())
    content["data"]["crop"] = 512
    config_file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="smaller than the crop of 512"):
        train(load_config(config_file), tmp_path / "run", show_progress=False)


def test_a_first_mistake_leaves_no_run_behind(config_file: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    right = config_file.read_text()
    config_file.write_text(right.replace("folder: photographs", "folder: elsewhere"))
    with pytest.raises(ConfigError, match="no pictures under"):
        train(load_config(config_file), run, show_progress=False)
    config_file.write_text(right)
    config = load_config(config_file).model_copy(update={"steps": 2})
    newest = train(config, run, show_progress=False)
    # What a kill between the last checkpoint and the export leaves is made good, and the answer is the same.
    shutil.rmtree(run / "projector")
    assert train(config, run, resume=True, show_progress=False) == newest
    assert weights(run / "projector").keys() == weights(newest).keys()
    (run / "config.yaml").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        train(config, run, resume=True, show_progress=False)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("lq: 1.0", "lq: .inf", "finite number"),
        ("share: 0.5", "share: .inf", "finite number"),
        ("seed: 3", "seed: 99999999999999999999", "less than 9223372036854775808"),
        ("gate: 0.1", "gate: 0.1\n  tau: 1e9", "less than or equal to 64"),
        ("gate: 0.1", "typo: 1", "typo: no such setting"),
        ("  hq: 0.5\n  hq_perceptual: 0.05\n  lq: 1.0\n  lq_perceptual: 0.05", "  lq: 0", "nothing to learn"),
    ],
)
def test_impossible_configurations(config_file: Path, old: str, new: str, said: str) -> None:
    content = config_file.read_text()
    assert old in content
    config_file.write_text(content.replace(old, new, 1))
    with pytest.raises(ConfigError, match=said):
        load_config(config_file)


def test_hidden_files_and_folders_are_no_pictures(config_file: Path) -> None:
    folder = config_file.parent / "photographs"
    (folder / "._a.png").write_bytes(b"what some systems leave behind")
    (folder / "d.png").mkdir()
    assert len(Pictures(folder, smallest=64)) == 3
