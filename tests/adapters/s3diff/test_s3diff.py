"""S3Diff as a restorer: modulation as a value, scores, options, gradients, memory, files."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pnp_irib import load_restorer, wrap
from pnp_irib.diffusion.model import fingerprint_of
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.images.tensors import output_size
from pnp_irib.noise import SeededNoise
from pnp_irib.prompts import Prompt
from pnp_irib_s3diff.checkpoint import Trained, read_trained
from pnp_irib_s3diff.modulation import Bound, block_of, with_layers
from pnp_irib_s3diff.restorer import POSITIVE, S3Diff
from tests.adapters.s3diff.models import BASE, CHECKPOINT, ESTIMATOR, loaded, restorer


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """(1, 3, 16, 24) in [0, 1]."""
    return resize(read_picture(shared_dir / "data" / "dev" / "kodak_05.webp").rgb, (16, 24)).clamp(0, 1)


@pytest.fixture(scope="module")
def noisy(photo: Tensor) -> Tensor:
    """Of another degradation."""
    return (photo + 0.2 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)


@torch.no_grad()
def restored(lq: Tensor, built: S3Diff, **given: Any) -> Tensor:
    return built.restore(lq, noise=SeededNoise(range(len(lq))), **given)


def test_it_is_loaded_from_the_published_files(photo: Tensor) -> None:
    given = {"base": BASE, "checkpoint": CHECKPOINT, "degradation_net": ESTIMATOR}
    found = load_restorer("s3diff", **given, dtype="float32")
    assert isinstance(found, S3Diff)
    assert found.spec.lq_profile is not None
    assert found.spec.lq_profile.name == "light"
    torch.testing.assert_close(restored(photo, found), restored(photo, restorer()))
    assert [file.name for origin in found.origins for file in origin.files][:2] == ["s3diff.pkl", "de_net.pth"]
    with pytest.raises(WeightsError, match=r"s3diff needs degradation_net=, the file de_net.pth. Download https://"):
        load_restorer("s3diff", base=BASE, checkpoint=CHECKPOINT)
    with pytest.raises(WeightsError, match=r"s3diff.pkl is no estimator of degradation|is not a dictionary of tensors"):
        load_restorer("s3diff", **given | {"degradation_net": CHECKPOINT})
    with pytest.raises(
        WeightsError, match=r"de_net.pth is no checkpoint of S3Diff: state_dict_unet, state_dict_vae, w missing"
    ):
        load_restorer("s3diff", **given | {"checkpoint": ESTIMATOR})
    with pytest.raises(ConfigError, match=r"s3diff has no option 'score'. Did you mean 'scores'"):
        load_restorer("s3diff", **given, score="lq")


def test_files_that_do_not_fit_together_are_refused() -> None:
    content = torch.load(CHECKPOINT, weights_only=True)

    def changed(part: str, **values: Tensor | None) -> Trained:
        own = {name: value for name, value in {**content[part], **values}.items() if value is not None}
        return Trained(content | {part: own}, source="changed.pkl")

    name = "down_blocks.0.resnets.0.conv1.lora_A.default.weight"
    with pytest.raises(WeightsError, match=f"no tensor '{name}' where one belongs"):
        changed("state_dict_unet", **{name: None})
    with pytest.raises(WeightsError, match=r"has x.weight in state_dict_vae; expected LoRA of the adapter 'vae_skip' only"):
        changed("state_dict_vae", **{"x.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match=r"LoRA of the ranks \[5, 6\] in state_dict_unet"):
        changed("state_dict_unet", **{name: torch.zeros(5, 16, 3, 3)})
    with pytest.raises(WeightsError, match=r"unet fuse.weight is \(25, 320\), with LoRA of rank 6"):
        changed("state_dict_unet_fuse_mlp", weight=torch.zeros(25, 320))
    base, trained, estimator = copy.deepcopy(loaded())
    trained.unet.up[0] = nn.Parameter(torch.zeros(3, 6, 1, 1))
    with pytest.raises(
        WeightsError, match=r"S3Diff's LoRA does not fit the UNet of the base: .* expected \(3, .*Give SD-Turbo"
    ):
        S3Diff(base, trained, estimator)


def test_the_base_stays_as_it_was_loaded(photo: Tensor) -> None:
    base = loaded()[0]
    before, names = fingerprint_of(base.vae, base.unet), [name for name, _ in base.unet.named_modules()]
    restored(photo, restorer())
    assert fingerprint_of(base.vae, base.unet) == before == base.fingerprint
    assert [name for name, _ in base.unet.named_modules()] == names


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_pictures_of_several_degradations_do_not_meet(photo: Tensor, noisy: Tensor, batch: int) -> None:
    built, three = restorer(batch=batch), torch.cat([photo, noisy, photo.flip(3)])
    scores = built.degradation(three)
    assert (scores[0] - scores[1]).abs().max() > 1e-3
    together = restored(three, built)
    for number, alone in enumerate(three.split(1)):
        own = built.restore(alone, noise=SeededNoise([number]))
        torch.testing.assert_close(together[number : number + 1], own, atol=2e-4, rtol=0)


def test_threads_do_not_meet(photo: Tensor, noisy: Tensor) -> None:
    built, given = restorer(), [photo, noisy] * 3
    expected = [restored(picture, built) for picture in given[:2]]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        found[number] = restored(given[number], built)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(given))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, result in found.items():
        torch.testing.assert_close(result, expected[number % 2])
    assert len(found) == len(given)


def test_copies_with_other_layers_share_the_rest() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    other = nn.Linear(2, 2)
    found = with_layers(module, {"1.0": other})
    assert found[1][0] is other
    assert found[0] is module[0]
    assert found[1][1] is module.get_submodule("1.1")
    assert module.get_submodule("1.0") is not other


def test_blocks_of_layers() -> None:
    of_unet = {
        "down_blocks.2.resnets.0.conv1": 2,
        "mid_block.resnets.1.conv2": 4,
        "up_blocks.3.resnets.2.conv1": 8,
        "conv_out": 9,
    }
    of_vae = {"encoder.conv_in": 5, "encoder.down_blocks.3.resnets.0.conv1": 3, "encoder.mid_block.attentions.0.to_q": 4}
    assert {name: block_of(name, unet=True) for name in of_unet} == of_unet
    assert {name: block_of(name, unet=False) for name in of_vae} == of_vae


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), nn.Conv2d(6, 5, 3, stride=2, padding=1), nn.Conv2d(6, 5, 1, bias=False)])
def test_cheaper_is_the_same(layer: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = layer.get_parameter("weight")
    down = torch.randn(3, *weight.shape[1:], generator=generator)
    up = torch.randn(5, 3, *(1,) * (weight.ndim - 2), generator=generator)
    one = torch.randn(1, 3, 3, generator=generator)
    for size in (1, 40):  # where the LoRA is cheaper beside the layer, and in another weight
        x = (
            torch.randn(2, 6, size, size, generator=generator)
            if weight.ndim == 4
            else torch.randn(2, size, 6, generator=generator)
        )
        expected = Bound(layer, down, up, one, beside=True)(x)
        torch.testing.assert_close(Bound(layer, down, up, one)(x), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(Bound(layer, down, up, one).merged()(x), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(Bound(layer, down, up, one.expand(2, -1, -1))(x), expected, atol=1e-4, rtol=1e-5)
        assert (expected - layer(x)).abs().max() > 0.1
        nothing = Bound(layer, down, up, 0 * one)(x)
        torch.testing.assert_close(nothing, layer(x), atol=1e-5, rtol=0)


def test_scores_of_the_input(photo: Tensor, noisy: Tensor) -> None:
    by_lq, by_input = restorer(), restorer(scores="input")
    torch.testing.assert_close(restored(photo, by_input), restored(photo, by_lq))  # alone, that is the input
    with by_lq.reading(noisy), by_input.reading(noisy):
        torch.testing.assert_close(by_lq.degradation(photo), by_lq.estimator(photo))
        torch.testing.assert_close(by_input.degradation(photo), by_input.estimator(noisy))
        other = restored(photo, by_input)
    assert (other - restored(photo, by_input)).abs().max() > 1e-4
    with by_input.reading(torch.cat([noisy, noisy])), pytest.raises(InputError, match="2 pictures to read for 1 to restore"):
        by_input.degradation(photo)


class Darker(nn.Module):
    """Stands for a projector."""

    scale = 1

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


@pytest.mark.parametrize("scores", ["lq", "input"])
def test_a_wrapped_one_is_told_its_input(photo: Tensor, scores: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    built = restorer(scores=scores)
    seen: list[Tensor] = []
    estimator = built.estimator

    def watched(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return estimator(pictures)  # type: ignore[no-any-return]

    robust = wrap(built, projector=None)
    monkeypatch.setattr(robust, "project", lambda elq, **_: 0.5 * elq)
    monkeypatch.setattr(robust, "_look", lambda elq, prompts, *_, **__: (0.5 * elq, prompts, ()))
    monkeypatch.setattr(built, "estimator", watched)
    with torch.no_grad():
        robust.restore(photo)
    torch.testing.assert_close(seen[0], photo if scores == "input" else 0.5 * photo)


EFFECTS: dict[str, dict[str, Any]] = {
    "guidance_scale": {"guidance_scale": 3.0},
    "no guidance": {"guidance_scale": 1.0},
    "added_prompt": {"added_prompt": "a photo of a cat"},
    "negative_prompt": {"negative_prompt": "noise"},
    "color": {"color": "adain"},
    "no color": {"color": "none"},
    "latent_tile": {"latent_tile": 8, "latent_overlap": 4},
    "compat": {"compat": "upstream"},
    "bfloat16": {"dtype": "bfloat16"},
}


@pytest.mark.parametrize("name", EFFECTS)
def test_options_have_an_effect(name: str, photo: Tensor) -> None:
    parts = copy.deepcopy(loaded()) if name == "bfloat16" else None
    assert (restored(photo, restorer()) - restored(photo, restorer(parts, **EFFECTS[name]))).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scores": "elq"}, "scores='elq'; expected lq or input"),
        ({"score_gradient": 2}, "score_gradient=2; expected True or False"),
        ({"guidance_scale": -1}, "guidance_scale"),
        ({"batch": 0}, "batch"),
        ({"added_prompt": None}, "added_prompt=None: expected a text"),
        ({"color": "no fix"}, "color='no fix'; expected adain, wavelet or none"),
        ({"latent_tile": 0}, "latent_tile"),
        ({"vae_tiles": {"encoder": 512}}, "vae_tiles are for compat='upstream'"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        restorer(**options)


@pytest.mark.parametrize("size", [(16, 24), (1, 1), (3, 50), (17, 9)])
@pytest.mark.parametrize("scale", [None, 1.0, 2.5])
def test_every_size_and_scale(size: tuple[int, int], scale: float | None, photo: Tensor) -> None:
    result = restored(resize(photo, size).clamp(0, 1), restorer(), scale=scale)
    assert result.shape[-2:] == output_size(*size, 4.0 if scale is None else scale)
    assert torch.isfinite(result).all()


def test_compat_says_what_it_cannot(photo: Tensor) -> None:
    built = restorer(compat="upstream")
    with pytest.raises(ConfigError, match=r"8 x 8 pixels, 4 times enlarged: the published script cannot reflect so small"):
        restored(resize(photo, (8, 8)).clamp(0, 1), built)
    with pytest.raises(ConfigError, match="the published script enlarges by whole numbers"):
        restored(photo, built, scale=1.5)


def test_long_thin_pictures_come_to_an_end(photo: Tensor) -> None:
    result = restored(resize(photo, (8, 150)).clamp(0, 1), restorer(latent_tile=12, latent_overlap=8))
    assert result.shape == (1, 3, 32, 600)
    compat = restorer(compat="upstream", latent_tile=12, latent_overlap=8)
    with pytest.raises(ConfigError, match="an overlap of 8 leaves no step between tiles of 8"):
        restored(resize(photo, (16, 150)).clamp(0, 1), compat)


def test_prompts(photo: Tensor) -> None:
    built = restorer()
    assert built.texts(2, [Prompt("a boat"), None]) == [f"a boat, {POSITIVE}", POSITIVE]
    with pytest.raises(InputError, match="2 prompts for 1 pictures"):
        built.restore(photo, prompts=[None, None])


def test_how_much_is_worked_on_at_a_time_changes_nothing(photo: Tensor) -> None:
    one, many = (restorer(batch=batch, latent_tile=8, latent_overlap=2) for batch in (1, 16))
    torch.testing.assert_close(restored(photo, one), restored(photo, many), atol=2e-4, rtol=0)


def test_a_budget_moves_parts_and_changes_nothing(photo: Tensor) -> None:
    expected = restored(photo, restorer())
    built = restorer(copy.deepcopy(loaded()), memory=0.2)
    torch.testing.assert_close(restored(photo, built), expected, atol=1e-4, rtol=0)
    assert built.base.offload is not None
    with pytest.warns(UserWarning, match="the budget is"):
        restored(photo, restorer(copy.deepcopy(loaded()), memory=0.001))


def test_without_noise_the_mean_is_taken(photo: Tensor) -> None:
    built = restorer()
    with torch.no_grad():
        first, second = built.restore(photo), built.restore(photo)
    assert torch.equal(first, second)
    assert (first - restored(photo, built)).abs().max() > 1e-3


def gradients(lq: Tensor, weight: Tensor, **options: Any) -> Tensor:
    x = lq.clone().requires_grad_()
    loss = (restorer(**options).restore(x, noise=SeededNoise([0])) * weight).sum()
    return torch.autograd.grad(loss, x)[0]


def test_gradients_pass_through_picture_and_scores(photo: Tensor) -> None:
    built = copy.deepcopy(restorer(color="none"))
    parts = (built.base.unet, built.base.vae, built.base.text.encoder, built.trained, built.estimator)
    for part in parts:
        part.double()
    generator = torch.Generator().manual_seed(0)
    lq = photo.double().clamp(0.05, 0.95)
    weight = torch.randn(1, 3, 64, 96, generator=generator, dtype=torch.float64)
    direction = torch.randn(lq.shape, generator=generator, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        scores = built.estimator(x)
        seen = resize(x, (64, 128)) * 2 - 1
        found = built.step(seen, scores, built.texts(1, None), SeededNoise([0])).picture
        return (found[..., :96] * weight).sum()

    x = lq.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(x), x)
    step = 1e-4  # pictures are enlarged in float32
    with torch.no_grad():
        slope = (loss(lq + step * direction) - loss(lq - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-3)

    attached, detached = (gradients(photo, weight.float(), score_gradient=on) for on in (True, False))
    by_input = gradients(photo, weight.float(), scores="input", score_gradient=False)
    torch.testing.assert_close(detached, by_input)
    share = ((attached - detached).norm() / attached.norm()).item()
    assert 0.01 < share < 2


def test_projectors_on_the_same_base_do_not_act(photo: Tensor) -> None:
    from pnp_irib.diffusion.lora import add_adapter

    base, trained, estimator = copy.deepcopy(loaded())
    expected = restored(photo, restorer())
    add_adapter(base.unet, "other", ["mid_block.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in"], rank=2, alpha=2)
    for name, parameter in base.unet.named_parameters():
        if ".lora_B.other" in name:
            parameter.data.fill_(1.0)
    built = restorer((base, trained, estimator))
    with base.acting(["other"]):
        torch.testing.assert_close(restored(photo, built), expected, atol=1e-5, rtol=0)


def test_read_without_running_what_it_may_hold(tmp_path: Path) -> None:
    torch.save({"state_dict_unet": Darker()}, tmp_path / "evil.pkl")
    with pytest.raises(WeightsError):
        read_trained(tmp_path / "evil.pkl")
