"""How well the projector does with the restorer that it is for, on pictures that it is not trained on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pnp_irib.any_size import auto_tile, fit_grid, restore_any_size
from pnp_irib.classifiers import EfficientNetLite, feature_distance
from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError
from pnp_irib.images.folder import pictures_under
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.images.similarity import ms_ssim, psnr
from pnp_irib.noise import SeededNoise, picture_seed
from pnp_irib.projectors.base import Projector
from pnp_irib.restorer import Restorer
from pnp_irib.train.config import ValidationConfig
from pnp_irib.train.data import SCALE

__all__ = ["Validation"]

SHOWN, SIDE = 4, 256  # pictures in the grid, and pixels of each


class Validation:
    """Pictures, degraded once and for all; they are projected and restored without prompts.

    Args:
        config: which.
        seed: of their degradations.
        restorer: that the projector is for.
        device: where it works.

    Raises:
        ConfigError: no pictures.
    """

    def __init__(self, config: ValidationConfig, seed: int, restorer: Restorer, device: torch.device) -> None:
        self._restorer, self._device = restorer, device
        self.every = config.every
        paths = pictures_under(config.folder)
        count = min(config.pictures, len(paths))
        self._pairs: list[tuple[Tensor, Tensor]] = []
        for path in (paths[i * len(paths) // count] for i in range(count)):
            hq = read_picture(path).rgb
            hq = hq[..., : hq.shape[-2] // SCALE * SCALE, : hq.shape[-1] // SCALE * SCALE]
            if 0 in hq.shape:
                raise ConfigError(f"{path} is smaller than {SCALE} pixels; remove it from the pictures of the validation.")
            elq = degrade(hq, config.profile, seeds=[picture_seed(seed, path.name)], scale=SCALE)
            self._pairs.append((elq, hq))
        self._network = EfficientNetLite.from_package("lite0").to(device)
        self.alone = self._measure(lambda elq: elq)[0]

    @torch.no_grad()
    def __call__(self, projector: Projector) -> tuple[dict[str, float], Tensor]:
        """Means over the pictures of PSNR, MS-SSIM and feature distance behind the restorer; and a grid.

        Returns:
            The values, and a picture (3, n * 256, 4 * 256) with rows of ELQ, projection, restored and HQ.
        """
        return self._measure(projector.project)

    @torch.no_grad()
    def _measure(self, project: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], Tensor]:
        found: dict[str, list[float]] = {"psnr": [], "ms_ssim": [], "feature_distance": []}
        rows: list[Tensor] = []
        spec = self._restorer.spec
        for elq, hq in self._pairs:
            given = elq.to(self._device)
            estimate = project(given)
            lq, scale = fit_grid(estimate, given, spec, SCALE if spec.scale != SCALE else None)
            tile = auto_tile(self._restorer, lq.shape[-2], lq.shape[-1])
            restored = restore_any_size(self._restorer, lq, scale=scale, noise=SeededNoise([0]), tile=tile, elq=given)
            restored = restored.float().clamp(0, 1)
            found["feature_distance"].append(float(feature_distance(self._network, restored, hq.to(self._device))))
            restored = restored.cpu()
            found["psnr"].append(psnr(restored, hq))
            found["ms_ssim"].append(ms_ssim(restored, hq))
            if len(rows) < SHOWN:
                shown = (elq, estimate.cpu().float(), restored, hq)
                rows.append(torch.cat([resize(picture, (SIDE, SIDE)).clamp(0, 1) for picture in shown], 3))
        return {name: sum(values) / len(values) for name, values in found.items()}, torch.cat(rows, 2)[0]
