"""Models of other widths, heads, depths and ranks than the recorded ones: what must hold for all of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.random_models import random_base, random_checkpoint
from pnp_irib import wrap
from pnp_irib.noise import SeededNoise
from pnp_irib.projectors import LatentArchitecture, LatentProjector
from pnp_irib.prompts import Prompt
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, VAE_ADAPTER
from pnp_irib_osediff.restorer import OSEDiff

MODELS: dict[str, dict[str, Any]] = {
    "narrow": {"unet": (16, 16, 32, 32), "heads": (1, 2, 4, 1), "vae": (32, 32, 64, 32), "text": (16, 2, 1), "rank": 1},
    "uneven": {"unet": (48, 32, 16, 64), "heads": (3, 2, 1, 4), "vae": (64, 32, 32, 32), "text": (40, 5, 2), "rank": 6},
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, model: Path) -> tuple[OSEDiff, OSEDiff]:
    """Merged, and with LoRA beside the weights."""
    sizes = dict(MODELS[request.param])
    rank = sizes.pop("rank")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        base = random_base(str(model / "sd21base" / "tokenizer"), **sizes)
        checkpoint = random_checkpoint(base, rank)
    options: dict[str, Any] = {"process_size": 32, "dtype": "float32", "latent_tile": 9, "latent_overlap": 3}
    return OSEDiff(copy.deepcopy(base), checkpoint, **options), OSEDiff(base, checkpoint, merged=False, **options)


def picture(*size: int, seed: int = 0) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 1), (9, 25), (21, 14)])
def test_merged_and_active_agree_at_every_size(pair: tuple[OSEDiff, OSEDiff], size: tuple[int, int]) -> None:
    lq, prompts = picture(*size), [Prompt("cat, dog"), None]
    with torch.no_grad():
        merged, beside = (r.restore(lq, prompts=prompts, noise=SeededNoise([1, 2])) for r in pair)
        alone = pair[0].restore(lq[1:], noise=SeededNoise([2]))
    assert merged.shape == (2, 3, 4 * size[0], 4 * size[1])
    torch.testing.assert_close(merged, beside, atol=1e-3, rtol=0)
    torch.testing.assert_close(merged[1:], alone, atol=1e-3, rtol=0)


def test_a_projector_shares_the_base(pair: tuple[OSEDiff, OSEDiff]) -> None:
    restorer = pair[1]
    lq = picture(12, 16)[:1]
    with torch.no_grad():
        before = restorer.restore(lq)
    rank = next(iter(restorer.base.unet.conv_out.r.values()))
    projector = LatentProjector(LatentArchitecture(base="random", rank_unet=rank, rank_vae=rank), restorer.base)
    projector.copy_adapters(restorer.base, list(UNET_ADAPTERS), [VAE_ADAPTER])
    result = wrap(restorer, projector=projector)(lq, prompt="cat")
    assert result.restored.shape == (1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(restorer.restore(lq), before)


def test_in_bfloat16_it_comes_close(pair: tuple[OSEDiff, OSEDiff]) -> None:
    restorer = copy.deepcopy(pair[1])
    projector = LatentProjector(LatentArchitecture(base="random", timestep=200), restorer.base)
    robust, lq = wrap(restorer, projector=projector), picture(16, 16)[:1]
    whole = robust(lq)
    low = robust.to(dtype="bfloat16")(lq)
    assert low.used.dtype == "bfloat16"
    assert low.restored.isfinite().all()
    assert (low.lq - whole.lq).abs().mean() < 0.05
