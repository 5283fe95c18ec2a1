"""The projector that ships: it is the default, says so, and does not harm."""

from __future__ import annotations

from pathlib import Path

import torch

from pnp_irib import load_projector, load_restorer, wrap
from pnp_irib.bench import psnr
from pnp_irib.degrade import degrade
from pnp_irib.hub import bundled_projectors
from pnp_irib.images.io import read_picture


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
    assert {"training pictures", "training configuration"} <= {file.name for file in facts.files}
    assert (folder / "README.md").read_text().startswith("---")
    assert list(folder.glob("*.yaml")), "the configuration that trained it belongs beside it"


def test_loading_draws_nothing_from_the_global_generator() -> None:
    state = torch.get_rng_state()
    load_restorer("realesr-animevideov3")
    load_projector(next(iter(bundled_projectors())))
    assert torch.equal(torch.get_rng_state(), state)


def test_it_brings_extreme_pictures_nearer_to_the_good_ones(shared_dir: Path) -> None:
    """A cheap stand-in for the bench: on the LQ grid, against the area-reduced picture, no restorer needed."""
    projector = load_projector(next(iter(bundled_projectors())))
    gains, gates = [], []
    with torch.inference_mode():
        for number, path in enumerate(sorted((shared_dir / "data" / "dev").glob("*.webp"))[::5]):
            hq = read_picture(path).rgb
            target = torch.nn.functional.avg_pool2d(hq, 4)
            elq = degrade(hq, "extreme", seeds=[number])
            gains.append(psnr(projector.project(elq).clamp(0, 1), target) - psnr(elq, target))
            light = degrade(hq, "light", seeds=[number])
            gates.append((projector.project(light) - light).abs().mean().item())
    assert sum(gains) / len(gains) > 0.4  # dB; 0.66 when it was shipped
    assert sorted(gates)[len(gates) // 2] < 2 / 255  # 1.2 when it was shipped
