"""Reading the published files and copies of them, and refusing what is none."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.files import sha256_of
from pnp_irib.prompts import RamTags
from pnp_irib.prompts.ram.model import RamModel
from pnp_irib.prompts.ram.network import RamOutput
from pnp_irib.ram_files import DAPE, RAM
from tests.prompts.ram.tiny import SIZES, Tiny

PICTURES = torch.rand(2, 3, 30, 40, generator=torch.Generator().manual_seed(2))


def logits(model: RamModel) -> torch.Tensor:
    with torch.no_grad():
        seen: RamOutput = model.network(PICTURES)
    return seen.logits


def rewrite(path: Path, change: Callable[[dict[str, Any]], object], part: str | None = "model") -> None:
    content = torch.load(path, weights_only=True)
    change(content[part] if part else content)
    torch.save(content, path)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_copy_is_the_same(folder: Path, tmp_path: Path, lora: bool, dtype: torch.dtype) -> None:
    model = RamModel.read(folder, lora=lora)
    path = tmp_path / "new" / "copy.safetensors"
    model.save(path, dtype=dtype)
    again = RamModel.read(path, lora=lora)
    assert again.network.architecture == model.network.architecture
    assert again.labels.names == model.labels.names
    assert torch.equal(again.labels.thresholds, model.labels.thresholds)
    if dtype is torch.float32:
        assert torch.equal(logits(again), logits(model))
    torch.testing.assert_close(logits(again), logits(model), atol=5e-2, rtol=0)
    tensors = load_file(path)
    assert {value.dtype for name, value in tensors.items() if name != "thresholds"} == {dtype}
    assert set(tensors) == {*model.network.state_dict(), "thresholds"}  # and nothing of the language models
    names = [*(["DAPE.pth"] if lora else []), "ram_swin_large_14m.pth", "ram_tag_list.txt", "ram_tag_list_threshold.txt"]
    assert sorted(source.name for source in again.sources) == names
    assert {source.name: source.sha256 for source in again.sources}[RAM.name] == sha256_of(folder / RAM.name)
    again.save(tmp_path / "second.safetensors", dtype=dtype)
    assert RamModel.read(tmp_path / "second.safetensors", lora=lora).sources == again.sources
    if dtype is torch.float32:
        assert (tmp_path / "second.safetensors").read_bytes() == path.read_bytes()


def test_a_copy_that_float16_cannot_hold(folder: Path, tmp_path: Path) -> None:
    rewrite(folder / RAM.name, lambda weights: weights["fc.bias"].fill_(1e6))
    model = RamModel.read(folder)
    with pytest.raises(ConfigError, match=r"fc\.bias.*float32"):
        model.save(tmp_path / "copy.safetensors", dtype=torch.float16)
    with pytest.raises(ConfigError, match="float32 or float16"):
        model.save(tmp_path / "copy.safetensors", dtype=torch.bfloat16)
    assert not (tmp_path / "copy.safetensors").exists()


def test_both_spellings_of_the_head(folder: Path) -> None:
    expected = logits(RamModel.read(folder))

    def respell(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[name.replace("tagging_head", "vision_multi")] = weights.pop(name)

    rewrite(folder / RAM.name, respell)
    assert torch.equal(logits(RamModel.read(folder)), expected)
    rewrite(folder / DAPE.name, respell, part=None)
    assert torch.equal(logits(RamModel.read(folder)), expected)
    rewrite(
        folder / RAM.name, lambda weights: weights.update({"tagging_head.encoder.layer.0.output.dense.bias": torch.ones(8)})
    )
    with pytest.raises(WeightsError, match="twice"):
        RamModel.read(folder)


def test_half_precision_and_older_formats_are_read(folder: Path) -> None:
    expected = logits(RamModel.read(folder))
    content = torch.load(folder / RAM.name, weights_only=True)
    torch.save(content, folder / RAM.name, _use_new_zipfile_serialization=False)
    assert torch.equal(logits(RamModel.read(folder)), expected)
    halved = {name: value.half() if value.is_floating_point() else value for name, value in content["model"].items()}
    torch.save({"model": halved}, folder / RAM.name)
    model = RamModel.read(folder)
    assert {value.dtype for value in model.network.parameters()} == {torch.float32}
    torch.testing.assert_close(logits(model), expected, atol=5e-2, rtol=0)


def test_the_file_is_free_once_it_was_read(folder: Path) -> None:
    model = RamModel.read(folder, lora=False)
    expected = logits(model)
    with (folder / RAM.name).open("r+b") as file:
        file.write(b"\0" * (folder / RAM.name).stat().st_size)
    assert torch.equal(logits(model), expected)


def test_other_layouts_of_the_folder(folder: Path) -> None:
    expected = logits(RamModel.read(folder))
    for path in list((folder / "data").iterdir()):
        path.rename(folder / path.name)
    text = (folder / "ram_tag_list.txt").read_text()
    (folder / "ram_tag_list.txt").write_bytes(("\ufeff" + text).replace("\n", "\r\n").encode())  # as some editors leave it
    model = RamModel.read(folder)
    assert torch.equal(logits(model), expected)
    assert model.labels.names == tuple(text.split("\n"))


def test_without_configs_the_published_number_of_heads_is_taken(folder: Path, tmp_path: Path) -> None:
    expected = logits(RamModel.read(folder))
    shutil.rmtree(folder / "configs")
    assert torch.equal(logits(RamModel.read(folder)), expected)
    config = {"hidden_act": "gelu", "num_attention_heads": 2}
    (folder / "configs").mkdir()
    (folder / "configs" / "q2l_config.json").write_text(json.dumps(config))
    assert RamModel.read(folder).network.architecture.head_heads == 2
    for wrong, said in (
        ({"num_attention_heads": 3}, "3 heads do not divide"),
        ({"num_attention_heads": "x"}, "whole number"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps"),
        ({"hidden_size": 9}, "hidden_size=9"),
    ):
        (folder / "configs" / "q2l_config.json").write_text(json.dumps({**config, **wrong}))
        with pytest.raises(WeightsError, match=said):
            RamModel.read(folder)
    (folder / "configs" / "q2l_config.json").write_text("{")
    with pytest.raises(WeightsError, match="JSON"):
        RamModel.read(folder)


def test_without_masks_the_published_size_is_taken(tmp_path: Path) -> None:
    tiny = Tiny(SIZES["plain"])
    folder = tiny.write(tmp_path / "model")
    rewrite(folder / RAM.name, lambda weights: [weights.pop(name) for name in tiny.masks])
    assert RamModel.read(folder).network.architecture.image_size == 384


@pytest.mark.parametrize("name", ["ram_swin_large_14m.pth", "DAPE.pth", "ram_tag_list.txt", "ram_tag_list_threshold.txt"])
def test_a_missing_file_is_told_with_its_place(folder: Path, name: str) -> None:
    next(folder.rglob(name)).unlink()
    with pytest.raises(WeightsError, match=rf"no {name}.*found at https://"):
        RamModel.read(folder)
    with pytest.raises(WeightsError, match=rf"no {name}.*found at https://"):
        RamTags(folder)  # at once
    if name == "DAPE.pth":
        assert not RamModel.read(folder, lora=False).lora
        with pytest.raises(WeightsError, match=f"ram:{folder}"):
            RamModel.read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: w.pop("image_proj.bias"), r"missing image_proj\.bias"),
        (lambda w: w.pop("label_embed"), "label_embed is missing"),
        (
            lambda w: w.pop("visual_encoder.layers.1.blocks.1.norm2.weight"),
            r"missing visual_encoder\.layers\.1\.blocks\.1\.norm2",
        ),
        (lambda w: w.pop("visual_encoder.layers.0.blocks.0.attn.relative_position_bias_table"), "bias_table is missing"),
        (lambda w: w.update({"fc.more": torch.ones(2)}), r"unexpected fc\.more"),
        (lambda w: w.update({"visual_encoder.absolute_pos_embed": torch.ones(2)}), r"visual_encoder\.absolute_pos_embed"),
        (lambda w: w.update({"fc.bias": torch.ones(2)}), r"fc\.bias has the shape \(2,\)"),
        (lambda w: w.update({"label_embed": torch.ones(2)}), "2 dimensions"),
        (lambda w: w.update({"label_embed": torch.ones(9, 6)}), "7 tags.*9 labels"),
        (
            lambda w: w.update({"visual_encoder.layers.0.blocks.1.attn_mask": torch.ones(9, 16, 16)}),
            "different sizes|multiple",
        ),
        (lambda w: w.update(step=3), "no dictionary of tensors"),
        (lambda w: w.clear(), "no dictionary of tensors"),
    ],
)
def test_another_ram_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    rewrite(folder / RAM.name, change)
    with pytest.raises(WeightsError, match=said):
        RamModel.read(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lora: lora.pop("visual_encoder.layers.0.blocks.0.attn.qkv.lora_A"), "lacks visual_encoder"),
        (lambda lora: lora.update({"visual_encoder.layers.0.blocks.0.attn.proj.lora_A": torch.ones(2, 8)}), "for no layer"),
        (lambda lora: lora.update({"visual_encoder.layers.0.blocks.0.attn.qkv.lora_B": torch.ones(16, 3)}), "shapes"),
        (
            lambda lora: lora.update({"tagging_head.encoder.layer.0.crossattention.self.key.lora_A": torch.ones(3, 9)}),
            "shapes",
        ),
    ],
)
def test_another_lora_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], said: str) -> None:
    rewrite(folder / DAPE.name, change, part=None)
    with pytest.raises(WeightsError, match=said):
        RamModel.read(folder)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ram_tag_list.txt", "a\nb\nc", "3 tags.*7 thresholds"),
        ("ram_tag_list.txt", "a\n\nb\nc\nd\ne\nf\n", "line 2 is empty"),
        ("ram_tag_list_threshold.txt", "0.5\n" * 6, "7 tags.*6 thresholds"),
        ("ram_tag_list_threshold.txt", "0.5\n" * 6 + "1.5", r"line 7 is '1\.5'"),
        ("ram_tag_list_threshold.txt", "0.5\n" * 6 + "nan", "line 7 is 'nan'"),
        ("ram_tag_list_threshold.txt", "<html>\n" * 7, "line 1"),
    ],
)
def test_wrong_lists_are_refused(folder: Path, name: str, text: str, said: str) -> None:
    (folder / "data" / name).write_text(text)
    with pytest.raises(WeightsError, match=said):
        RamModel.read(folder)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (eval, ("__import__('pathlib').Path('ran').touch()",))


@pytest.mark.parametrize("name", [RAM.name, DAPE.name])
def test_damaged_files_and_such_that_hold_code_are_refused(
    folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = folder / name
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(WeightsError, match="download complete"):
        RamModel.read(folder)
    torch.save({"model": Evil()}, path)
    with pytest.raises(WeightsError, match="could run code"):
        RamModel.read(folder)
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(WeightsError, match=name):
        RamModel.read(folder)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_copy_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "copy.safetensors"
    RamModel.read(folder).save(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()["pnp_irib.ram"]
    tensors = load_file(path)

    def write(text: str | None = header, without: str = "", **changed: Any) -> Path:
        target = tmp_path / "changed.safetensors"
        kept = {name: value for name, value in tensors.items() if name != without}
        save_file({**kept, **changed}, target, metadata={} if text is None else {"pnp_irib.ram": text})
        return target

    facts = json.loads(header)
    sizes = facts["architecture"]
    cases: list[tuple[Callable[[], Path], str]] = [
        (lambda: write(None), "no copy of RAM.*pnp-irib convert"),
        (lambda: write("[]"), "header is not valid"),
        (lambda: write(json.dumps({**facts, "format": 2})), "format"),
        (lambda: write(json.dumps({**facts, "tags": facts["tags"][1:]})), "6 tags and 7 thresholds"),
        (lambda: write(json.dumps({**facts, "architecture": {**sizes, "window": 3}})), "multiple of the window"),
        (lambda: write(json.dumps({**facts, "architecture": {**sizes, "labels": 2**30}})), "labels"),
        (lambda: write(json.dumps({**facts, "architecture": {**sizes, "labels": 8}})), "label_embed has the shape"),
        (lambda: write(more=torch.ones(1)), "unexpected more"),
        (lambda: write(without="thresholds"), "holds no thresholds"),
        (lambda: path.rename(tmp_path / "copy.pth"), r"no \.safetensors file"),
    ]
    for made, said in cases:
        with pytest.raises(WeightsError, match=said):
            RamModel.read(made())
    (tmp_path / "copy.pth").rename(path)
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(WeightsError, match="download complete"):
        RamModel.read(path)


def test_a_copy_of_the_other_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    dape, plain = tmp_path / "dape.safetensors", tmp_path / "ram.safetensors"
    RamModel.read(folder).save(dape)
    RamModel.read(folder, lora=False).save(plain)
    with pytest.raises(WeightsError, match=f"dape:{dape}"):
        RamTags(dape, lora=False)
    with pytest.raises(WeightsError, match=f"ram:{plain}"):
        RamTags(plain)
