"""The sizes of a RAM, and how they are read off its weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from pnp_irib.errors import WeightsError, explain_validation

__all__ = ["RamArchitecture", "head_heads_of", "infer"]

LAYER_NORM_EPS = 1e-12  # of the tagging head; Swin has 1e-5
HEAD_CONFIG = Path("configs", "q2l_config.json")

_BLOCK = re.compile(r"visual_encoder\.layers\.(\d{1,3})\.blocks\.(\d{1,3})\.")


class RamArchitecture(BaseModel):
    """Sizes of a `RamNetwork`. The defaults are those of the published RAM: Swin-L at 384x384, 4585 labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # The upper bounds are ours: a damaged file must not ask for all the memory there is.
    image_size: int = Field(default=384, gt=0, le=4096, description="side of the square picture that Swin sees, pixels")
    patch: int = Field(default=4, gt=0, le=64, description="side of a patch, pixels")
    embed_dim: int = Field(
        default=192, gt=0, le=4096, description="channels of the first stage; each next one has twice as many"
    )
    depths: tuple[int, ...] = Field(default=(2, 2, 18, 2), min_length=1, max_length=8, description="blocks of the stages")
    heads: tuple[int, ...] = Field(default=(6, 12, 24, 48), description="attention heads of the stages")
    window: int = Field(default=12, gt=0, le=128, description="side of a window, patches")
    mlp_ratio: int = Field(default=4, gt=0, le=16, description="hidden width of the blocks' MLP over their width")
    embedding: int = Field(default=512, gt=0, le=8192, description="channels of the image embedding")
    labels: int = Field(default=4585, gt=0, le=2**20)
    label_width: int = Field(default=512, gt=0, le=8192, description="channels of a stored label embedding")
    head_width: int = Field(default=768, gt=0, le=8192, description="channels of the tagging head")
    head_heads: int = Field(default=4, gt=0, le=256, description="attention heads of the tagging head")
    head_layers: int = Field(default=2, gt=0, le=64)
    head_mlp: int = Field(default=3072, gt=0, le=2**16, description="hidden width of the tagging head's MLP")

    @model_validator(mode="after")
    def _sizes_agree(self) -> Self:
        if len(self.heads) != len(self.depths):
            raise ValueError(f"heads states {len(self.heads)} stages, depths {len(self.depths)}")
        if not all(0 < depth <= 256 for depth in self.depths):
            raise ValueError(f"depths={self.depths}: expected 1 to 256 blocks a stage")
        for stage, heads in enumerate(self.heads):
            if heads <= 0 or self.width(stage) % heads:
                raise ValueError(f"{heads} heads do not divide the {self.width(stage)} channels of stage {stage}")
            if self.grid(stage) % self.window_of(stage):
                raise ValueError(
                    f"stage {stage} has {self.grid(stage)} patches a side, no multiple of the window {self.window}"
                )
        if self.image_size % (self.patch * 2 ** (len(self.depths) - 1)):
            raise ValueError(f"image_size={self.image_size} cannot be halved for {len(self.depths)} stages")
        if self.head_width % self.head_heads:
            raise ValueError(f"{self.head_heads} heads do not divide the {self.head_width} channels of the tagging head")
        return self

    def width(self, stage: int) -> int:
        """Channels of a stage."""
        return self.embed_dim << stage

    def grid(self, stage: int) -> int:
        """Patches a side of a stage."""
        return self.image_size // self.patch >> stage

    def window_of(self, stage: int) -> int:
        """Side of the windows of a stage: a stage no larger than a window is one."""
        return max(1, min(self.window, self.grid(stage)))

    @property
    def features(self) -> int:
        """Channels of the last stage."""
        return self.width(len(self.depths) - 1)

    @property
    def tokens(self) -> int:
        """Tokens of an embedding: the mean, then one for each place of the last stage."""
        return 1 + self.grid(len(self.depths) - 1) ** 2


