"""The restorer under examination, and pictures for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.any_size import restore_any_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import Restorer
from pnp_irib.runtime import modules_held_by

__all__ = ["Subject"]

SIDE = 40  # of the pictures of most checks, pixels


class Subject:
    """The restorer under examination.

    Args:
        restorer: the restorer.
        sizes: sides of pictures.
    """

    def __init__(self, restorer: Restorer, sizes: tuple[int, ...]) -> None:
        self.restorer = restorer
        self.spec = restorer.spec
        self.sizes = sizes
        self.notes: list[str] = []
        self.prompt = Prompt("a cat on a sofa") if self.spec.prompts == "required" else None
        spec = self.spec
        self.side = max(-(-SIDE // spec.multiple_of) * spec.multiple_of, spec.min_size)

    def picture(self, height: int, width: int, *, seed: int = 0) -> Tensor:
        """A smooth picture (1, 3, height, width) with edges, on the device of the restorer; crops of one large one."""
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(1, 3, 12, 12, generator=generator)
        large = F.interpolate(coarse, size=(144, 144), mode="bicubic").clamp(0, 1)
        large[..., 30:38, :] *= 0.4
        large[..., 50:54] = 1 - large[..., 50:54]
        large = F.avg_pool2d(F.pad(large, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return large[..., :height, :width].clone().to(self.device)

    def stripes(self, size: int) -> Tensor:
        """A picture with a side of ``size`` along which alone it changes: its height where that is odd, else its width."""
        coarse = torch.rand(1, 1, 36, 1, generator=torch.Generator().manual_seed(0))
        profile = F.interpolate(coarse, size=(144, 1), mode="bicubic").clamp(0, 1)[:, :, :size].to(self.device)
        profile = profile.expand(-1, 3, -1, 7 + size % 13)
        return (profile if size % 2 else profile.transpose(2, 3)).contiguous()

    @property
    def device(self) -> torch.device:
        """Where the restorer works."""
        device = getattr(self.restorer, "device", None)
        return device if isinstance(device, torch.device) else torch.device("cpu")

    def restore(self, lq: Tensor, *, seed: int | Sequence[int] = 0, prompts: Any = None, **options: Any) -> Tensor:
        """Restored as the library does it, without gradients."""
        seeds = [seed] * len(lq) if isinstance(seed, int) else list(seed)
        given = prompts if prompts is not None else [self.prompt] * len(lq) if self.prompt is not None else None
        with torch.no_grad():
            restored = restore_any_size(self.restorer, lq.clone(), prompts=given, noise=SeededNoise(seeds), **options)
        return restored.clone()  # it may use what it gave again

    def modules(self) -> list[nn.Module]:
        """The modules that the restorer holds, as far as they can be seen."""
        return modules_held_by(self.restorer)
