"""S3Diff in company: projectors in front, shared bases, other precisions, long prompts, the command line, saving."""

from __future__ import annotations

import copy
import pickle
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib import wrap
from pnp_irib.cli.restore import Job, Model, run
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.lora import add_adapter
from pnp_irib.diffusion.published import eight_bits
from pnp_irib.diffusion.samplers.tables import picture_from_eps
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.images.io import read_picture
from pnp_irib.images.resize import resize
from pnp_irib.noise import SeededNoise
from pnp_irib.projectors import LatentArchitecture, LatentProjector
from pnp_irib.prompts import Prompt
from pnp_irib.settings import LoadedByName, settings_of
from pnp_irib_s3diff import estimator as estimation
from pnp_irib_s3diff.checkpoint import read_trained
from pnp_irib_s3diff.restorer import NEGATIVE, POSITIVE, S3Diff
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


@torch.no_grad()
def scores(built: S3Diff, lq: Tensor) -> Tensor:
    return built.degradation(lq)


def test_what_is_read_is_one_restorers_and_one_threads(photo: Tensor, noisy: Tensor) -> None:
    one, other = restorer(scores="input"), restorer(scores="input")
    own, read = scores(one, photo), scores(one, noisy)
    assert not torch.equal(own, read)
    elsewhere: list[Tensor] = []
    with one.reading(noisy):
        assert torch.equal(scores(one, photo), read)
        assert torch.equal(scores(other, photo), own)
        with one.reading(photo), other.reading(noisy):
            assert torch.equal(scores(one, noisy), own)
        assert torch.equal(scores(one, photo), read)
        thread = threading.Thread(target=lambda: elsewhere.append(scores(one, photo)))
        thread.start()
        thread.join()
    assert torch.equal(elsewhere[0], own)
    assert torch.equal(scores(one, photo), own)


