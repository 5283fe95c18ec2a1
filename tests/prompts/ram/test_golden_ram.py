"""Every recorded case of the published RAM and DAPE."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.prompts import RamTags
from pnp_irib.prompts.ram.network import RamNetwork
from tests.golden import Case, cases_of, check_recorded, golden_folder, missing

MODEL = golden_folder("dape") / "model"
Outputs = dict[str, Any]
OTHERS = ("max_abs_difference_logits", "max_abs_difference_embedding", "smallest_margin_to_threshold")  # of the published code


@functools.cache
def extractor(*, lora: bool = True) -> RamTags:
    return RamTags(MODEL, lora=lora)


def network(*, lora: bool = True) -> RamNetwork:
    return extractor(lora=lora).network


def pictures(eight: Tensor) -> Tensor:
    """(H, W, 3) in 8 bits to (1, 3, H, W)."""
    return eight.permute(2, 0, 1)[None].float() / 255


def seen_by(net: RamNetwork, pixels: Tensor) -> tuple[Tensor, Tensor, Outputs]:
    """Embedding, logits, and the outputs of stages and layers on the way."""
    seen: Outputs = {}
    watched = {"patch_embed": net.visual_encoder.patch_embed, "features": net.visual_encoder}
    watched |= {f"stage_{i}": stage for i, stage in enumerate(net.visual_encoder.layers)}
    watched |= {f"head_layer_{i}": layer for i, layer in enumerate(net.tagging_head.encoder.layer)}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _given, out: seen.__setitem__(name, out)

    hooks = [module.register_forward_hook(keep(name)) for name, module in watched.items()]
    with torch.no_grad():
        embedding = net.encode(pixels)
        logits = net.classify(embedding)
    for hook in hooks:
        hook.remove()
    return embedding, logits, seen


def checkpoint_loading(case: Case) -> Outputs:
    files = [torch.load(MODEL / name, weights_only=True) for name in ("ram_swin_large_14m.pth", "DAPE.pth")]
    found = {"n_tensors_base": len(files[0]["model"]), "n_tensors_lora": len(files[1])}
    weights, plain = network().state_dict(), network(lora=False).state_dict()
    for name, facts in case.facts["outputs"].items():
        if isinstance(facts, dict):
            found[name] = weights[f"{facts['module']}.weight"]
    layer = case.facts["outputs"]["head_key_merged_weight"]["module"]
    delta = case.tensors["head_key_lora_B"] @ case.tensors["head_key_lora_A"]
    scaling = (weights[f"{layer}.weight"] - plain[f"{layer}.weight"]).norm() / delta.norm()
    return {**found, "unused_prefixes": ["tag_encoder.", "text_decoder."], "scaling": round(scaling.item(), 4)}


def preprocessing(case: Case) -> Outputs:
    found = {f"normalised_{i}": network().prepare(pictures(case.tensors[f"image_{i}"])) for i in range(4)}
    antialiased = case.tensors["normalised_3_antialias"]  # of the picture that is larger than what Swin sees
    assert (found["normalised_3"] - antialiased).abs().max() > 0.1
    return found


def swin_forward(case: Case) -> Outputs:
    _, _, seen = seen_by(network(), case.tensors["pixels"])
    return {**seen, "patch_embed": seen["patch_embed"][:1, :64], "stage_0": seen["stage_0"][:1]}


def image_embedding(case: Case) -> Outputs:
    return {"embedding": seen_by(network(), case.tensors["pixels"])[0]}


def tagging(case: Case) -> Outputs:
    reader = extractor(lora=not case.options["lora"].startswith("none"))
    embedding, logits, seen = seen_by(reader.network, case.tensors["pixels"])
    labels = reader._loaded().labels
    on = logits.sigmoid() > labels.thresholds
    tags = [", ".join(name for name, there in zip(labels.names, row, strict=True) if there) for row in on.tolist()]
    stream = reader.network.label_stream()
    return {**seen, "embedding": embedding, "logits": logits, "tags": tags, "targets": on.float(), "label_stream": stream}


def lora_equality(case: Case) -> Outputs:
    embedding, logits, _ = seen_by(network(), case.tensors["pixels"])
    return {"logits_merged": logits, "logits_unmerged": logits, "embedding_unmerged": embedding}


def tags(case: Case, folder: Path) -> Outputs:
    found: Outputs = {}
    for i in range(4):
        picture = pictures(case.tensors[f"image_{i}"])
        found |= {f"logits_{i}": network()(picture).logits, f"tags_{i}": extractor()(picture)[0].text}
    for value in (0, 1):
        copy = folder / str(value)
        shutil.copytree(MODEL, copy, copy_function=shutil.copyfile)
        (copy / "data" / "ram_tag_list_threshold.txt").write_text("\n".join([str(value)] * 40))
        found[f"tags_0_all_thresholds_{value}"] = RamTags(copy)(pictures(case.tensors["image_0"]))[0].text
    return found


def gradient(case: Case) -> Outputs:
    found: Outputs = {}
    for name in ("logits", "embedding"):
        picture = pictures(case.tensors["image"]).requires_grad_()
        seen = network()(picture)._asdict()
        (seen[name] * case.tensors[f"w_{name}"]).sum().backward()
        found |= {name: seen[name].detach(), f"grad_{name}": picture.grad}
    return found


KINDS: dict[str, Callable[..., Outputs]] = {
    "checkpoint_loading": checkpoint_loading,
    "preprocessing": preprocessing,
    "swin_forward": swin_forward,
    "image_embedding": image_embedding,
    "tagging": tagging,
    "lora_equality": lora_equality,
    "gradient": gradient,
}


@pytest.mark.parametrize("case", cases_of("dape"))
def test_as_published(case: Case | None, tmp_path: Path) -> None:
    if case is None:
        return missing("dape")
    found = tags(case, tmp_path) if case.kind == "tags" else KINDS[case.kind](case)
    check_recorded(case, found, without={*OTHERS, *(name for name in case.facts["outputs"] if name.endswith("_antialias"))})