def infer(tensors: Mapping[str, Tensor], *, head_heads: int, source: Path) -> RamArchitecture:
    """The sizes of a published file.

    Args:
        tensors: by the published names, the masks of shifted windows included: the image size is read off them. Without any,
            it is taken to be the published 384.
        head_heads: attention heads of the tagging head, which no shape tells.
        source: for messages.

    Raises:
        WeightsError: a tensor that is needed is missing, or the sizes contradict themselves.
    """

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors:
            raise WeightsError(f"{source} is no RAM on Swin: {name} is missing.")
        found = tuple(tensors[name].shape)
        if len(found) != dimensions or 0 in found:
            raise WeightsError(f"{source} is no RAM on Swin: {name} has the shape {found}, expected {dimensions} dimensions.")
        return found

    embed_dim, _, patch, _ = shape("visual_encoder.patch_embed.proj.weight", 4)
    depths = _depths(tensors)
    tables = [shape(f"visual_encoder.layers.{s}.blocks.0.attn.relative_position_bias_table", 2) for s in range(len(depths))]
    sides = [(math.isqrt(rows) + 1) // 2 for rows, _ in tables]
    label_count, label_width = shape("label_embed", 2)
    query = "tagging_head.encoder.layer.{}.crossattention.self.query.weight"
    layers = len({name.split(".")[3] for name in tensors if name.startswith("tagging_head.encoder.layer.")})
    found: dict[str, Any] = {
        "patch": patch,
        "embed_dim": embed_dim,
        "depths": depths,
        "heads": tuple(heads for _, heads in tables),
        "window": max(sides, default=0),
        "mlp_ratio": shape("visual_encoder.layers.0.blocks.0.mlp.fc1.weight", 2)[0] // embed_dim,
        "embedding": shape("image_proj.weight", 2)[0],
        "labels": label_count,
        "label_width": label_width,
        "head_width": shape(query.format(0), 2)[0],
        "head_heads": head_heads,
        "head_layers": layers,
        "head_mlp": shape("tagging_head.encoder.layer.0.intermediate.dense.weight", 2)[0],
    }
    sizes = _image_sizes(tensors, patch, sides)
    if len(sizes) > 1:
        raise WeightsError(f"{source}: its attention masks are for pictures of different sizes: {sorted(sizes)}.")
    try:
        return RamArchitecture(**found, **({"image_size": sizes.pop()} if sizes else {}))
    except ValidationError as error:
        raise WeightsError(f"{source} is no RAM on Swin that can be built: {explain_validation(error)}.") from error


def _depths(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Blocks of each stage."""
    blocks = {tuple(map(int, match.groups())) for name in tensors if (match := _BLOCK.match(name))}
    stages = 1 + max((stage for stage, _ in blocks), default=-1)
    return tuple(sum(1 for stage, _ in blocks if stage == s) for s in range(stages))


def _image_sizes(tensors: Mapping[str, Tensor], patch: int, sides: list[int]) -> set[int]:
    """Sides of the pictures that the masks of shifted windows are for; one, if the file is whole."""
    sizes = set()
    for name, mask in tensors.items():
        match = _BLOCK.match(name)
        if match is not None and name.endswith(".attn_mask") and int(match[1]) < len(sides):
            stage = int(match[1])
            sizes.add(patch * 2**stage * sides[stage] * math.isqrt(len(mask)))
    return sizes


def head_heads_of(folder: Path, tensors: Mapping[str, Tensor]) -> int:
    """Attention heads of the tagging head: of ``configs/q2l_config.json`` where the folder has it, else the published 4.

    Raises:
        WeightsError: the file is damaged, or describes another head than the weights.
    """
    path = folder / HEAD_CONFIG
    if not path.is_file():
        return int(RamArchitecture.model_fields["head_heads"].default)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}.") from error
    config = config if isinstance(config, dict) else {}
    expected: dict[str, Any] = {"hidden_act": "gelu", "layer_norm_eps": LAYER_NORM_EPS}
    query = tensors.get("tagging_head.encoder.layer.0.crossattention.self.query.weight")
    if query is not None:
        expected["hidden_size"] = len(query)
    if wrong := [key for key, value in expected.items() if config.get(key, value) != value]:
        key = wrong[0]
        raise WeightsError(f"{path} says {key}={config[key]!r:.40}; this head has {expected[key]!r}. Is it of another model?")
    heads = config.get("num_attention_heads")
    if not isinstance(heads, int) or isinstance(heads, bool) or heads <= 0:
        raise WeightsError(f"{path} says num_attention_heads={heads!r:.40}; expected a whole number above 0.")
    return heads
