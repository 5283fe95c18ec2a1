from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from pnp_irib.errors import InputError
from pnp_irib.images.tiling import tiled
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import HALO, TILE, GatedBlock, PixelArchitecture, gate_of, words_of
from pnp_irib.prompts import Prompt

SMALL = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
SIZES = [(1, 1), (1, 2), (2, 1), (3, 3), (1, 65), (65, 1), (7, 5), (8, 8), (16, 15), (33, 17), (64, 65)]


def picture(height: int, width: int, count: int = 1, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def trained(architecture: PixelArchitecture = SMALL, words: bool = True) -> PixelProjector:
    """Random weights everywhere; a words table of zeros if ``words`` is false."""
    generator = torch.Generator().manual_seed(3)
    projector = PixelProjector(architecture)
    with torch.no_grad():
        for name, parameter in projector.named_parameters():
            if words or "words" not in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return projector.eval()


@pytest.mark.parametrize("architecture", [SMALL, PixelArchitecture()], ids=["small", "default"])
def test_identity_at_initialisation_for_every_size(architecture: PixelArchitecture) -> None:
    projector = PixelProjector(architecture)
    for height, width in SIZES:
        elq = picture(height, width)
        with torch.inference_mode():
            assert torch.equal(projector.project(elq), elq)
            assert torch.equal(projector.project(elq, prompts=[Prompt("a boat")]), elq)
    # ... and it can still learn.
    (projector.project(picture(8, 8)) - 0.5).square().sum().backward()
    assert projector.head.weight.grad is not None
    assert projector.head.weight.grad.abs().sum() > 0


def test_size_and_dtype_are_kept() -> None:
    projector = trained()
    for height, width in SIZES:
        with torch.inference_mode():
            lq = projector.project(picture(height, width, count=2))
        assert lq.shape == (2, 3, height, width)
        assert torch.isfinite(lq).all()
        assert not torch.equal(lq, picture(height, width, count=2))


def test_the_default_is_small_enough() -> None:
    assert PixelProjector().parameter_count <= 3_000_000


def test_a_batch_gives_what_its_pictures_give_alone() -> None:
    projector = trained()
    batch = picture(21, 14, count=3)
    prompts = [Prompt("a red boat"), None, Prompt("sea")]
    with torch.inference_mode():
        together = projector.project(batch, prompts=prompts)
        for i in range(3):
            alone = projector.project(batch[i : i + 1], prompts=[prompts[i]])
            torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)


def test_prompts_change_the_picture_and_none_is_the_empty_prompt() -> None:
    projector, elq = trained(), picture(16, 16)
    with torch.inference_mode():
        none = projector.project(elq)
        assert torch.equal(projector.project(elq, prompts=[None]), none)
        assert torch.equal(projector.project(elq, prompts=[Prompt("")]), none)
        assert torch.equal(projector.project(elq, prompts=[Prompt("... !")]), none)  # no word in it
        boat = projector.project(elq, prompts=[Prompt("boat")])
        assert (boat - none).abs().max() > 1e-4
        assert not torch.equal(projector.project(elq, prompts=[Prompt("tree")]), boat)
        assert torch.equal(projector.project(elq, prompts=[Prompt("Boat,")]), boat)


def test_words_that_training_never_met_stay_neutral() -> None:
    projector, elq = trained(words=False), picture(16, 16)
    with torch.inference_mode():
        none = projector.project(elq)
        assert torch.equal(projector.project(elq, prompts=[Prompt("boat at sea")]), none)


def test_words() -> None:
    assert words_of("A red Boat, ﬁne-looking; ÉTÉ 2") == ["a", "red", "boat", "fine", "looking", "été", "2"]
    assert words_of("") == []


def test_a_closed_gate_gives_the_input_bit_for_bit() -> None:
    projector, elq = trained(), picture(17, 12)
    with torch.no_grad():
        projector.gate.weight.zero_()
        projector.gate.bias.fill_(-3)
        assert torch.equal(projector.project(elq), elq)
        projector.gate.bias.fill_(3)
        lq, severity = projector.project_with_severity(elq)
    assert severity.tolist() == [3]
    assert not torch.equal(lq, elq)
    assert gate_of(torch.tensor([-9.0, -2.4, 0.0, 2.4, 9.0])).tolist() == [0, 0, 0.5, 1, 1]


