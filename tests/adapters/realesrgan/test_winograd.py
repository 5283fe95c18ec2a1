from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn

from pnp_irib.registry import load_restorer
from pnp_irib.rrdb.network import RRDB, SLOPE, RRDBNet
from pnp_irib.rrdb.winograd import WinogradRRDB, Workspaces
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_realesrgan.spec import ANIME, X4PLUS


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 3), (2, 41), (24, 31), (70, 66)])
@pytest.mark.parametrize("widths", [(12, 8), (8, 12)])
def test_a_block_is_the_same_up_to_rounding(size: tuple[int, int], widths: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = RRDB(*widths)
    x = torch.randn(2, widths[0], *size)
    with torch.no_grad():
        expected = block.double()(x.double())
        found = WinogradRRDB(block, SLOPE)(x, {})
        assert (expected - x).abs().max() > 0.01  # the block does something
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


def test_one_workspace_serves_blocks_and_pictures_in_turn() -> None:
    torch.manual_seed(0)
    blocks = [WinogradRRDB(RRDB(12, 8), SLOPE) for _ in range(2)]
    first, second = torch.randn(2, 1, 12, 30, 29)
    spaces: Workspaces = {}
    for block in blocks:
        alone = block(second, {})
        block(first, spaces)
        assert torch.equal(block(second, spaces), alone)
    block(torch.randn(1, 12, 9, 29), spaces)
    assert list(spaces) == [(9, 29)]  # buffers of one size only: those of a large picture's strips are large


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


def small() -> RRDBNet:
    torch.manual_seed(0)
    return RRDBNet(features=16, growth=8, blocks=2).eval()


def both(network: RRDBNet, lq: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        fast = network(lq)
    return fast, network(lq).detach()


def test_every_way_of_changing_weights_is_noticed() -> None:
    network, lq = small(), torch.rand(1, 3, 30, 29)
    block = network.body[0]
    assert isinstance(block, RRDB)
    conv1, conv5 = block.rdb1.conv1, block.rdb1.conv5
    last = None
    for change in (
        lambda: None,
        lambda: torch.optim.SGD(network.parameters(), lr=0.05).step(),
        lambda: conv1.weight.detach().mul_(50),
        lambda: setattr(conv5, "weight", nn.Parameter(50 * conv5.weight.detach())),
        lambda: network.body[1].load_state_dict(RRDB(16, 8).state_dict()),
        lambda: network.body.__setitem__(0, RRDB(16, 8)),
    ):
        fast, direct = both(network, lq)
        change()
        network(lq).square().mean().backward()
        fast, direct = both(network, lq)
        torch.testing.assert_close(fast, direct, atol=1e-5, rtol=0)
        assert last is None or (last - fast).abs().max() > 1e-4
        last = fast


def test_what_was_made_of_weights_goes_when_they_move() -> None:
    network = small()
    both(network, torch.rand(1, 3, 30, 29))
    assert network._winograd is not None
    made = weakref.ref(network._winograd)
    network.to(torch.float32)
    assert made() is not None  # nothing moved
    network.to(torch.float64)
    assert made() is None


def test_what_others_put_into_the_trunk_is_not_passed_over() -> None:
    class Louder(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    lq = torch.rand(1, 3, 30, 29)
    seen: list[int] = []
    network = small()
    network.body[1].register_forward_hook(lambda *_: seen.append(1))
    both(network, lq)
    assert len(seen) == 2
    network = small()
    network.body[0].rdb2.conv2 = Louder(24, 8, 3, padding=1)  # type: ignore[union-attr]
    fast, direct = both(network, lq)
    assert torch.equal(fast, direct)
    network = small()
    plain, _ = both(network, lq)
    network.body[0] = nn.Sequential(network.body[0], nn.Tanh())
    fast, direct = both(network, lq)
    assert torch.equal(fast, direct)
    assert not torch.equal(fast, plain)


def test_it_can_be_copied_saved_traced_and_used_beside_another_default_dtype() -> None:
    network, lq = small(), torch.rand(1, 3, 30, 29)
    fast, _ = both(network, lq)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(both(twin, lq)[0], fast)
    with torch.no_grad():
        traced = torch.jit.trace(network, lq)
        torch.testing.assert_close(traced(lq), fast, atol=1e-5, rtol=0)
        torch.set_default_dtype(torch.float64)
        try:
            assert torch.equal(network(lq), fast)
        finally:
            torch.set_default_dtype(torch.float32)
