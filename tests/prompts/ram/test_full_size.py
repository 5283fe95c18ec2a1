"""The published files at full size, without their values, and the two lists with theirs."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pnp_irib.errors import WeightsError
from pnp_irib.prompts.ram.architecture import RamArchitecture, infer
from pnp_irib.prompts.ram.lora import merge
from pnp_irib.prompts.ram.model import _named
from pnp_irib.prompts.ram.network import RamNetwork
from pnp_irib.prompts.ram.tags import Labels
from pnp_irib.ram_files import FILES, TAGS, THRESHOLDS
from tests.golden import golden_folder, missing

NEVER = {"body", "cocktail table", "French", "group", "lie", "show", "see", "set", "stop", "use"}


@pytest.fixture(scope="module")
def files(shared_dir: Path) -> dict[str, Any]:
    manifest = json.loads(gzip.decompress((shared_dir / "upstream" / "dape_keys.json.gz").read_bytes()))
    found: dict[str, Any] = manifest["files"]
    return found


def empty(keys: dict[str, Any]) -> dict[str, Tensor]:
    return {name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for name, (shape, dtype) in keys.items()}


def test_the_published_ram_fits(files: dict[str, Any]) -> None:
    content = {"model": empty(files["ram_swin_large_14m.pth"]["keys"])}
    published = _named(content, Path("ram"))
    architecture = infer(published, head_heads=4, source=Path("ram"))
    assert architecture == RamArchitecture()
    assert architecture.tokens == 145
    with torch.device("meta"):
        network = RamNetwork(architecture)
    (subset,) = [facts["keys"] for name, facts in files.items() if name.startswith("tagging subset")]
    own = network.state_dict()
    assert {name: list(value.shape) for name, value in own.items()} == {name: shape for name, (shape, _) in subset.items()}
    assert len(own) == 366
    assert sum(value.numel() for value in own.values()) == pytest.approx(212.1e6, abs=0.05e6)  # the fact sheet's number
    computed = (".relative_position_index", ".attn_mask")
    assert {name for name in published if not name.endswith(computed)} == set(own)


def test_the_published_dape_fits(files: dict[str, Any]) -> None:
    with torch.device("meta"):
        weights = dict(RamNetwork(RamArchitecture()).state_dict())
    lora = _named(empty(files["DAPE.pth"]["keys"]), Path("dape"))
    assert len(lora) == 56
    before = {name: value.shape for name, value in weights.items()}
    merge(weights, lora, source=Path("dape"))
    assert {name: value.shape for name, value in weights.items()} == before


@pytest.mark.parametrize(
    "lost",
    ["visual_encoder.layers.2.blocks.17.attn.qkv.lora_B", "tagging_head.encoder.layer.1.crossattention.self.key.lora_A"],
)
def test_a_lost_part_of_dape_is_told(files: dict[str, Any], lost: str) -> None:
    with torch.device("meta"):
        weights = dict(RamNetwork(RamArchitecture()).state_dict())
    lora = _named(empty(files["DAPE.pth"]["keys"]), Path("dape"))
    del lora[lost]
    with pytest.raises(WeightsError, match=lost):
        merge(weights, lora, source=Path("dape"))


def test_the_published_lists() -> None:
    folder = golden_folder("dape") / "data"
    if not folder.is_dir():
        missing("dape")
    labels = Labels.read(folder / TAGS.name, folder / THRESHOLDS.name)
    assert len(labels.names) == len(labels.thresholds) == len(set(labels.names)) == 4585
    assert labels.names[0] == (folder / TAGS.name).read_bytes().split(b"\n")[0].decode()
    assert {name for name, value in zip(labels.names, labels.thresholds, strict=True) if value == 1} == NEVER
    assert (labels.thresholds == torch.tensor(0.65)).sum() == 3414
    for file in FILES:
        if (path := folder / file.name).is_file():
            content = path.read_bytes()
            assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        else:
            assert file.sha256 is None
        assert all(place.startswith("https://") for place in file.places)


def test_nothing_of_the_lists_is_shipped() -> None:
    root = Path(__file__).resolve().parents[3]
    folder = golden_folder("dape") / "data"
    if not folder.is_dir():
        missing("dape")
    start = (folder / TAGS.name).read_bytes()[:300]
    for shipped in ("pnp_irib", "adapters"):
        for path in (root / shipped).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert start not in path.read_bytes(), path
