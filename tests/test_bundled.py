"""The projector that ships: it is the default, says so, and does not harm."""

from __future__ import annotations

from pathlib import Path

import torch

from pnp_irib import load_projector, load_restorer, wrap
from pnp_irib.degrade import degrade
from pnp_irib.images.io import read_picture
from pnp_irib.images.similarity import ms_ssim, psnr
from pnp_irib.projectors.loading import bundled_projectors


def test_it_is_the_default_and_says_so() -> None:
    robust = wrap("realesrgan-x4plus")
    assert robust.projector is not None
    assert "realesrgan-x4plus" in repr(robust)
    assert "bundled" in repr(robust)
    assert "bundled" in repr(robust(torch.rand(1, 3, 8, 8)))
    assert wrap("realesrgan-x4plus", projector=None).projector is None


def test_it_is_small_and_tells_where_it_comes_from() -> None:
    (folder,) = bundled_projectors().values()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 12_000_000
    projector = load_projector(folder.name)
    assert projector.parameter_count < 3_000_000
    facts = projector.provenance
    assert facts.restorer == "realesrgan-x4plus"
    assert facts.lq_profile is not None
    assert facts.lq_profile.name == "standard"
    assert "extreme" in [profile.name for profile in facts.elq_profiles]
    assert facts.steps > 1000
    assert facts.training_data
    assert {"training pictures", "training configuration", "checkpoint"} <= {file.name for file in facts.files}
    assert (folder / "README.md").read_text().startswith("---")
    assert list(folder.glob("*.yaml")), "the configuration that trained it belongs beside it"


def test_loading_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    load_restorer("realesr-animevideov3")
    load_projector(next(iter(bundled_projectors())))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_restorer_that_it_never_met_gains_from_it_and_light_pictures_stay(shared_dir: Path) -> None:
    """A cheap stand-in for the bench: the compact network, twelve crops."""
    projector = load_projector(next(iter(bundled_projectors())))
    restorer = load_restorer("realesr-animevideov3")
    gains, changes = [], []
    with torch.inference_mode():
        for number, path in enumerate(sorted((shared_dir / "data" / "dev").glob("*.webp"))[::5]):
            hq = read_picture(path).rgb[..., :256, :256]
            elq = degrade(hq, "extreme", seeds=[number])
            alone, wrapped = (restorer.restore(lq.clamp(0, 1)).clamp(0, 1) for lq in (elq, projector.project(elq)))
            gains.append((psnr(wrapped, hq) - psnr(alone, hq), ms_ssim(wrapped, hq) - ms_ssim(alone, hq)))
            light = degrade(hq, "light", seeds=[number])
            changes.append((projector.project(light) - light).abs().mean().item())
    decibels, similarity = torch.tensor(gains).mean(0).tolist()
    assert decibels > 0.2  # 0.35 when it was shipped
    assert similarity > 0.012  # 0.023 when it was shipped
    assert sorted(changes)[len(changes) // 2] < 1 / 255  # none when it was shipped
