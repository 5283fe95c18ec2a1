"""What the published code made of tiny networks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.latents import gaussian_window, published_tiles
from pnp_irib.diffusion.published import truncated
from pnp_irib.images.resize import resize
from pnp_irib_diffbir.cleaners.sizes import enlarged_as_published, short_side_to
from tests.adapters.diffbir.cleaner_models import cleaner, tensors
from tests.golden import Case, cases_of, check

KINDS = ("cleaner", "cleaner_tiled", "stage1")
CASES = cases_of("diffbir")


def of_kind(*kinds: str) -> list[Any]:
    return [case for case in CASES if case.values[0] is None or case.values[0].kind in kinds]


def given(case: Case) -> Tensor:
    return case.tensors["image_u8"].permute(2, 0, 1)[None].float() / 255


def parts(whole: Tensor, case: Case) -> dict[str, Tensor]:
    """The parts of a picture that a case records."""
    return {
        "crop": whole[..., 200:232, 180:220],
        "mean16": torch.nn.functional.avg_pool2d(whole, 16),
        "bottom_right": whole[..., -16:, -16:],
    }


@pytest.mark.parametrize("case", of_kind("cleaner"))
@torch.no_grad()
def test_networks(case: Case) -> None:
    found = cleaner(case.options["net"])(given(case))
    check(case, {"out": found[..., 40:88, 40:88] if case.outputs["out"].shape[-1] == 48 else found})


@pytest.mark.parametrize("case", of_kind("cleaner_tiled"))
@torch.no_grad()
def test_tiles(case: Case) -> None:
    net, pictures, options = cleaner(case.options["net"]), given(case), case.options
    top, bottom, left, right = case.facts["json"]["rows_cols"]
    found = net.as_published(pictures, tile=options["tile_size"], stride=options["tile_stride"], shortest=1)
    assert net.scale == options["scale"]
    check(case, {"out_crop": found[..., top:bottom, left:right]})


@pytest.mark.parametrize("case", of_kind("stage1"))
@torch.no_grad()
def test_stage_one(case: Case) -> None:
    options, pictures = case.options, given(case)
    net = cleaner(options["pipeline"].removesuffix("Pipeline").lower())
    size: tuple[int, int] | None = None
    if options["upscale"] is not None:
        height, width = pictures.shape[-2:]
        size = (int(height * options["upscale"]), int(width * options["upscale"]))
    tile = options["cleaner_tile_size"] if options["cleaner_tiled"] else None
    found = net.as_published(pictures, size, tile=tile, stride=options["cleaner_tile_stride"] if tile else None)
    assert list(found.shape) == case.facts["json"]["shape"]
    assert list(size or pictures.shape[-2:]) == case.facts["json"]["output_size"]
    check(case, parts(found, case))


@pytest.mark.parametrize("case", of_kind("sizes"))
def test_sizes(case: Case) -> None:
    facts, found = case.facts["json"], {}
    for height, width, expected in facts["resize_short_edge_to_512"]:
        assert list(short_side_to(height, width, 512)) == expected
    for upscale in facts["upscales"]:
        found[f"pil_resized_{upscale:g}"] = enlarged_as_published(given(case), upscale)[0].permute(1, 2, 0) * 255
    assert all(torch.equal(value, value.round()) for value in found.values())
    small, large = case.tensors["small"].float(), case.tensors["float_image"].float()
    found["short_edge_512_crop"] = resize(small, short_side_to(small.shape[-2], small.shape[-1], 512))[..., 300:332, 200:240]
    for height, width in ((36, 28), (18, 26), (27, 14), (54, 40)):
        resized = resize(large, (height, width))
        found[f"final_{height}x{width}_f32"] = resized
        found[f"final_{height}x{width}_u8"] = torch.from_numpy(np.array(Image.fromarray(truncated(resized[0].clamp(0, 1)))))[
            None
        ]
    check(case, found)


@pytest.mark.parametrize("case", of_kind("tile_plans"))
def test_windows_and_weights(case: Case) -> None:
    for plan in case.facts["json"]["sliding_windows"]:
        tiles = published_tiles(plan["h"], plan["w"], tile=plan["size"], stride=plan["stride"])
        boxes = [[y, y + tiles.height, x, x + tiles.width] for y, x in tiles.corners]
        assert boxes == plan["boxes"]
    sizes = {name: tuple(value.shape) for name, value in case.outputs.items()}
    check(case, {name: gaussian_window(height, width, symmetric=False) for name, (height, width) in sizes.items()})


@pytest.mark.parametrize("case", of_kind("load"))
def test_every_value_is_loaded(case: Case) -> None:
    for name in ("bsrnet", "swinir", "scunet"):
        given = tensors(name)
        assert len(given) == case.facts["json"][f"{name}_n"]
        sums = torch.stack([torch.stack((given[k].double().sum(), given[k].double().abs().sum())) for k in sorted(given)])
        expected = case.outputs[f"f64_sums_{name}"]
        assert (sums - expected).abs().max() <= case.facts["tolerance"][f"f64_sums_{name}"]
        own = cleaner(name).network.state_dict().values()  # under other names
        assert len(own) == len(given)
        assert sum(value.double().abs().sum().item() for value in own) == pytest.approx(expected[:, 1].sum().item(), rel=1e-9)
