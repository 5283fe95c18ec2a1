"""Tags of RAM and DAPE on the command line: copies of their files, and pictures restored with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pnp_irib.cli.convert import run
from pnp_irib.errors import ConfigError, PnPIribError, WeightsError
from pnp_irib.prompts import RamTags
from tests.cli.run import Crop, files, pnp
from tests.prompts.ram.tiny import SIZES, Tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Tiny(SIZES["plain"]).write(tmp_path / "model")


def test_a_copy_reads_the_same_prompts(folder: Path, crop: Crop, tmp_path: Path) -> None:
    copy = tmp_path / "new" / "dape.safetensors"
    done = pnp("convert", folder, "-r", "dape", "-o", copy)
    assert (done.returncode, copy.is_file()) == (0, True), done.stderr
    picture = crop(tmp_path / "in.png")
    options = ("-r", "realesr-animevideov3", "--lfo", "1", "--device", "cpu", "--json")
    told = []
    for name, place in (("a", folder), ("b", copy)):
        done = pnp("restore", picture, "-o", tmp_path / f"{name}.png", *options, "--extractor", f"dape:{place}")
        assert done.returncode == 0, done.stderr
        told.append(json.loads(done.stdout))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert told[0]["prompt"] == told[1]["prompt"]
    assert told[0]["prompt"].startswith("thing ")
    assert told[0]["used"]["lfo"] == 1


def test_what_is_wrong_is_one_line(folder: Path, crop: Crop, tmp_path: Path) -> None:
    picture = crop(tmp_path / "in.png")
    (folder / "DAPE.pth").write_bytes((folder / "DAPE.pth").read_bytes()[:99])
    for extractor, said in (("dape:nowhere", "nothing is at "), (f"dape:{folder}", "download complete")):
        options = ("-r", "realesr-animevideov3", "--extractor", extractor, "--device", "cpu")
        done = pnp("restore", picture, "-o", tmp_path / "out.png", *options)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
    assert not (tmp_path / "out.png").exists()
    (folder / "DAPE.pth").unlink()
    done = pnp("convert", folder, "-r", "dape", "-o", tmp_path / "copy.safetensors")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
    assert "github.com/cswry/SeeSR" in done.stderr


def test_conversions(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    plain, half = out / "ram.safetensors", out / "half.safetensors"
    run(folder, plain, "ram", None, overwrite=False)
    run(folder, half, "ram", "float16", overwrite=False)
    assert half.stat().st_size < plain.stat().st_size
    assert str(plain) in capsys.readouterr().err
    assert RamTags(half, lora=False)(torch.rand(1, 3, 8, 8))
    before = plain.read_bytes()
    run(half, plain, "ram", "float32", overwrite=True)  # a copy may be copied
    assert plain.read_bytes() != before
    wrong: list[tuple[tuple[Path, Path, str, str | None], type[PnPIribError], str]] = [
        ((folder, out / "a.safetensors", "dape", "bfloat16"), ConfigError, "float32 or float16"),
        ((folder, out / "a.safetensors", "dape", "int8"), ConfigError, "float32 or float16"),
        ((folder, out / "a.safetensors", "realesr-animevideov3", "float16"), ConfigError, "dape and ram"),
        ((folder, out / "a.pth", "dape", None), ConfigError, "safetensors"),
        ((folder, plain, "dape", None), ConfigError, "--overwrite"),
        ((plain, out / "a.safetensors", "dape", None), WeightsError, "plain RAM"),
        ((tmp_path / "absent", out / "a.safetensors", "dape", None), WeightsError, "nothing is at"),
        ((folder / "DAPE.pth", out / "a.safetensors", "dape", None), WeightsError, "folder that holds them"),
    ]
    for arguments, error, said in wrong:
        with pytest.raises(error, match=said):
            run(*arguments, overwrite=False)
    for source, said in ((plain, "the file itself"), (tmp_path / "absent", "nothing is at")):
        with pytest.raises(PnPIribError, match=said):
            run(source, plain, "ram", None, overwrite=True)
    assert files(out) == ["half.safetensors", "ram.safetensors"]
