from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.files import write_atomically
from pnp_irib.spec import WeightsFile
from pnp_irib.weights import (
    cached_conversion,
    find_place,
    load_checkpoint,
    load_strictly,
    package_file,
    resolve_file,
)


def test_package_files() -> None:
    assert package_file("torch", "torch/version.py") is not None
    assert package_file("torch", "torch/no_such_file") is None
    assert package_file("torch", "torch") is None  # a folder
    assert package_file("no-such-distribution", "x") is None


def test_the_first_place_that_is_here_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    places = ("package:no-such/x", "hf-hub:owner/repo/in/ner.bin", "package:torch/torch/version.py", "https://x.org/y")
    found = find_place(WeightsFile(name="x", places=places))
    assert found is not None
    assert found[0] == places[2]
    # The same file in the Hub's cache comes first.
    snapshot = tmp_path / "models--owner--repo" / "snapshots" / "abc"
    (snapshot / "in").mkdir(parents=True)
    (snapshot / "in" / "ner.bin").write_bytes(b"1")
    (tmp_path / "models--owner--repo" / "refs").mkdir()
    (tmp_path / "models--owner--repo" / "refs" / "main").write_text("abc")
    found = find_place(WeightsFile(name="x", places=places))
    assert found is not None
    assert found[1].read_bytes() == b"1"
    assert find_place(WeightsFile(name="x", places=places[-1:])) is None
    assert find_place(WeightsFile(name="x", places=())) is None


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    path = tmp_path / "w.bin"
    path.write_bytes(b"")
    assert resolve_file(path) == resolve_file(str(path)) == resolve_file(f"local-dir:{path}") == path
    for absent in (tmp_path, tmp_path / "absent", "~/no such file"):
        with pytest.raises(WeightsError, match=r"no weight file at.*Give a path, or hf-hub:owner/repo/file"):
            resolve_file(absent)
    with pytest.raises(WeightsError, match="names no file; expected hf-hub:owner/repo/file"):
        resolve_file("hf-hub:owner/repo")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"hf-hub:owner/repo@v1 is not complete in the Hub's cache") as caught:
        resolve_file("hf-hub:owner/repo/file.bin@v1")
    assert "\n" not in str(caught.value)


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_atomically(target, lambda path: Path(path).write_text("old"))
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600

    def fail(path: str) -> None:
        Path(path).write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_conversion_is_made_once_for_each_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path / "cache"))
    calls: list[float] = []

    def convert(value: float) -> dict[str, Tensor]:
        calls.append(value)
        return {"a": torch.full((2, 3), value).T}  # not contiguous

    source = tmp_path / "s.bin"
    source.write_bytes(b"one")
    first = cached_conversion(source, "net", lambda: convert(1))
    again = cached_conversion(source, "net", lambda: convert(2))
    assert torch.equal(first["a"], again["a"])
    source.write_bytes(b"two")
    assert cached_conversion(source, "net", lambda: convert(3))["a"].unique().tolist() == [3]
    assert cached_conversion(source, "other", lambda: convert(4))["a"].unique().tolist() == [4]
    assert calls == [1, 3, 4]
    for path in (tmp_path / "cache" / "converted").glob("*.safetensors"):
        assert load_file(path)["a"].shape == (3, 2)


def test_strict_loading_names_what_is_wrong() -> None:
    module = nn.Linear(2, 3)
    good = {key: value.clone() for key, value in module.state_dict().items()}
    before = {key: value.clone() for key, value in good.items()}
    for wrong, text in (
        ({"weight": good["weight"]}, "missing bias"),
        (good | {"extra": torch.zeros(1)}, "unexpected extra"),
        (good | {"bias": torch.zeros(4)}, r"bias has the shape \(4,\), expected \(3,\)"),
        ({f"k{i}": torch.zeros(1) for i in range(9)}, r"missing bias, weight; unexpected k0, k1, k2 and 6 more"),
    ):
        with pytest.raises(WeightsError, match=rf"^here does not fit Linear: .*{text}"):
            load_strictly(module, wrong, source="here")
        assert all(torch.equal(module.state_dict()[key], value) for key, value in before.items())
    load_strictly(module, {key: (value + 1).double() for key, value in good.items()}, source="here")
    assert module.weight.dtype == torch.float32
    torch.testing.assert_close(module.bias.detach(), before["bias"] + 1)


def test_missing_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weight file at"):
        load_checkpoint(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    "content",
    [{0: torch.ones(2)}, {"a": torch.ones(2), 1: torch.ones(2)}, {"state_dict": {0: torch.ones(2)}}, torch.ones(2), {}],
)
def test_what_has_no_names_is_no_checkpoint(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "numbers.pth")
    with pytest.raises(WeightsError, match=r"numbers\.pth is not a dictionary of tensors by name"):
        load_checkpoint(tmp_path / "numbers.pth")
