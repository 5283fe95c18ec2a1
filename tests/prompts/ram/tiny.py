"""Random models of any size, written as the published files are, and what they must give, computed plainly."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pnp_irib.prompts.ram.architecture import RamArchitecture
from pnp_irib.prompts.ram.network import RamNetwork

SMALL: dict[str, Any] = {"embedding": 10, "labels": 7, "label_width": 6, "head_width": 8, "head_heads": 4, "head_mlp": 12}
SIZES = {
    "plain": RamArchitecture(image_size=32, embed_dim=8, depths=(2, 2), heads=(2, 4), window=4, head_layers=2, **SMALL),
    "deep": RamArchitecture(
        image_size=48, embed_dim=6, depths=(1, 3, 2), heads=(1, 2, 3), window=3, head_layers=1, **{**SMALL, "labels": 23}
    ),
    "small last stage": RamArchitecture(
        image_size=48, embed_dim=4, depths=(2, 2, 2), heads=(2, 2, 2), window=6, mlp_ratio=2, head_layers=3, **SMALL
    ),
    "other patches": RamArchitecture(
        image_size=32,
        patch=2,
        embed_dim=6,
        depths=(2, 1),
        heads=(3, 2),
        window=4,
        head_layers=2,
        **{**SMALL, "label_width": 8},
    ),
}


@dataclass
class Tiny:
    """A model of random weights, large enough that every part of it shows in the result."""

    sizes: RamArchitecture
    seed: int = 3
    ranks: tuple[int, int] = (2, 3)  # of the LoRA of Swin and of the head
    thresholds: tuple[float, ...] = field(default=())

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=self.generator) * scale

    @cached_property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        with torch.device("meta"):
            shapes = {name: value.shape for name, value in RamNetwork(self.sizes).state_dict().items()}
        found = {}
        for name, shape in shapes.items():
            scale = 0.5 if len(shape) == 1 or "bias_table" in name else (shape[1:].numel()) ** -0.5
            found[name] = self.draw(*shape, scale=scale) + (1 if "norm" in name.lower() and name.endswith("weight") else 0)
        return found

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """As the published files have them beside the weights; only their shapes are read."""
        sizes = self.sizes
        found: dict[str, Tensor] = {}
        for stage, depth in enumerate(sizes.depths):
            window, grid = min(sizes.window, sizes.grid(stage)), sizes.grid(stage)
            for block in range(1, depth, 2):
                if grid > sizes.window:
                    name = f"visual_encoder.layers.{stage}.blocks.{block}.attn_mask"
                    found[name] = torch.zeros((grid // window) ** 2, window**2, window**2)
                    found[name.replace("attn_mask", "attn.relative_position_index")] = torch.zeros(window**2, window**2).long()
        return found

    @cached_property
    def lora(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            layer = name.removesuffix(".weight")
            out, into = weight.shape if weight.ndim == 2 else (0, 0)
            if layer.endswith(".attn.qkv"):
                found |= {f"{layer}.lora_A": self.draw(2 * self.ranks[0], into)}
                found |= {f"{layer}.lora_B": self.draw(out // 3 * 2, self.ranks[0])}
            elif layer.endswith((".self.query", ".self.key")):
                found |= {f"{layer}.lora_A": self.draw(self.ranks[1], into), f"{layer}.lora_B": self.draw(out, self.ranks[1])}
        return found

    @property
    def names(self) -> list[str]:
        return [f"thing {i}" for i in range(self.sizes.labels)]

    def write(self, folder: Path) -> Path:
        """The published files, with what else the published ones hold."""
        folder.mkdir(parents=True)
        other = {"tag_encoder.encoder.layer.0.output.dense.weight": torch.ones(2, 2), "text_decoder.cls.bias": torch.ones(3)}
        other["left.over"] = torch.ones(())
        torch.save({"model": {**other, **self.weights, **self.masks}, "epoch": 9}, folder / "ram_swin_large_14m.pth")
        lora = {f"tag_encoder.encoder.layer.0.crossattention.self.query.lora_{part}": torch.ones(2, 2) for part in "AB"}
        torch.save({**self.lora, **lora}, folder / "DAPE.pth")
        (folder / "data").mkdir()
        (folder / "data" / "ram_tag_list.txt").write_text("\n".join(self.names))
        thresholds = self.thresholds or [0.5] * self.sizes.labels
        (folder / "data" / "ram_tag_list_threshold.txt").write_text("\n".join(map(str, thresholds)) + "\n")
        (folder / "configs").mkdir()
        config = {"hidden_act": "gelu", "hidden_size": self.sizes.head_width, "num_attention_heads": self.sizes.head_heads}
        (folder / "configs" / "q2l_config.json").write_text(json.dumps(config))
        return folder

    def merged(self) -> dict[str, Tensor]:
        """The weights with the LoRA added, row by row."""
        found = {name: value.double().clone() for name, value in self.weights.items()}
        for name in self.lora:
            if not name.endswith("lora_A"):
                continue
            layer = name.removesuffix(".lora_A")
            down, up = self.lora[name].double(), self.lora[f"{layer}.lora_B"].double()
            weight = found[f"{layer}.weight"]
            if layer.endswith("qkv"):
                rank, width = self.ranks[0], weight.shape[1]
                for row in range(width):
                    weight[row] += up[row] @ down[:rank] / rank  # query
                    weight[2 * width + row] += up[width + row] @ down[rank:] / rank  # value
            else:
                weight += up @ down / self.ranks[1]
        return found


def plain_embedding(sizes: RamArchitecture, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Swin without windows: every place sees the whole grid, with masks that say who may look at whom. float64."""
    w = {name: value.double() for name, value in weights.items()}

    def norm(hidden: Tensor, name: str) -> Tensor:
        return F.layer_norm(hidden, hidden.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], eps=1e-5)

    def linear(hidden: Tensor, name: str) -> Tensor:
        return F.linear(hidden, w[f"{name}.weight"], w.get(f"{name}.bias"))

    e = "visual_encoder."
    patches = F.conv2d(
        pixels.double(), w[f"{e}patch_embed.proj.weight"], w[f"{e}patch_embed.proj.bias"], stride=(sizes.patch, sizes.patch)
    )
    hidden = norm(patches.flatten(2).mT, f"{e}patch_embed.norm")
    for stage, depth in enumerate(sizes.depths):
        grid, width, heads = sizes.grid(stage), sizes.width(stage), sizes.heads[stage]
        window = min(grid, sizes.window)
        for block in range(depth):
            b = f"{e}layers.{stage}.blocks.{block}."
            shift = window // 2 if block % 2 and grid > sizes.window else 0
            qkv = linear(norm(hidden, f"{b}norm1"), f"{b}attn.qkv")
            query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.split(width, dim=-1))
            scores = query @ key.mT * (width / heads) ** -0.5
            scores = scores + _who_sees_whom(grid, window, shift, w[f"{b}attn.relative_position_bias_table"])
            found = (scores.softmax(-1) @ value).transpose(1, 2).flatten(2)
            hidden = hidden + linear(found, f"{b}attn.proj")
            hidden = hidden + linear(F.gelu(linear(norm(hidden, f"{b}norm2"), f"{b}mlp.fc1")), f"{b}mlp.fc2")
        if stage < len(sizes.depths) - 1:
            places = torch.arange(grid * grid).view(grid, grid)
            quarters = [places[0::2, 0::2], places[1::2, 0::2], places[0::2, 1::2], places[1::2, 1::2]]
            hidden = torch.cat([hidden[:, quarter.flatten()] for quarter in quarters], dim=-1)
            d = f"{e}layers.{stage}.downsample."
            hidden = linear(norm(hidden, f"{d}norm"), f"{d}reduction")
    hidden = norm(hidden, f"{e}norm")
    return linear(torch.cat([hidden.mean(1, keepdim=True), hidden], dim=1), "image_proj")


