from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pnp_irib.files import sha256_of
from pnp_irib.weights import cache_dir
from pnp_irib_realesrgan.restorer import RealESRGAN, load_realesr_animevideov3
from tests.adapters.realesrgan.files import same_weights


def cached_file(folder: Path) -> Path:
    (path,) = folder.glob("converted/realesr-animevideov3-*.safetensors")
    return path


def test_second_load_reads_the_cache(compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert same_weights(load_realesr_animevideov3(), compact)
    path = cached_file(tmp_path)
    # Another content under a record that agrees with it: only a load that reads the cache shows it.
    tensors = load_file(path)
    tensors["body.0.bias"] += 1
    save_file(tensors, path)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"sha256": sha256_of(path)}))
    again = load_realesr_animevideov3()
    assert torch.equal(again.network.state_dict()["body.0.bias"], compact.network.state_dict()["body.0.bias"] + 1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "no record", "record of another source"])
def test_damaged_cache_is_made_anew(compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path))
    load_realesr_animevideov3()
    path = cached_file(tmp_path)
    record = path.with_suffix(".json")
    whole, facts = path.read_bytes(), json.loads(record.read_text())
    if damage == "flip":
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 64]) + whole[-99:])
    elif damage == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "record":
        record.write_text("[1")
    elif damage == "no record":
        record.unlink()
    else:
        save_file({"other": torch.zeros(1)}, path)
        record.write_text(json.dumps(facts | {"source_sha256": "0" * 64, "sha256": sha256_of(path)}))
    assert same_weights(load_realesr_animevideov3(), compact)
    assert path.read_bytes() == whole
    assert json.loads(record.read_text()) == facts
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, record.name])  # nothing left over


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path / "file" / "inside"))
    assert same_weights(load_realesr_animevideov3(), compact)


def test_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PNP_IRIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "pnp_irib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "pnp_irib"
