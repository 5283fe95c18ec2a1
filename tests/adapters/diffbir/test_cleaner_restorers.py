"""Cleaners as restorers of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.images.resize import resize
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer, TilingRestorer
from pnp_irib_diffbir import spec as specs
from pnp_irib_diffbir.cleaners.restorer import CleanerRestorer
from tests.adapters.diffbir.cleaner_models import LOAD, NAMES, picture, save
from tests.hub.server import HubServer


@pytest.fixture(scope="module")
def restorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CleanerRestorer]:
    folder = tmp_path_factory.mktemp("cleaners")
    return {name: LOAD[name](save(name, folder), dtype="float32") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_which_protocols_they_keep_to(restorers: dict[str, CleanerRestorer], name: str) -> None:
    restorer = restorers[name]
    assert isinstance(restorer, Restorer)
    assert isinstance(restorer, TilingRestorer) == (name == "bsrnet")


@torch.no_grad()
def test_what_they_restore(restorers: dict[str, CleanerRestorer]) -> None:
    lq = picture(1, 10, 13)
    for name, scale in (("bsrnet", 4), ("swinir", 4), ("scunet", 1)):
        restorer, net = restorers[name], restorers[name].cleaner
        expected = net(lq) if name == "bsrnet" else net(resize(lq, (scale * 10, scale * 13)))
        assert torch.equal(restorer.restore(lq), expected)
        assert torch.equal(restorer.restore(lq, scale=scale), expected)
        assert restorer.restore(lq, scale=1.5).shape == (1, 3, 15, 20)
        assert restorer.origins[0].files[0].name == f"{name}.pth"


@torch.no_grad()
def test_bsrnet_is_real_esrgan_under_other_names(restorers: dict[str, CleanerRestorer]) -> None:
    lq, other = picture(1, 30, 20), load_restorer("realesrgan-x4plus-anime", dtype="float32")
    assert torch.equal(restorers["bsrnet"].restore(lq), other.restore(lq))


@torch.no_grad()
def test_swinir_keeps_its_memory(restorers: dict[str, CleanerRestorer]) -> None:
    net = restorers["swinir"].cleaner
    seen: list[int] = []
    hook = net.network.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[-1] * given[0].shape[-2]))
    CleanerRestorer(specs.SWINIR, net, memory=128**2 * 400).restore(picture(1, 60, 70))
    hook.remove()
    assert max(seen) == 128**2
    with pytest.raises(ConfigError, match="memory=0: expected a number of bytes, or None"):
        CleanerRestorer(specs.SWINIR, net, memory=0)


def test_they_say_what_is_missing_or_mistaken(tmp_path: Path, hub: HubServer) -> None:
    for name, file in (("bsrnet", "BSRNet.pth"), ("scunet", "scunet_color_real_psnr.pth")):
        with pytest.raises(
            WeightsError, match=rf"diffbir-{name} needs {file}. Download https://github.com/\S+{file} and give its path"
        ):
            LOAD[name]()
    with pytest.raises(WeightsError, match="lxq007/DiffBIR-v2"):
        LOAD["swinir"]()  # which is on the Hub, but not on this one
    with pytest.raises(WeightsError, match=r"swinir.pth holds swinir, expected that of diffbir-scunet. Load diffbir-swinir"):
        LOAD["scunet"](save("swinir", tmp_path))


def test_the_specs_load_what_they_state(tmp_path: Path) -> None:
    for name, spec in (("bsrnet", specs.BSRNET), ("swinir", specs.SWINIR)):
        restorer = spec.load(checkpoint=save(name, tmp_path))
        assert (restorer.spec, restorer.dtype) == (spec, torch.float32)
        with pytest.raises(ConfigError, match="unexpected keyword argument 'weight'"):
            spec.load(weight=1)


def test_importing_them_imports_neither_torch_nor_spandrel_too_early() -> None:
    code = (
        "import sys, pnp_irib_diffbir.spec; assert 'torch' not in sys.modules; "
        "import pnp_irib_diffbir.cleaners.restorer; assert 'spandrel' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
