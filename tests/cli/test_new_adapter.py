"""``pnp-irib new-adapter``: what it writes installs, registers, passes its test, and restores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.run import Crop, pnp

BIN = Path(sys.executable).parent


def run(*command: str | Path, **variables: str) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | variables, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    done = pnp("new-adapter", "my-sharp-restorer", "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder / "pnp-irib-my-sharp-restorer"


def test_the_package_installs_registers_and_passes(package: Path, crop: Crop, tmp_path: Path) -> None:
    adapter = [package / "pnp_irib_my_sharp_restorer" / name for name in ("spec.py", "restorer.py")]
    assert sum(len(path.read_text().splitlines()) for path in adapter) <= 120
    site = tmp_path / "site"
    run(BIN / "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", site, package)
    where = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    listed = {spec["name"]: spec for spec in json.loads(run(BIN / "pnp-irib", "models", "--json", **where))}
    assert listed["my-sharp-restorer"]["title"] == "My sharp restorer"
    assert "1 passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", package / "tests", **where)
    crop(tmp_path / "in.png")
    options = ("-r", "my-sharp-restorer", "--json")
    outcome = json.loads(run(BIN / "pnp-irib", "restore", tmp_path / "in.png", "-o", tmp_path / "out.png", *options, **where))
    assert outcome["status"] == "restored"
    assert outcome["used"]["projector"].startswith("pixel-x4plus")
    done = subprocess.run(
        [BIN / "pnp-irib", "new-adapter", "my-sharp-restorer", "-o", tmp_path / "other"],
        capture_output=True,
        text=True,
        env=os.environ | where,
    )
    assert done.returncode == 2
    assert "a restorer named 'my-sharp-restorer' already" in done.stderr


@pytest.mark.slow  # mypy reads all of torch
def test_the_package_keeps_our_own_rules(package: Path) -> None:
    config = Path(__file__).parents[2] / "pyproject.toml"
    run(BIN / "ruff", "check", "--config", config, "--ignore", "I001,D", package)
    run(BIN / "ruff", "format", "--check", "--config", config, package)
    run(BIN / "mypy", "--strict", "--config-file", os.devnull, package / "pnp_irib_my_sharp_restorer", MYPYPATH=str(package))


def test_impossible_names_are_one_line(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, said in (
        (("My Restorer",), "lower-case words with hyphens"),
        (("osediff",), "a restorer named 'osediff' already"),
        (("realesrgan",), "a package pnp_irib_realesrgan already"),
        (("a" * 200,), "at most 48 letters"),
        (("my-sharp-restorer", "-o", package.parent), "exists; choose another name"),
    ):
        done = pnp("new-adapter", *arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
    assert list(tmp_path.iterdir()) == []
