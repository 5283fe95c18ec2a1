"""``pnp-irib bench`` as a command."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.run import Crop, files, pnp


def test_bench_prints_its_table_and_writes_its_report(crop: Crop, tmp_path: Path) -> None:
    for name in ("a.png", "deeper/b.png"):
        crop(tmp_path / "in" / name, 96)
    options = ("-r", "realesr-animevideov3", "--preset", "standard", "--seed", "1", "--seed", "2", "-o", tmp_path / "out")
    done = pnp("bench", "--data", tmp_path / "in", *options)
    assert done.returncode == 0, done.stderr
    assert "# realesr-animevideov3 on `standard`, x4" in done.stdout
    assert "2 pictures, seeds 1, 2" in done.stdout
    assert "| PSNR, dB | higher |" in done.stdout
    assert files(tmp_path / "out") == ["bench.json", "bench.md", "grid.png"]
    assert done.stdout.splitlines()[-3:] == [str(tmp_path / "out" / name) for name in ("bench.json", "bench.md", "grid.png")]
    report = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert [picture["name"] for picture in report["pictures"]] == ["a.png", "a.png", "deeper/b.png", "deeper/b.png"]


def test_bench_needs_pictures(tmp_path: Path) -> None:
    done = pnp("bench", "--data", tmp_path, "-o", tmp_path / "out")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "no pictures under" in done.stderr
