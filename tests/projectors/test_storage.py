from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from pnp_irib import PRESETS, Projector
from pnp_irib.errors import WeightsError
from pnp_irib.hub import SourceFile
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.base import FORMAT, Architecture, Provenance
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.prompts import Prompt

SMALL = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)


def random_projector(seed: int = 0) -> PixelProjector:
    generator = torch.Generator().manual_seed(seed)
    projector = PixelProjector(SMALL)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    projector.provenance = Provenance(
        name="tiny",
        lq_profile=PRESETS["standard"],
        elq_profiles=(PRESETS["extreme"], PRESETS["light"]),
        restorer="realesrgan-x4plus",
        surrogate="realesr-animevideov3",
        training_data="three photographs",
        steps=12,
        commit="abc123",
        licence="apache-2.0",
        files=(SourceFile(name="train.yaml", sha256="0" * 64),),
    )
    return projector


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return random_projector().save_pretrained(tmp_path / "saved")


def test_round_trip_is_bit_exact(folder: Path) -> None:
    original, loaded = random_projector(), Projector.from_pretrained(folder)
    assert isinstance(loaded, PixelProjector)
    assert loaded.architecture == original.architecture
    assert loaded.provenance == original.provenance
    assert not loaded.training
    state = loaded.state_dict()
    assert state.keys() == original.state_dict().keys()
    for key, value in original.state_dict().items():
        assert torch.equal(state[key], value), key
    picture = torch.rand(2, 3, 13, 9, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("a boat"), None]
    with torch.inference_mode():
        assert torch.equal(loaded.project(picture, prompts=prompts), original.eval().project(picture, prompts=prompts))
    again = loaded.save_pretrained(folder.parent / "again")
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_saved_folder_holds_what_it_should(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == FORMAT
    assert config["weights"]["sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert config["provenance"]["commit"] == "abc123"
    card = (folder / "README.md").read_text()
    for part in ("license: apache-2.0", "maps onto: standard", "extreme, light", "realesrgan-x4plus", "three photographs"):
        assert part in card


def test_saving_replaces_what_was_there_and_keeps_the_projector_as_it_is(folder: Path) -> None:
    other = random_projector(1).train()
    other.save_pretrained(folder, card="mine\n")
    assert other.training
    assert (folder / "README.md").read_text() == "mine\n"
    loaded = PixelProjector.from_pretrained(folder)
    assert torch.equal(loaded.head.weight, other.head.weight)


def test_channels_last_and_shared_storage_are_saved(tmp_path: Path) -> None:
    projector = random_projector().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loaded = Projector.from_pretrained(projector.save_pretrained(tmp_path / "a"))
    assert torch.equal(loaded.state_dict()["stem.weight"], projector.stem.weight)


# --- damage -----------------------------------------------------------------------------------------------------------


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        replaced = change(config)
        path.write_text(json.dumps(config if replaced is None else replaced))

    return damage


def tensors(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    """Other tensors under a hash that agrees with them."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        content = save(found)
        (folder / "model.safetensors").write_bytes(content)
        edit(lambda c: c["weights"].update(sha256=hashlib.sha256(content).hexdigest()))(folder)

    return damage


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def truncate_with_its_hash(folder: Path) -> None:
    truncate(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(lambda c: c["weights"].update(sha256=digest))(folder)


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(text: str | bytes) -> Callable[[Path], None]:
    content = text if isinstance(text, bytes) else text.encode()

    def damage(folder: Path) -> None:
        (folder / "config.json").write_bytes(content)

    return damage


DAMAGES = {
    "flipped byte": (flip, r"model\.safetensors \(\d+ bytes\) is damaged or was exchanged.*Fetch the folder again"),
    "truncated": (truncate, r"is damaged or was exchanged"),
    "truncated, hash agrees": (truncate_with_its_hash, r"not a complete safetensors file"),
    "weights missing": (remove("model.safetensors"), r"model\.safetensors cannot be read: No such file"),
    "config missing": (remove("config.json"), r"is not a projector folder: config\.json is missing"),
    "not JSON": (write("{'a': 1"), r"config\.json cannot be read as JSON"),
    "binary": (write(b"\xff\xfe\x00\x01"), r"config\.json cannot be read as JSON"),
    "a list": (write("[1]"), r"holds a list, expected an object"),
    "deeply nested": (write("[" * 100_000), r"config\.json cannot be read as JSON"),
    "tensor missing": (tensors(lambda t: t.pop("head.bias")), r"does not fit PixelProjector: missing head\.bias"),
    "tensor extra": (tensors(lambda t: t.update(tail=torch.zeros(1))), r"unexpected tail"),
    "tensor of another shape": (
        tensors(lambda t: t.update({"head.bias": torch.zeros(5)})),
        r"head\.bias has the shape \(5,\), expected \(12,\)",
    ),
    "tensor of another dtype": (
        tensors(lambda t: t.update({"head.bias": torch.zeros(12, dtype=torch.float16)})),
        r"holds tensors of float16, config\.json says float32",
    ),
    "other dtype stated": (edit(lambda c: c["weights"].update(dtype="float16")), r"float32, config\.json says float16"),
    "values not finite": (
        tensors(lambda t: t.update({"head.bias": torch.full((12,), float("nan"))})),
        r"head\.bias.*not finite",
    ),
    "unknown key": (edit(lambda c: c.update(colour="red")), r"unknown keys \['colour'\]"),
    "key missing": (edit(lambda c: c.pop("provenance") and None), r"missing keys \['provenance'\]"),
    "unknown key in architecture": (edit(lambda c: c["architecture"].update(depth=3)), r"depth: no such setting"),
    "unknown key in provenance": (edit(lambda c: c["provenance"].update(author="x")), r"author: no such setting"),
    "unknown key in profile": (edit(lambda c: c["provenance"]["lq_profile"].update(fog=1)), r"lq_profile\.fog: no such"),
    "unknown key in a source file": (edit(lambda c: c["provenance"]["files"][0].update(size=1)), r"files\.0\.size: no such"),
    "unknown key in weights": (edit(lambda c: c["weights"].update(size=1)), r"'weights' must hold file, sha256 and dtype"),
    "another weights file": (
        edit(lambda c: c["weights"].update(file="../other.safetensors")),
        r"'weights'.*model\.safetensors",
    ),
    "weights no object": (edit(lambda c: c.update(weights=3)), r"'weights' must hold"),
    "architecture no object": (edit(lambda c: c.update(architecture=[1])), r"projector kind None is unknown"),
    "unknown kind": (
        edit(lambda c: c["architecture"].update(kind="latent9")),
        r"kind 'latent9' is unknown; known: latent, pixel",
    ),
    "kind no text": (edit(lambda c: c["architecture"].update(kind=["pixel"])), r"is unknown; known: latent, pixel"),
    "sizes that do not fit": (
        edit(lambda c: c["architecture"].update(encoder_blocks=[1, 1])),
        r"encoder_blocks states 2 levels; 2 widths need 1",
    ),
    "impossible sizes": (
        edit(lambda c: c["architecture"].update(condition_width=0)),
        r"condition_width: .*greater than or equal to 1",
    ),
    "absurd sizes": (edit(lambda c: c["architecture"].update(widths=[10**6, 10**6])), r"widths"),
    "zero width": (edit(lambda c: c["architecture"].update(widths=[0, 16])), r"widths"),
    "newer format": (
        edit(lambda c: c.update(format=FORMAT + 1, library_version="9.9", novelty=1)),
        r"reads up to 1 \(written by version 9\.9\)\. Run: pip install -U pnp-irib",
    ),
    "no format": (edit(lambda c: c.update(format="one")), r"format 'one'"),
    "format zero": (edit(lambda c: c.update(format=0)), r"format 0"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_each_damage_has_its_own_one_line_error(folder: Path, kind: str) -> None:
    damage, advice = DAMAGES[kind]
    damage(folder)
    with pytest.raises(WeightsError, match=advice) as caught:
        Projector.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert str(folder) in str(caught.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"absent is not a projector folder"):
        Projector.from_pretrained(tmp_path / "absent")
    (tmp_path / "file").write_text("")
    with pytest.raises(WeightsError, match=r"config.json"):
        Projector.from_pretrained(tmp_path / "file")


def test_another_class_is_refused(folder: Path) -> None:
    class Other(PixelProjector):
        pass

    with pytest.raises(WeightsError, match="'pixel', not a Other"):
        Other.from_pretrained(folder)


class Shade(Architecture):
    kind: Literal["shade"] = "shade"
    by: float = 0.5


class Shader(Projector):
    """A projector of another package."""

    config_class = Shade
    architecture: Shade

    def __init__(self, architecture: Shade | None = None) -> None:
        super().__init__()
        self.architecture = architecture or Shade()
        self.gain = torch.nn.Parameter(torch.tensor(self.architecture.by))

    def forward(self, elq: Tensor, prompts: Sequence[Prompt | None] | None = None) -> Tensor:
        return self.gain * elq


def test_projectors_of_other_packages_are_saved_and_loaded(tmp_path: Path) -> None:
    Shader(Shade(by=0.25)).save_pretrained(tmp_path)
    for loaded in (Shader.from_pretrained(tmp_path), Projector.from_pretrained(tmp_path)):
        assert isinstance(loaded, Shader)
        assert torch.equal(loaded.project(torch.ones(1, 3, 2, 2)), torch.full((1, 3, 2, 2), 0.25))
    with pytest.raises(WeightsError, match="not a PixelProjector"):
        PixelProjector.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [["float32"], "int64", "complex64", None])
def test_dtypes_that_are_no_weights(tmp_path: Path, dtype: Any) -> None:
    Shader().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["weights"]["dtype"] = dtype
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="expected one of float32"):
        Projector.from_pretrained(tmp_path)


def test_sizes_that_would_take_all_memory_are_refused() -> None:
    with pytest.raises(ValueError, match="M weights; at most"):
        PixelArchitecture(widths=(2048, 2048), encoder_blocks=(64,), middle_blocks=64, decoder_blocks=(64,))
