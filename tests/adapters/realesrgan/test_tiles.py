from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnp_irib.images.io import read_picture
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import TilingRestorer
from pnp_irib.rrdb.network import RRDBNet
from pnp_irib.spec import RestorerSpec
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_realesrgan.spec import ANIME, X4PLUS
from tests.adapters.realesrgan.files import NAMES, SPECS


@pytest.mark.parametrize(("height", "width", "rows"), [(1, 1, 16), (5, 3, 16), (50, 40, 16), (33, 40, 17), (20, 12, 1)])
def test_strips_of_rrdbnet_do_not_show(height: int, width: int, rows: int) -> None:
    torch.manual_seed(0)
    network = RRDBNet(features=8, growth=4, blocks=3).double()
    for parameter in network.parameters():
        parameter.data *= 3  # else what comes from far away is lost in rounding
    lq = torch.rand(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_in_strips(lq, rows, torch.float64), network(lq))
        assert network.forward_in_strips(lq, rows, torch.float16).dtype == torch.float16


def test_enlargement_in_strips_does_not_show() -> None:
    torch.manual_seed(0)
    network = RRDBNet(features=4, growth=2, blocks=1).double().requires_grad_(False)
    lq = torch.rand(1, 3, 11, 1600, dtype=torch.float64)  # wide enough that strips of 5 rows are taken
    with torch.no_grad():
        strips = network(lq)
    with torch.enable_grad():
        whole = network(lq)
    torch.testing.assert_close(strips, whole)


@pytest.mark.parametrize("tile", [48, 64, 96])
def test_tiled_compact_network_is_within_1_of_untiled(compact: RealESRGAN, photo: Tensor, tile: int) -> None:
    crop = photo[..., 60:190, 100:230]
    with torch.inference_mode():
        whole = compact.restore(crop)
        tiles = compact.restore_tiled(crop, tile=tile, dtype=torch.float32)
    assert (tiles - whole).abs().max() < 1 / 255


def test_tiled_rrdbnet_is_within_1_of_untiled(photo: Tensor) -> None:
    for name, side in ((ANIME.name, 56), (X4PLUS.name, 36)):
        restorer = load_restorer(name, dtype="float32")
        assert isinstance(restorer, TilingRestorer)
        crop = photo[..., 80 : 80 + side, 100 : 100 + side]
        with torch.inference_mode():
            whole = restorer.restore(crop)
            tiles = restorer.restore_tiled(crop, tile=16, dtype=torch.float32)
        assert (tiles - whole).abs().max() < 1 / 255, name


@pytest.mark.slow
@pytest.mark.parametrize("tile", [48, 96])
@pytest.mark.parametrize("name", NAMES)
def test_tiled_is_within_1_of_untiled_on_many_photographs(shared_dir: Path, name: str, tile: int) -> None:
    restorer = load_restorer(name, dtype="float32")
    assert isinstance(restorer, TilingRestorer)
    for path in sorted((shared_dir / "data" / "dev").glob("*.webp"))[::20]:
        crop = read_picture(path).rgb[..., 20:180, 40:200]
        with torch.inference_mode():
            whole = restorer.restore(crop)
            tiles = restorer.restore_tiled(crop, tile=tile, dtype=torch.float32)
        assert (tiles - whole).abs().max() < 1 / 255, path.name


MEMORY = """
import resource, sys, torch
from pathlib import Path
from pnp_irib.registry import load_restorer
torch.set_num_threads(1)
r = load_restorer(sys.argv[1], dtype="float32")
def peak(side):
    with torch.inference_mode():
        lq = torch.rand(1, 3, side, side)
        Path("/proc/self/clear_refs").write_text("5")
        r.restore(lq)
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
peak(32)
small, large = peak(64), peak(int(sys.argv[2]))
print((large - small) / (int(sys.argv[2]) ** 2 - 64**2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux' /proc")
@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_stated_bytes_per_pixel_are_not_exceeded(spec: RestorerSpec) -> None:
    side = "256" if spec is X4PLUS else "384"
    done = subprocess.run([sys.executable, "-c", MEMORY, spec.name, side], capture_output=True, text=True, check=True)
    assert spec.bytes_per_pixel is not None
    assert 0.4 * spec.bytes_per_pixel < float(done.stdout) <= spec.bytes_per_pixel