@pytest.mark.parametrize("by", ["lq", "input"])
def test_an_enlarged_projection_is_seen_in_the_size_of_the_input(photo: Tensor, by: Any, monkeypatch: Any) -> None:
    built = restorer(scores=by)
    large = resize(photo.flip(3), (64, 96)).clamp(0, 1)
    robust = wrap(built, projector=None)
    monkeypatch.setattr(robust, "_look", lambda elq, prompts, *_, **__: (large, prompts, ()))
    seen: list[Tensor] = []
    network = built.estimator

    def watched(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return network(pictures)  # type: ignore[no-any-return]

    monkeypatch.setattr(built, "estimator", watched)
    with torch.no_grad():
        assert robust.restore(photo).shape == (1, 3, 64, 96)
    torch.testing.assert_close(seen[0], photo if by == "input" else resize(large, (16, 24)).clamp(0, 1))
    with built.reading(resize(photo, (32, 48))):  # which nothing is gained by enlarging to
        built.degradation(photo)
    assert seen[1].shape[-2:] == ((32, 48) if by == "input" else (16, 24))


@pytest.mark.parametrize("size", [(97, 33), (128, 20), (75, 75)])
def test_large_pictures_are_scored_in_strips(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    network = copy.deepcopy(loaded()[2])
    pictures = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = network(pictures)
        first: Any = network.conv_first[0]
        heights: list[int] = []
        first.register_forward_hook(lambda _, given, __: heights.append(given[0].shape[2]))
        monkeypatch.setattr(estimation, "STRIP", 1)
        found = network(pictures)
    torch.testing.assert_close(found, whole, atol=1e-6, rtol=0)
    assert len(heights) > 1
    assert max(heights) < size[0]


def test_scores_and_mixing_stay_in_float32(photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    built, mixed = restorer(), []
    matrices = built.trained.matrices

    def watched(found: Tensor) -> tuple[Tensor, Tensor]:
        mixed.append(matrices(found))
        return mixed[-1]

    monkeypatch.setattr(built.trained, "matrices", watched)
    expected = scores(built, photo)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(scores(built, photo), expected)
        restored(photo, built)
    assert {x.dtype for x in mixed[0]} == {torch.float32}


def test_the_estimate_is_taken_in_float32(photo: Tensor) -> None:
    built = restorer(copy.deepcopy(loaded()), dtype="bfloat16")
    seen = resize(photo, (64, 128)) * 2 - 1
    with torch.no_grad():
        result = built.step(seen, built.degradation(photo), built.texts(1, None), SeededNoise([0]))
    assert result.noise.dtype == torch.float32
    assert not torch.equal(result.noise, result.noise.bfloat16().float())  # guidance is not rounded
    expected = picture_from_eps(result.latent.float(), result.noise, built.base.alphas[999].item())
    assert torch.equal(result.denoised, expected)
    assert {p.dtype for p in (*built.estimator.parameters(), *built.trained.of_unet.parameters())} == {torch.float32}


def test_it_follows_a_base_that_another_moves(photo: Tensor) -> None:
    parts = copy.deepcopy(loaded())
    built, expected = restorer(parts), restored(photo, restorer(copy.deepcopy(loaded()), dtype="bfloat16"))
    parts[0].to(dtype=torch.bfloat16)
    torch.testing.assert_close(restored(photo, built), expected, atol=1e-6, rtol=0)
    assert built.trained.unet.down[0].dtype == torch.bfloat16
    assert built.trained.of_unet.blocks.dtype == torch.float32


def test_a_base_that_was_changed_is_refused() -> None:
    base, trained, estimator = copy.deepcopy(loaded())
    base.fingerprint = None
    with pytest.raises(ConfigError, match="the base model is in use: another restorer changed its weights"):
        S3Diff(base, trained, estimator)


def test_adapters_of_others_do_not_act_in_the_decoder(photo: Tensor) -> None:
    parts = copy.deepcopy(loaded())
    built = restorer(parts)
    expected = restored(photo, built)
    add_adapter(parts[0].vae, "other", ["decoder.conv_in", "post_quant_conv"], rank=2, alpha=2)
    for name, parameter in parts[0].vae.named_parameters():
        if ".lora_B.other" in name:
            parameter.data.fill_(1.0)
    with parts[0].acting([], ["other"]):
        torch.testing.assert_close(restored(photo, built), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_projector_on_its_base_is_trained_through_it(photo: Tensor, recomputed: bool) -> None:
    base, trained, estimator = copy.deepcopy(loaded())
    built, elq = restorer((base, trained, estimator)), photo[..., :8, :16]
    projector = LatentProjector(LatentArchitecture(base=str(BASE), enlargement=4), base)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    def loss() -> Tensor:
        with built.reading(elq):
            return built.restore(projector.project(elq), scale=1.0).square().mean()

    def gradients() -> list[Tensor]:
        return list(torch.autograd.grad(loss(), list(projector.parameters()), allow_unused=True))

    expected = gradients()
    assert sum(float(g.abs().sum()) for g in expected if g is not None) > 0
    if not recomputed:
        parameter, gradient = max(zip(projector.parameters(), expected, strict=True), key=lambda p: float(p[1].norm()))
        step = 1e-3 * gradient / gradient.norm()
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * step)
                ends.append(loss().item())
                parameter.sub_(sign * step)
        assert (ends[0] - ends[1]) / 2e-3 == pytest.approx(float(gradient.norm()), rel=0.05)
        return
    with base.checkpointing():
        again = gradients()
    for found, wanted in zip(again, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)


def test_copies_and_pickles_are_the_same(photo: Tensor) -> None:
    built = restorer(copy.deepcopy(loaded()), memory=0.2, scores="input")
    expected = restored(photo, built)
    copied, pickled = copy.deepcopy(built), pickle.loads(pickle.dumps(built))
    for again in (copied, pickled):
        assert again.base is not built.base
        torch.testing.assert_close(restored(photo, again), expected)


def test_the_words_behind_a_long_prompt_are_read() -> None:
    built, embedder = restorer(), loaded()[0].text
    for long in ("a street with cars, " * 20, "街" * 200, "bicycle" * 60):
        (text,) = built.texts(1, [Prompt(long)])
        assert text.endswith(f", {POSITIVE}")
        own = text.removesuffix(f", {POSITIVE}")
        assert long.startswith(own)
        assert len(own) > 10
        assert embedder.longest - 8 <= embedder.length(text) <= embedder.longest
    assert built.texts(1, [Prompt("a street with cars, " * 20)])[0].removesuffix(f", {POSITIVE}").split()[-1] in "with cars,"
    (whole,) = restorer(compat="upstream").texts(1, [Prompt("街" * 200)])
    assert whole == f"{'街' * 200}, {POSITIVE}"
    assert max(embedder.length(text) for text in (POSITIVE, NEGATIVE)) <= embedder.longest


@pytest.mark.parametrize("option", ["added_prompt", "negative_prompt"])
def test_words_that_would_not_be_read_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option} has 80 tokens, and 75 are read. Shorten it"):
        S3Diff(*loaded(), **{option: "cat " * 80})  # type: ignore[arg-type]


def test_damaged_files_are_told(tmp_path: Path) -> None:
    content = torch.load(CHECKPOINT, weights_only=True)
    wrong: list[dict[str, Any]] = [
        {"state_embeddings": []},
        {"state_dict_unet": 3},
        {"w": torch.zeros(())},
        {"state_embeddings": {"state_dict_unet_block": {"weight": torch.zeros(4)}}},
    ]
    for changes in wrong:
        torch.save(content | changes, tmp_path / "wrong.pkl")
        with pytest.raises(WeightsError, match=r"wrong.pkl is damaged: .*"):
            read_trained(tmp_path / "wrong.pkl")


FILES = {"base": str(BASE), "checkpoint": str(CHECKPOINT), "degradation_net": str(ESTIMATOR)}


def test_on_the_command_line(tmp_path: Path, photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    load = StableDiffusion.load

    def watched(place: Path, *, dtype: torch.dtype, **given: Any) -> StableDiffusion:
        asked.append(dtype)
        return load(place, dtype=dtype, **given)

    monkeypatch.setattr(StableDiffusion, "load", watched)
    Image.fromarray(eight_bits(photo)[0]).save(tmp_path / "photo.png")
    job = Job([tmp_path / "photo.png"], tmp_path / "out.png", None, False, False, False, False, as_json=True)
    model = Model("s3diff", FILES | {"scores": "input"}, "none", None, "cpu", "bfloat16")
    assert run(job, model, {"lfo": 0, "strength": 1.0, "prompt": None}) == 0
    assert asked == [torch.bfloat16]  # read in the dtype that it runs in
    assert Image.open(tmp_path / "out.png").size == (96, 64)


def test_files_of_this_machine_are_not_saved_as_options() -> None:
    saved = settings_of(LoadedByName("s3diff", FILES | {"scores": "input"}), [], 0, None)
    assert saved.options == {"scores": "input"}
    assert saved.needs == {"base": "sd-turbo", "checkpoint": "s3diff.pkl", "degradation_net": "de_net.pth"}


@torch.no_grad()
def test_prompts_scores_and_tiles_of_a_batch_do_not_meet(photo: Tensor, noisy: Tensor) -> None:
    two, prompts = torch.cat([photo, noisy]), [Prompt("a boat"), None]
    built = restorer(latent_tile=7, latent_overlap=1, batch=3)  # sides that the UNet cannot halve
    together = restored(two, built, prompts=prompts)
    for number in range(2):
        alone = built.restore(two[number : number + 1], prompts=prompts[number : number + 1], noise=SeededNoise([number]))
        torch.testing.assert_close(together[number : number + 1], alone, atol=3e-4, rtol=0)
    with built.reading(two), pytest.raises(InputError, match="2 pictures to read for 1 to restore"):
        built.degradation(photo)
