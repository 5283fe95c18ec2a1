"""What users get: the wheel, and the demonstration of a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from pnp_irib.images.io import read_picture

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def test_the_wheel_holds_code_types_and_data(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(call, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    bundled = "pnp_irib/projectors/bundled/pixel-x4plus"
    assert names >= {
        "pnp_irib/py.typed",
        "pnp_irib_realesrgan/py.typed",
        "pnp_irib/classifiers/imagenet_classes.txt",
        f"{bundled}/config.json",
        f"{bundled}/model.safetensors",
        f"{bundled}/README.md",
        "pnp_irib/templates/adapter/restorer.py.txt",
    }
    adapters = {path.name for path in (ROOT / "adapters").iterdir() if (path / "__init__.py").is_file()}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"pnp_irib", *adapters}
    # Everything in the packages that is under version control, and nothing else.
    tracked = subprocess.run(["git", "ls-files", "pnp_irib", "adapters"], cwd=ROOT, check=True, capture_output=True, text=True)
    expected = {name.removeprefix("adapters/") for name in tracked.stdout.splitlines() if name.count("/") > 0}
    packed = {name for name in names if ".dist-info/" not in name}
    assert packed == expected


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the demonstration prints, and the folder that it was started in."""
    folder = tmp_path_factory.mktemp("demo")
    call = [sys.executable, str(ROOT / "examples" / "demo.py")]
    done = subprocess.run(call, cwd=folder, check=True, capture_output=True, text=True, env=ENVIRONMENT)
    return done.stdout, folder


def test_the_demo_says_what_it_used_and_where_the_results_are(demo: tuple[str, Path]) -> None:
    said, folder = demo
    for part in (
        "restorer   realesrgan-x4plus",
        "projector  pixel-x4plus (bundled",
        "prompt",
        "look forward 1",
        "project",
        "restore",
    ):
        assert part in said
    for name, size in (("restored", (384, 384)), ("lq", (96, 96)), ("comparison", (384, 3 * 384 + 16))):
        path = Path("out") / f"colosseum-{name}.png"
        assert str(path) in said
        assert read_picture(folder / path).rgb.shape[-2:] == size


def test_the_picture_of_the_demo_is_degraded_as_stated(tmp_path: Path) -> None:
    images = ROOT / "examples" / "images"
    call = [str(Path(sys.executable).with_name("pnp-irib")), "degrade", str(images / "colosseum-original.webp")]
    subprocess.run([*call, "-o", str(tmp_path / "a.png"), "--seed", "1"], check=True, capture_output=True, env=ENVIRONMENT)
    again, shipped = read_picture(tmp_path / "a.png").rgb, read_picture(images / "colosseum.png").rgb
    torch.testing.assert_close(again, shipped, atol=2.5 / 255, rtol=0)  # rounding differs a little from CPU to CPU