def test_strength_blends_between_input_and_projection() -> None:
    projector, elq = trained(), picture(9, 9)
    with torch.no_grad():
        full = projector.project(elq)
        assert projector.project(elq, strength=0) is elq
        torch.testing.assert_close(projector.project(elq, strength=0.25), 0.75 * elq + 0.25 * full)
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="0 is the restorer alone, 1 the full projection"):
            projector.project(elq, strength=wrong)
    with pytest.raises(InputError, match="2 prompts for 1 pictures; give one each"):
        projector.project(elq, prompts=[None, None])


def test_large_pictures_are_tiled_without_seams() -> None:
    """Three levels, as shipped: the halo must be beyond their reach."""
    sizes = PixelArchitecture(
        widths=(4, 4, 4), encoder_blocks=(3, 4), middle_blocks=5, decoder_blocks=(4, 4), condition_width=4, prompt_buckets=8
    )
    projector, elq = trained(sizes), picture(40, TILE + 4 * HALO + 7)
    for name, parameter in projector.named_parameters():  # what comes from far away must weigh something
        if "blocks" in name and parameter.ndim == 4:
            parameter.data.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
    elq = torch.cat([elq] * 20, 2)  # above the area that is projected in one piece
    assert elq.shape[-1] * elq.shape[-2] > (TILE + 2 * HALO) ** 2
    with torch.inference_mode():
        tiles, severity = projector.project_with_severity(elq)
    with torch.enable_grad():
        whole, same_severity = projector.project_with_severity(elq)
    torch.testing.assert_close(severity, same_severity.detach(), atol=1e-5, rtol=1e-5)
    # These random weights amplify rounding, which depends on the machine: here only that the pieces are in their places.
    torch.testing.assert_close(tiles, whole.detach(), atol=1e-2, rtol=1e-2)
    # In double precision what is left is what a tile does not see: nothing.
    projector.double()
    condition = torch.randn(1, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.inference_mode():
        strip = elq[:, :, : 2 * HALO].double()
        in_one = projector._residual(strip, condition)
        in_tiles = tiled(lambda part: projector._residual(part, condition), strip, tile=TILE, halo=HALO, multiple_of=HALO)
    torch.testing.assert_close(in_tiles, in_one, atol=1e-9 * in_one.abs().max().item(), rtol=0)


@pytest.mark.parametrize("size", [(1, 9000), (2, 8192), (130, 127), (64, 128), (65, 128)])
def test_a_block_in_strips_is_the_block(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    block = GatedBlock(4).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    x = torch.randn(2, 4, *size, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 2, 1, 1, 4, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        strips = block(x, scale, shift)
    with torch.enable_grad():
        whole = block(x, scale, shift).detach()
    torch.testing.assert_close(strips, whole, atol=1e-10 * whole.abs().max().item(), rtol=0)
    assert strips.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "sizes",
    [
        {"widths": (8,)},
        {"widths": (8, 0)},
        {"widths": (8, 16, 32)},  # two levels of blocks stated for three widths
        {"encoder_blocks": (1, 1)},
        {"decoder_blocks": ()},
        {"decoder_blocks": (0,)},
        {"middle_blocks": 0},
        {"prompt_buckets": 0},
        {"prompt_width": 0},
        {"wings": 2},
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PixelArchitecture.model_validate(SMALL.model_dump() | sizes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    projector = PixelProjector(SMALL)
    picture = torch.rand(1, 3, 9, 8)
    with torch.no_grad():
        projector.head.weight.normal_(0, 0.05, generator=torch.Generator().manual_seed(2))
        projected = projector.project(picture)
        given = projector.project(picture.to(dtype))
        assert given.dtype == dtype
        assert (given.float() - projected).abs().max() < 0.02
        moved = projector.to(dtype).project(picture)
    assert moved.dtype == torch.float32
    assert (moved - projected).abs().max() < 0.05
