"""Pipelines of diffusers as restorers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from pnp_irib import wrap
from pnp_irib.errors import ConfigError, InputError, WrapError
from pnp_irib.images.resize import resize
from pnp_irib.noise import ReplayedNoise, SeededNoise
from pnp_irib.profile import PRESETS
from pnp_irib.prompts import Prompt
from pnp_irib.restorer import Restorer
from pnp_irib_diffusers.recognise import RECOGNISER
from pnp_irib_diffusers.restorer import PipelineRestorer
from pnp_irib_diffusers.spec import KINDS
from tests.adapters.diffusers.pipelines import Parts
from tests.wrapper.state import generators, same, snapshot

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # of EulerDiscreteScheduler


class Black(nn.Module):
    """A safety checker that finds every picture unsafe."""

    device = torch.device("cpu")

    def forward(self, *, images: Any, clip_input: Tensor) -> tuple[Any, list[bool]]:
        return images, [True] * len(images)


MAKERS: dict[str, Callable[[Parts], Any]] = {
    "StableDiffusionUpscalePipeline": Parts.upscale,
    "StableDiffusionLatentUpscalePipeline": Parts.latent_upscale,
    "StableDiffusionImg2ImgPipeline": Parts.img2img,
    "StableDiffusionXLImg2ImgPipeline": Parts.img2img_xl,
    "StableDiffusionControlNetImg2ImgPipeline": Parts.controlnet_img2img,
    "StableDiffusionControlNetPipeline": Parts.controlnet,
}


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def make(parts: Parts, name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return MAKERS[name](parts)


@pytest.fixture(scope="module", params=MAKERS)
def pipeline(request: pytest.FixtureRequest, parts: Parts) -> Any:
    return make(parts, request.param)


@pytest.fixture(scope="module")
def restorer(pipeline: Any) -> PipelineRestorer:
    strength = 1.0 if KINDS[type(pipeline).__name__].strength else None
    return PipelineRestorer(pipeline, steps=2, strength=strength)


@pytest.fixture(scope="module")
def img2img(parts: Parts) -> Any:
    return make(parts, "StableDiffusionImg2ImgPipeline")


def picture(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_every_kind_is_tested() -> None:
    assert MAKERS.keys() == KINDS.keys()
    assert all(hasattr(diffusers, name) for name in KINDS)


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (17, 16)])
def test_sizes(restorer: PipelineRestorer, size: tuple[int, int]) -> None:
    lq = picture(1, *size)
    native = restorer.spec.scale or 1
    restored = restorer.restore(lq)
    assert restored.shape == (1, 3, native * size[0], native * size[1])
    assert restored.dtype == torch.float32
    assert restored.min() >= 0
    assert restored.max() <= 1
    assert restored.std() > 0 or size == (1, 1)
    assert not restored.requires_grad
    enlarged = restorer.restore(lq, scale=1.7)
    assert enlarged.shape == (1, 3, round(1.7 * size[0]), round(1.7 * size[1]))


def test_facts(restorer: PipelineRestorer, pipeline: Any) -> None:
    assert isinstance(restorer, Restorer)
    spec, kind = restorer.spec, KINDS[type(pipeline).__name__]
    assert (spec.name, spec.scale, spec.prompts, spec.differentiable) == (kind.name, kind.scale, "optional", False)
    assert (spec.multiple_of, spec.min_size) == {4: (4, 4), 2: (4, 8), None: (1, 1)}[kind.scale]
    assert spec.default_scale == (None if kind.scale else 1)
    assert spec.weights_licence.commercial is None
    assert (restorer.device, restorer.dtype) == (torch.device("cpu"), torch.float32)


def test_batches_seeds_prompts_and_pictures(restorer: PipelineRestorer) -> None:
    lq, prompts = picture(1, 6, 10).expand(2, 3, 6, 10), [Prompt("a cat"), None]

    def one(seed: int, prompt: Prompt | None, given: Tensor = lq[:1]) -> Tensor:
        return restorer.restore(given, prompts=[prompt], noise=SeededNoise([seed]))

    both = restorer.restore(lq, prompts=prompts, noise=SeededNoise([3, 4]))
    assert torch.equal(both[:1], one(3, prompts[0]))
    assert torch.equal(both[1:], one(4, Prompt("")))
    assert not torch.equal(one(3, None), one(3, prompts[0]))
    assert not torch.equal(one(3, None), one(4, None))
    assert torch.equal(restorer.restore(lq[:1]), one(0, None))
    assert not torch.equal(one(3, None), one(3, None, 1 - lq[:1]))


def test_the_pipeline_comes_out_as_it_went_in(restorer: PipelineRestorer, pipeline: Any) -> None:
    pipeline.unet.train()
    next(pipeline.vae.parameters()).requires_grad_(False)
    pipeline.scheduler.set_timesteps(7)
    pipeline.set_progress_bar_config(desc="mine")

    def state() -> list[Any]:
        modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
        schedulers = [value for key, value in pipeline.components.items() if "scheduler" in key]
        inside = [(id(s), *((key, copy.deepcopy(value)) for key, value in vars(s).items())) for s in schedulers]
        own = {key: id(value) for key, value in vars(pipeline).items()}
        return [*map(snapshot, modules), [torch.as_tensor(v) if isinstance(v, Tensor) else v for v in inside], own]

    before, random, lq = state(), generators(), picture(1, 4, 6)
    with torch.inference_mode():
        restorer.restore(lq, noise=SeededNoise([1]))
    assert vars(pipeline)["_progress_bar_config"] == {"desc": "mine"}
    after = state()
    assert same(after[:-2], before[:-2])
    assert str(after[-2]) == str(before[-2])
    assert after[-1] == before[-1]
    assert same(generators(), random)
    assert torch.equal(lq, picture(1, 4, 6))
    pipeline.unet.eval()


def test_pictures_are_enlarged_before(img2img: Any) -> None:
    lq = picture(1, 5, 9)
    restorer = PipelineRestorer(img2img, steps=4, strength=0.5)
    assert torch.equal(restorer.restore(lq, scale=2), restorer.restore(resize(lq, (10, 18))))


def test_it_is_the_pipeline_itself(img2img: Any) -> None:
    lq = picture(1, 8, 12)
    own = PipelineRestorer(img2img, steps=6, strength=0.5, guidance=3, negative_prompt="blur")
    noise = SeededNoise([5])
    expected = img2img(
        prompt="a cat",
        image=lq,
        num_inference_steps=6,
        strength=0.5,
        guidance_scale=3,
        negative_prompt="blur",
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    assert torch.equal(own.restore(lq, prompts=[Prompt("a cat")], noise=noise), expected)


def test_wrapped_pipelines(pipeline: Any, restorer: PipelineRestorer) -> None:
    robust, lq = wrap(restorer, projector=None), picture(2, 5, 9)
    native = restorer.spec.scale or 1
    first = robust(lq[0], seed=3, prompt="a cat").restored
    assert first.shape == (1, 3, 5 * native, 9 * native)
    assert torch.equal(robust(lq[0], seed=3, prompt="a cat").restored, first)
    assert not torch.equal(robust(lq[0], seed=4, prompt="a cat").restored, first)
    assert not torch.equal(robust(lq[0], seed=3).restored, first)
    assert robust(lq[1], scale=1.5).restored.shape == (1, 3, 8, 14)


def test_every_option_counts(img2img: Any) -> None:
    lq, base = picture(1, 8, 8), {"steps": 4, "strength": 0.5, "guidance": 5.0}

    def restored(**options: Any) -> Tensor:
        return PipelineRestorer(img2img, **base | options).restore(lq)

    first = restored()
    for options in ({"steps": 6}, {"strength": 1}, {"guidance": 0}, {"negative_prompt": "a cat"}):
        assert not torch.equal(restored(**options), first), options


def test_other_sources_of_noise_give_their_own_seeds(img2img: Any) -> None:
    restorer, lq = PipelineRestorer(img2img, steps=4, strength=0.5), picture(1, 8, 8)

    def restored(value: float) -> Tensor:
        return restorer.restore(lq, noise=ReplayedNoise([torch.full((1, 1), value)]))

    assert torch.equal(restored(-0.3), restored(-0.3))
    assert not torch.equal(restored(-0.3), restored(0.4))


def test_moving_moves_the_pipeline(parts: Parts) -> None:
    pipeline = make(parts, "StableDiffusionImg2ImgPipeline")
    restorer = PipelineRestorer(pipeline, steps=2, strength=1)
    assert restorer.to("cpu", torch.bfloat16) is restorer
    assert pipeline.vae.dtype == pipeline.unet.dtype == restorer.dtype == torch.bfloat16
    assert restorer.restore(picture(1, 4, 4)).dtype == torch.float32


def test_a_picture_that_was_painted_black_is_an_error(parts: Parts) -> None:
    from transformers import CLIPImageProcessor

    checked = parts.small(safety_checker=Black(), feature_extractor=CLIPImageProcessor(size=8, crop_size=8))
    pipeline = diffusers.StableDiffusionImg2ImgPipeline(**checked)
    with pytest.raises(InputError, match=r"safety checker .* painted it black. Build the pipeline with safety_checker=None"):
        PipelineRestorer(pipeline, steps=2, strength=1).restore(picture(1, 4, 4))


# Recognition and what is refused


def test_pipelines_are_recognised(img2img: Any) -> None:
    assert RECOGNISER.recognises(img2img)
    assert not any(RECOGNISER.recognises(other) for other in (img2img.unet, len, "diffusers", None))
    restorer = RECOGNISER.build(img2img, steps=4, strength=0.5, lq_profile=PRESETS["light"])
    assert isinstance(restorer, PipelineRestorer)
    assert restorer.spec.lq_profile == PRESETS["light"]


def test_subclasses_are_what_they_come_from(parts: Parts) -> None:
    class Mine(diffusers.StableDiffusionImg2ImgPipeline):
        pass

    kind: Any = Mine
    pipeline = kind(**parts.checked(), requires_safety_checker=False)
    restorer = RECOGNISER.build(pipeline, steps=2, strength=1)
    assert (restorer.spec.name, restorer.spec.title) == ("diffusers-img2img", "Mine of diffusers")
    assert restorer.restore(picture(1, 3, 4)).shape == (1, 3, 3, 4)


def test_pipelines_that_restore_nothing_are_refused(parts: Parts) -> None:
    drawing = diffusers.StableDiffusionPipeline(**parts.checked(), requires_safety_checker=False)
    filling = diffusers.StableDiffusionInpaintPipeline(
        **parts.checked(unet=parts.unet(in_channels=9)), requires_safety_checker=False
    )
    for pipeline in (drawing, filling):
        assert RECOGNISER.recognises(pipeline)
        with pytest.raises(WrapError, match=r"Pipeline of diffusers is not known as a restorer; known: StableDiff") as caught:
            RECOGNISER.build(pipeline, steps=3, anything=1)
        assert all(name in str(caught.value) for name in KINDS)


def test_parts_of_another_pipeline_are_told(parts: Parts) -> None:
    pipeline = parts.upscale(block_out_channels=(8, 16))
    with pytest.raises(InputError, match=r"gave \(3, 8, 8\) for \(3, 4, 4\), expected \(3, 16, 16\)\. Are its parts"):
        PipelineRestorer(pipeline, steps=1).restore(picture(1, 4, 4))


def test_several_control_nets_are_refused(parts: Parts) -> None:
    pipeline = make(parts, "StableDiffusionControlNetPipeline")
    several = diffusers.StableDiffusionControlNetPipeline(
        **parts.checked(), controlnet=[pipeline.controlnet] * 2, requires_safety_checker=False
    )
    with pytest.raises(WrapError, match=r"this StableDiffusionControlNetPipeline has several ControlNets; expected one"):
        PipelineRestorer(several)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, r"steps=0: expected a whole number above 0"),
        ({"steps": 2.5}, r"steps=2.5: expected a whole number"),
        ({"guidance": -1}, r"guidance=-1: expected a number from 0"),
        ({"strength": 0}, r"strength=0: expected a number above 0, at most 1"),
        ({"strength": 1.5}, r"strength=1.5: expected a number above 0, at most 1"),
        ({"steps": 2}, r"strength=0.3 of 2 steps is less than one step. Raise strength or steps"),
        ({"negative_prompt": 3}, r"negative_prompt=3: expected a text"),
        ({"step": 3}, r"no option 'step' here. Did you mean 'steps'.*Its options: steps, guidance, strength, negative_prompt"),
    ],
)
def test_impossible_options_are_told(img2img: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        RECOGNISER.build(img2img, **options)
    assert "\n" not in str(caught.value)


def test_strength_is_for_image_to_image_only(parts: Parts) -> None:
    pipeline = make(parts, "StableDiffusionControlNetPipeline")
    with pytest.raises(ConfigError, match=r"no option 'strength' here. Its options: steps, guidance, negative_prompt"):
        RECOGNISER.build(pipeline, strength=0.5)
    with pytest.raises(ConfigError, match=r"strength=0.5: StableDiffusionControlNetPipeline starts from noise alone"):
        PipelineRestorer(pipeline, strength=0.5)
