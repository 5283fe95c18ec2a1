"""``pnp-irib convert``, and restoring with what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pnp_irib_realesrgan.restorer import load_realesr_animevideov3
from tests.cli.run import Crop, files, pnp
from tests.golden import golden_folder, missing


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """An animevideov3 as its authors publish it."""
    network = load_realesr_animevideov3().network
    torch.save({"params": network.state_dict()}, tmp_path / "published.pth")
    return tmp_path / "published.pth"


def test_a_copy_restores_like_the_published_file(published: Path, crop: Crop, tmp_path: Path) -> None:
    copy = tmp_path / "new" / "copy.safetensors"
    done = pnp("convert", published, "-r", "realesr-animevideov3", "-o", copy)
    assert (done.returncode, copy.is_file()) == (0, True), done.stderr
    picture = crop(tmp_path / "in.png")
    for name, weights in (("a", published), ("b", copy)):
        options = ("-r", "realesr-animevideov3", "-p", "none", "-O", f"weights={weights}")
        assert pnp("restore", picture, "-o", tmp_path / f"{name}.png", *options).returncode == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_copy_is_never_half_written_nor_over_something(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(published.read_bytes()[:5000])
    existing = tmp_path / "existing.safetensors"
    existing.write_bytes(b"mine")
    page = tmp_path / "page.pkl"
    page.write_bytes(b"<!DOCTYPE html><html>")
    (out / "folder.safetensors").mkdir()
    for arguments, said in (
        ((damaged, "-r", "realesr-animevideov3", "-o", out / "a.safetensors"), "damaged.pth"),
        ((published, "-r", "realesrgan-x4plus", "-o", out / "a.safetensors"), "expected 23"),
        ((published, "-r", "osediff", "-o", out / "a.safetensors"), "no checkpoint of OSEDiff"),
        ((published, "-r", "realesr-animevideov3", "-o", out / "a.pth"), ".safetensors"),
        ((published, "-r", "realesr-animevideov3", "-o", existing), "--overwrite"),
        ((published, "-r", "realesr-animevideov3", "-o", out / "folder.safetensors", "--overwrite"), "is a folder"),
        ((published, "-r", "realesr-animevideov3", "-o", existing / "a.safetensors"), "existing.safetensors"),
        ((page, "-r", "osediff", "-o", out / "new" / "a.safetensors"), "no file of torch"),
        ((damaged, "-r", "osediff", "-o", out / "new" / "a.safetensors"), "download complete"),
        ((tmp_path / "absent.pth", "-r", "realesr-animevideov3", "-o", out / "a.safetensors"), "absent.pth"),
        ((published, "-r", "realesr-animevideo", "-o", out / "a.safetensors"), "realesr-animevideov3"),
    ):
        done = pnp("convert", *arguments)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in out.rglob("*")] == ["folder.safetensors"]
    assert existing.read_bytes() == b"mine"
    assert pnp("convert", published, "-r", "realesr-animevideov3", "-o", existing, "--overwrite").returncode == 0
    assert len(load_file(existing)) > 10


def test_options_of_the_restorer(crop: Crop, tmp_path: Path) -> None:
    model = golden_folder("osediff") / "model"
    if not model.is_dir():
        missing("osediff")
    picture = crop(tmp_path / "in.png")
    where = ("-O", f"base={model / 'sd21base'}", "-O", f"checkpoint={model / 'osediff.pkl'}")
    done = pnp("restore", picture, "-o", tmp_path / "out.png", "-r", "osediff", "-p", "none", *where, "-O", "process_size=64")
    assert (done.returncode, files(tmp_path)) == (0, ["in.png", "out.png"]), done.stderr
    for wrong, said in (
        ("process_size", "NAME=VALUE"),
        ("no_such=1", "no_such"),
        ("compat=x", "upstream"),
        ("dtype=bfloat16", "--dtype"),
    ):
        done = pnp("restore", picture, "-o", tmp_path / "out2.png", "-r", "osediff", *where, "-O", wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr
        assert said in done.stderr
