"""The pixel denoiser: its preconditioning, any size, saving and loading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.hub import SourceFile
from pnp_irib.images.padding import pad_to
from pnp_irib.priors import DenoiserArchitecture, PixelDenoiser
from pnp_irib.priors.denoiser import DenoiserProvenance, edm_loss
from pnp_irib.projectors import PixelProjector, Projector
from tests.hub.server import HubServer
from tests.priors.conftest import SMALL


class _Constant(nn.Module):
    """Stands where the UNet is; remembers what it was given."""

    dtype = torch.float32

    def forward(self, given: Tensor, time: Tensor) -> SimpleNamespace:
        self.given, self.time = given, time
        return SimpleNamespace(sample=torch.ones_like(given))


def test_preconditioning_by_hand() -> None:
    """At sigma = sigma_data = 1/4: c_skip 1/2, c_out 1/(4 sqrt 2), c_in 4/sqrt 2, c_noise ln(1/4)/4."""
    denoiser = PixelDenoiser(SMALL)
    stub = _Constant()
    denoiser.unet = stub
    noisy = torch.full((2, 3, 4, 4), 0.9)
    clean = denoiser(noisy, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(clean[0], torch.full((3, 4, 4), 0.5 + 0.4 * 0.5 + 0.1767767))
    # At 1: c_skip 1/17, c_out 1/sqrt 17, c_in 4/sqrt 17.
    torch.testing.assert_close(clean[1], torch.full((3, 4, 4), 0.5 + 0.4 / 17 + 0.2425356))
    assert stub.given.shape == (2, 3, 4, 4)
    assert stub.given[0].max().item() == pytest.approx(0.4 * 2.8284271)
    assert stub.given[1].max().item() == pytest.approx(0.4 * 0.9701425)
    assert stub.time.tolist() == pytest.approx([-0.3465736, 0])


def test_a_new_denoiser_is_the_best_for_gaussian_pixels_around_grey() -> None:
    noisy = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.6])
    variance = sigma.square().view(-1, 1, 1, 1)
    expected = (0.0625 * noisy + variance * 0.5) / (0.0625 + variance)
    torch.testing.assert_close(PixelDenoiser(SMALL)(noisy, sigma), expected)


def test_the_loss_by_hand() -> None:
    pictures = torch.zeros(2, 3, 2, 2)
    found = edm_loss(pictures + torch.tensor([0.1, 0.2]).view(2, 1, 1, 1), pictures, torch.tensor([0.25, 1.0]), 0.25)
    assert found.tolist() == pytest.approx([32 * 0.01, 17 * 0.04])


@pytest.mark.parametrize("size", [(1, 1), (1, 65), (2, 3), (7, 4), (16, 16), (33, 17), (65, 33)])
def test_any_size(denoiser: PixelDenoiser, size: tuple[int, int]) -> None:
    noisy = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.2])
    with torch.no_grad():
        clean = denoiser(noisy, sigma)
        padded = denoiser(pad_to(noisy, multiple_of=2, min_size=4), sigma)
    assert clean.shape == noisy.shape
    assert clean.isfinite().all()
    torch.testing.assert_close(clean, padded[..., : size[0], : size[1]])


def test_the_default_is_small_and_looks_at_sigma() -> None:
    denoiser = PixelDenoiser()
    assert 1e6 < denoiser.parameter_count < 3e6
    with torch.no_grad():
        denoiser.unet.conv_out.weight.normal_(0, 0.1)
        picture = torch.rand(1, 3, 16, 16).expand(2, -1, -1, -1)
        # With the same input of the UNet, only the time tells the two apart.
        found = denoiser.unet(torch.zeros(2, 3, 16, 16), torch.tensor([0.1, 0.5]).log() / 4).sample
        assert (found[0] - found[1]).abs().max() > 1e-4
        assert denoiser(picture.bfloat16(), torch.tensor([0.1, 0.5])).dtype == torch.bfloat16


def test_a_picture_is_the_same_alone_and_in_a_batch(denoiser: PixelDenoiser) -> None:
    noisy = torch.rand(3, 3, 10, 6, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.05, 0.2, 0.9])
    together = denoiser(noisy, sigma)
    for i in range(3):
        torch.testing.assert_close(denoiser(noisy[i : i + 1], sigma[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)


# --- saving and loading -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(denoiser: PixelDenoiser, tmp_path: Path) -> Path:
    denoiser.provenance = DenoiserProvenance(
        name="tiny",
        training_data="three photographs",
        sigmas=(0.01, 1.5),
        steps=12,
        commit="abc123",
        licence="apache-2.0",
        files=(SourceFile(name="training configuration", sha256="0" * 64),),
    )
    return denoiser.save_pretrained(tmp_path / "saved")


def test_round_trip_is_bit_exact(denoiser: PixelDenoiser, folder: Path) -> None:
    state = torch.get_rng_state()
    loaded = PixelDenoiser.from_pretrained(folder)
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.architecture == denoiser.architecture
    assert loaded.provenance == denoiser.provenance
    assert not loaded.training
    tensors = loaded.state_dict()
    assert tensors.keys() == denoiser.state_dict().keys()
    assert all(torch.equal(tensors[key], value) for key, value in denoiser.state_dict().items())
    again = loaded.save_pretrained(folder.parent / "again")
    assert sorted(p.name for p in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_the_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for part in ("license: apache-2.0", "# tiny", "0.01 to 1.5", "three photographs", "12 training steps", "family: pixel"):
        assert part in card


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def unweighed(folder: Path) -> None:
    content = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
    (folder / "model.safetensors").write_bytes(content)
    edited(lambda c: c["weights"].update(sha256=hashlib.sha256(content).hexdigest()))(folder)


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (truncated, "damaged or was exchanged"),
        (unweighed, "missing unet"),
        (edited(lambda c: c.update(format=2)), r"reads up to 1 .*pip install -U"),
        (edited(lambda c: c["architecture"].update(widths=[8, 9])), "widths.1: Input should be a multiple of 8"),
        (edited(lambda c: c["architecture"].update(widths=[1024] * 6, blocks=8)), "M weights; at most 200 M"),
        (edited(lambda c: c["architecture"].update(colour=1)), "colour: no such setting"),
        (edited(lambda c: c["architecture"].update(kind="pixel")), "'pixel', not a pixel denoiser. Make one"),
        (edited(lambda c: c.update(architecture=[])), "None, not a pixel denoiser"),
        (edited(lambda c: c["provenance"].update(steps=-1)), "steps"),
    ],
)
def test_damage_is_told(folder: Path, damage: Callable[[Path], None], advice: str) -> None:
    damage(folder)
    with pytest.raises(WeightsError, match=advice) as caught:
        PixelDenoiser.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_projectors_and_denoisers_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'pixel-denoiser' is unknown"):
        Projector.from_pretrained(folder)
    with pytest.raises(WeightsError, match="'pixel', not a pixel denoiser"):
        PixelDenoiser.from_pretrained(PixelProjector().save_pretrained(tmp_path / "projector"))


def test_weights_that_are_not_finite_are_not_written(denoiser: PixelDenoiser, tmp_path: Path) -> None:
    with torch.no_grad():
        denoiser.unet.conv_in.bias[0] = float("nan")
    with pytest.raises(WeightsError, match=r"conv_in\.bias are not finite, so the pixel denoiser is not written"):
        denoiser.save_pretrained(tmp_path / "broken")
    assert not (tmp_path / "broken").exists()


def test_to_the_hub_and_back(denoiser: PixelDenoiser, hub: HubServer) -> None:
    denoiser.push_to_hub("owner/denoiser")
    loaded = PixelDenoiser.from_pretrained("hf-hub:owner/denoiser")
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in denoiser.state_dict().items())
    assert loaded.origin is not None
    assert loaded.origin.commit is not None


def test_sizes_are_checked() -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        DenoiserArchitecture(widths=(12, 16))
