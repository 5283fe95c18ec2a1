"""The compact projector on the LQ grid: any restorer, CPU-friendly, modulated by degradation and prompt.

A U-Net of gated convolution blocks (after NAFNet, Chen et al., arXiv 2204.04676) that works on 2x2 patches: extremely degraded
pictures hold little at the finest scale, and it quarters the cost. A small encoder estimates the degradation from the picture;
together with the prompt it modulates every level feature-wise (FiLM, Perez et al., arXiv 1709.07871), and it sets a gate on
the residual. The gate closes exactly on pictures that need no projection, which then come out bit for bit as they went in.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Literal, Self, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from pnp_irib.images.padding import pad_to
from pnp_irib.images.tiling import tiled
from pnp_irib.projectors.base import Architecture, Projector
from pnp_irib.prompts import Prompt
from pnp_irib.runtime import widest_float

__all__ = ["PixelArchitecture", "PixelProjector"]


Width: TypeAlias = Annotated[int, Field(ge=1, le=2048)]
Blocks: TypeAlias = Annotated[int, Field(ge=1, le=64)]


MAX_WEIGHTS = 2**27  # ours: half a gigabyte in float32


class PixelArchitecture(Architecture):
    """Sizes of a `PixelProjector`."""

    # The upper bounds are ours: a damaged file must not ask for all the memory there is.
    kind: Literal["pixel"] = "pixel"
    widths: tuple[Width, ...] = Field(
        default=(64, 128, 192), min_length=2, max_length=6, description="channels of the levels, finest first"
    )
    encoder_blocks: tuple[Blocks, ...] = Field(default=(3, 4), description="blocks of the levels on the way down")
    middle_blocks: Blocks = 5
    decoder_blocks: tuple[Blocks, ...] = Field(default=(4, 4), description="blocks of the levels on the way up, finest last")
    condition_width: Width = Field(default=64, description="channels of the degradation and prompt embedding")
    prompt_buckets: int = Field(default=4096, gt=0, le=2**20, description="rows of the hashed word table")
    prompt_width: Width = Field(default=32, description="channels of one word")

    @model_validator(mode="after")
    def _levels_agree(self) -> Self:
        for name in ("encoder_blocks", "decoder_blocks"):
            if len(getattr(self, name)) != len(self.widths) - 1:
                raise ValueError(
                    f"{name} states {len(getattr(self, name))} levels; {len(self.widths)} widths need {len(self.widths) - 1}"
                )
        levels = [
            *zip(self.widths, (*self.encoder_blocks, self.middle_blocks), strict=True),
            *zip(self.widths, self.decoder_blocks[::-1], strict=False),
        ]
        weights = sum(blocks * 6 * width**2 for width, blocks in levels) + self.prompt_buckets * self.prompt_width
        if weights > MAX_WEIGHTS:
            raise ValueError(
                f"these sizes make about {weights / 1e6:.0f} M weights; at most {MAX_WEIGHTS / 1e6:.0f} M are read"
            )
        return self


class PixelProjector(Projector):
    """ELQ to LQ on the LQ grid, any size, identity at initialisation."""

    config_class = PixelArchitecture
    architecture: PixelArchitecture

    def __init__(self, architecture: PixelArchitecture | None = None) -> None:
        super().__init__()
        self.architecture = architecture = architecture or PixelArchitecture()
        widths = architecture.widths
        condition = architecture.condition_width
        self.degradation = DegradationEncoder(condition)
        self.prompt = PromptEncoder(architecture.prompt_buckets, architecture.prompt_width, condition)
        self.fuse = nn.Sequential(nn.Linear(2 * condition, condition), nn.SiLU())
        self.gate = nn.Linear(condition, 1)
        self.stem = nn.Conv2d(3 * PATCH**2, widths[0], 3, padding=1)
        self.encoder = nn.ModuleList(
            Level(width, blocks, condition) for width, blocks in zip(widths[:-1], architecture.encoder_blocks, strict=True)
        )
        self.down = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.middle = Level(widths[-1], architecture.middle_blocks, condition)
        upwards = widths[::-1]
        self.up = nn.ModuleList(nn.Conv2d(a, 4 * b, 1) for a, b in pairwise(upwards))
        self.decoder = nn.ModuleList(
            Level(width, blocks, condition) for width, blocks in zip(upwards[1:], architecture.decoder_blocks, strict=True)
        )
        self.head = nn.Conv2d(widths[0], 3 * PATCH**2, 3, padding=1)
        # Identity start: no residual, and a gate that is open so that gradients reach the rest.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        """See `Projector.project`."""
        return self.project_with_severity(elq, prompts)[0]

    def project_with_severity(self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None) -> tuple[Tensor, Tensor]:
        """The projected picture, and the logit of the severity (N,) that opens the gate; for training."""
        degradation = self.degradation(elq)
        severity = self.gate(degradation)[:, 0]
        condition = self.fuse(torch.cat((degradation, self.prompt(prompts, elq.shape[0])), 1))
        if torch.is_grad_enabled() or elq.shape[-1] * elq.shape[-2] <= (TILE + 2 * HALO) ** 2:
            residual = self._residual(elq, condition)
        else:  # degradation and prompt were taken from the whole picture; all else is local
            residual = tiled(lambda part: self._residual(part, condition), elq, tile=TILE, halo=HALO, multiple_of=HALO)
        return elq + (gate_of(severity)[:, None, None, None] * residual).to(elq.dtype), severity

    def _residual(self, elq: Tensor, condition: Tensor) -> Tensor:
        """The U-Net: (N, 3, H, W) and (N, condition) to (N, 3, H, W)."""
        height, width = elq.shape[-2:]
        x = pad_to(elq, multiple_of=PATCH * 2 ** len(self.down))
        x = self.stem(F.pixel_unshuffle(x, PATCH).contiguous(memory_format=torch.channels_last))
        skips = []
        for level, down in zip(self.encoder, self.down, strict=True):
            x = level(x, condition)
            skips.append(x)
            x = down(x)
        x = self.middle(x, condition)
        for up, level, skip in zip(self.up, self.decoder, reversed(skips), strict=True):
            x = level(F.pixel_shuffle(up(x), 2) + skip, condition)
        return F.pixel_shuffle(self.head(x), PATCH)[..., :height, :width]


TILE = 512  # side of the tiles that large pictures are projected in, LQ pixels
HALO = 128  # context of a tile, LQ pixels: beyond the reach of the U-Net of three levels, about 110
PATCH = 2  # side of the patches that the U-Net works on, LQ pixels
BLOCK_POSITIONS = 2**13  # of a feature map that a block works on at a time where no gradient is recorded
STRIP_PIXELS = 2**18  # LQ pixels whose degradation is looked at at a time
STRIP_HALO = 16  # rows around a strip, beyond the reach of the layers, a multiple of their stride of 4
DETAIL_GAIN = 8.0  # ours: brings the detail of photographs to about the size of the picture itself


def gate_of(severity: Tensor) -> Tensor:
    """Gate in [0, 1] for a severity logit; exactly 0 below about -2.4 and exactly 1 above 2.4."""
    return (1.2 * torch.sigmoid(severity) - 0.1).clamp(0, 1)


class DegradationEncoder(nn.Module):
    """A vector that says how a picture is degraded, from the mean and the spread of local features.

    It reads the picture beside its fine detail (enlarged by `DETAIL_GAIN`), and log spreads: noise, blur and JPEG blocks show
    there, while the content of the picture hardly does.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(6, 24, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(24, 48, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(48, 64, 3, stride=2, padding=1),
        )
        self.out = nn.Sequential(nn.Linear(128, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, picture: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, width)."""
        height, width = picture.shape[-2:]
        rows = height if torch.is_grad_enabled() else max(STRIP_HALO, STRIP_PIXELS // width // 4 * 4)
        # Large pictures in strips: their moments add up, so that memory stays small.
        total = picture.new_zeros((picture.shape[0], 64), dtype=widest_float(picture.device))
        square, count = total.clone(), 0
        for top in range(0, height, rows):
            start = max(0, top - STRIP_HALO)
            end = min(height, top + rows)
            strip = self._features(picture[:, :, start : min(height, end + STRIP_HALO)])
            strip = strip[:, :, (top - start) // 4 : -(-(end - start) // 4)].flatten(2).float()
            if rows >= height:
                mean = strip.mean(2)
                spread = (strip - mean[..., None]).square().mean(2)
                break
            total, square, count = (
                total + strip.sum(2),
                square + strip.to(square.dtype).square().sum(2),
                count + strip.shape[2],
            )
        else:
            mean = (total / count).float()
            spread = (square / count - (total / count).square()).clamp(min=0).float()
        moments = torch.cat((mean, torch.log(spread + 1e-4)), 1)
        vector: Tensor = self.out(moments.to(next(self.out.parameters()).dtype))
        return vector

    def _features(self, picture: Tensor) -> Tensor:
        detail = picture - F.avg_pool2d(F.pad(picture, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        features: Tensor = self.layers(torch.cat((picture - 0.5, DETAIL_GAIN * detail), 1))
        return features


class PromptEncoder(nn.Module):
    """Words of a prompt, hashed into a table of learned vectors and averaged. No prompt, or an unseen word, adds nothing."""

    def __init__(self, buckets: int, word_width: int, width: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.words = nn.EmbeddingBag(buckets, word_width, mode="mean")
        self.out = nn.Linear(word_width, width)
        # Words start at zero, so that one that training never met stays neutral; the random layer behind passes gradients.
        nn.init.zeros_(self.words.weight)

    def forward(self, prompts: Sequence[Prompt | None] | None, count: int) -> Tensor:
        """Prompts of ``count`` pictures to (count, width)."""
        texts = [""] * count if prompts is None else [p.text if p is not None else "" for p in prompts]
        bags = [[zlib.crc32(word.encode()) % self.buckets for word in words_of(text)] for text in texts]
        device = self.words.weight.device
        offsets = torch.tensor([0] + [len(bag) for bag in bags[:-1]], device=device).cumsum(0)
        flat = torch.tensor([index for bag in bags for index in bag], dtype=torch.long, device=device)
        vector: Tensor = self.out(self.words(flat, offsets))
        return vector


def words_of(text: str) -> list[str]:
    """Lower-case words of a text."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


class Level(nn.Module):
    """The blocks of one resolution, modulated by the condition."""

    def __init__(self, width: int, blocks: int, condition: int) -> None:
        super().__init__()
        self.film = nn.Linear(condition, 2 * width)
        self.blocks = nn.ModuleList(GatedBlock(width) for _ in range(blocks))
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(N, width, H, W) and (N, condition) to (N, width, H, W)."""
        scale, shift = self.film(condition)[:, None, None, :].chunk(2, -1)
        for block in self.blocks:
            x = block(x, 1 + scale, shift)
        return x


class GatedBlock(nn.Module):
    """Depthwise mixing and channel mixing, each gated and residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.spatial_in = nn.Conv2d(width, 2 * width, 1)
        self.depthwise = nn.Conv2d(2 * width, 2 * width, 3, padding=1, groups=2 * width)
        self.spatial_out = nn.Conv2d(width, width, 1)
        self.channel_in = nn.Conv2d(width, 2 * width, 1)
        self.channel_out = nn.Conv2d(width, width, 1)
        self.spatial_scale = nn.Parameter(torch.full((1, width, 1, 1), 0.1))
        self.channel_scale = nn.Parameter(torch.full((1, width, 1, 1), 0.1))

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """(N, width, H, W), modulated after each normalisation by (N, 1, 1, width) factors."""
        height, width = x.shape[-2:]
        rows = max(1, BLOCK_POSITIONS // width)
        if torch.is_grad_enabled() or height <= rows:
            return self._whole(x, scale, shift)
        out = torch.empty_like(x)  # strips stay in the cache; they read one row more, as far as the block reaches
        for top in range(0, height, rows):
            start, end = max(0, top - 1), min(height, top + rows)
            strip = self._whole(x[:, :, start : end + 1], scale, shift)
            out[:, :, top:end] = strip[:, :, top - start : end - start]
        return out

    def _whole(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        a, b = self.depthwise(self.spatial_in(modulated(x, scale, shift))).chunk(2, 1)
        x = x + self.spatial_scale * self.spatial_out(a * b)
        a, b = self.channel_in(modulated(x, scale, shift)).chunk(2, 1)
        mixed: Tensor = x + self.channel_scale * self.channel_out(a * b)
        return mixed


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Channels of each position normalised to mean 0 and variance 1, then scaled and shifted. Keeps channels_last."""
    lying = x.permute(0, 2, 3, 1)
    normal = F.layer_norm(lying, lying.shape[-1:])
    return (normal * scale + shift).to(x.dtype).permute(0, 3, 1, 2)
