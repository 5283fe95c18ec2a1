from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pnp_irib.registry import load_restorer
from pnp_irib_realesrgan.networks import RRDB, SLOPE, RRDBNet
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_realesrgan.spec import ANIME, X4PLUS
from pnp_irib_realesrgan.winograd import WinogradRRDB


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (2, 41), (24, 31), (70, 66)])
def test_a_block_is_the_same_up_to_rounding(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = RRDB(12, 8)
    x = torch.randn(2, 12, *size)
    with torch.no_grad():
        expected = block.double()(x.double())
        found = WinogradRRDB(block, SLOPE)(x, {})
        assert (expected - x).abs().max() > 0.01  # the block does something
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_one_workspace_serves_blocks_and_pictures_in_turn() -> None:
    torch.manual_seed(0)
    blocks = [WinogradRRDB(RRDB(12, 8), SLOPE) for _ in range(2)]
    first, second = torch.randn(2, 1, 12, 30, 29)
    spaces: dict[tuple[int, int], object] = {}
    for block in blocks:
        alone = block(second, {})
        block(first, spaces)  # type: ignore[arg-type]
        assert torch.equal(block(second, spaces), alone)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [ANIME.name, X4PLUS.name])
def test_a_photograph_comes_out_as_with_gradients(photo: Tensor, name: str) -> None:
    restorer = load_restorer(name, dtype="float32")
    crop = photo[..., 40:77, 60:110]
    with torch.enable_grad():
        direct = restorer.restore(crop)
    with torch.no_grad():
        fast = restorer.restore(crop)
    assert (fast - direct).abs().max() < 0.1 / 255
    assert not torch.equal(fast, direct)  # it is the other arithmetic that ran


def test_new_weights_and_dtypes_are_noticed(photo: Tensor) -> None:
    restorer = load_restorer(ANIME.name, dtype="float32")
    assert isinstance(restorer, RealESRGAN)
    network = restorer.network
    assert isinstance(network, RRDBNet)
    crop = photo[..., 40:70, 60:90]
    with torch.no_grad():
        before = restorer.restore(crop)
        network.load_state_dict({name: 0.9 * value for name, value in network.state_dict().items()})
        after = restorer.restore(crop)
    with torch.enable_grad():
        direct = restorer.restore(crop)
    assert (after - before).abs().max() > 1 / 255
    assert (after - direct).abs().max() < 0.1 / 255
    with pytest.warns(UserWarning, match="not known to be safe"):
        restorer.to(dtype=torch.bfloat16)
    restorer.to(dtype=torch.float32)  # the weights stay rounded
    with torch.no_grad():
        rounded = restorer.restore(crop)
    with torch.enable_grad():
        direct = restorer.restore(crop)
    assert (rounded - after).abs().max() > 0.2 / 255
    assert (rounded - direct).abs().max() < 0.02 / 255