def _who_sees_whom(grid: int, window: int, shift: int, table: Tensor) -> Tensor:
    """(heads, L, L): biases, -100 across the edge that a shift crosses, -infinity between windows."""
    heads, places = table.shape[1], [(row, column) for row in range(grid) for column in range(grid)]
    seen = torch.full((heads, len(places), len(places)), -float("inf"), dtype=torch.float64)
    for i, first in enumerate(places):
        for j, second in enumerate(places):
            # Where a place lies after the shift, and whether it came around the edge.
            row_i, column_i, row_j, column_j = ((x - shift) % grid for x in (*first, *second))
            around = [x < shift for x in (*first, *second)]
            if (row_i // window, column_i // window) != (row_j // window, column_j // window):
                continue
            index = (row_i - row_j + window - 1) * (2 * window - 1) + column_i - column_j + window - 1
            apart = around[:2] != around[2:]
            seen[:, i, j] = table[index] + (-100 if apart else 0)
    return seen


def plain_logits(sizes: RamArchitecture, weights: dict[str, Tensor], embedding: Tensor) -> Tensor:
    """The tagging head, one label at a time. float64."""
    w = {name: value.double() for name, value in weights.items()}
    columns = []
    for label in w["label_embed"]:
        stream = label
        if "wordvec_proj.weight" in w:
            stream = w["wordvec_proj.weight"] @ label + w["wordvec_proj.bias"]
        stream = stream.clamp(min=0).expand(len(embedding), -1)
        for layer in range(sizes.head_layers):
            p = f"tagging_head.encoder.layer.{layer}."
            a, size = f"{p}crossattention.self.", sizes.head_width // sizes.head_heads
            query = F.linear(stream, w[f"{a}query.weight"], w[f"{a}query.bias"])
            key, value = (F.linear(embedding.double(), w[f"{a}{x}.weight"], w[f"{a}{x}.bias"]) for x in ("key", "value"))
            found = []
            for head in range(sizes.head_heads):
                part = slice(head * size, (head + 1) * size)
                scores = torch.einsum("nc,ntc->nt", query[:, part], key[..., part]) / size**0.5
                found.append(torch.einsum("nt,ntc->nc", scores.softmax(-1), value[..., part]))
            stream = _add_and_norm(w, f"{p}crossattention.output.", torch.cat(found, -1), stream)
            hidden = F.gelu(F.linear(stream, w[f"{p}intermediate.dense.weight"], w[f"{p}intermediate.dense.bias"]))
            stream = _add_and_norm(w, f"{p}output.", hidden, stream)
        columns.append(stream @ w["fc.weight"][0] + w["fc.bias"])
    return torch.stack(columns, dim=1)


def _add_and_norm(w: dict[str, Tensor], name: str, hidden: Tensor, stream: Tensor) -> Tensor:
    added = F.linear(hidden, w[f"{name}dense.weight"], w[f"{name}dense.bias"]) + stream
    return F.layer_norm(added, added.shape[-1:], w[f"{name}LayerNorm.weight"], w[f"{name}LayerNorm.bias"], eps=1e-12)
