from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.classifiers import EfficientNetLite
from pnp_irib.errors import ConfigError, InputError
from pnp_irib.prompts import CallablePrompt, FixedPrompt, ImageNetTags, NoPrompt, Prompt, PromptExtractor, load_extractor


@pytest.fixture(scope="module")
def tags() -> ImageNetTags:
    return ImageNetTags()


@pytest.fixture(scope="module")
def animals(shared_dir: Path) -> Tensor:
    """A tench, an ostrich and an electric ray, (3, 3, 384, 384)."""
    folder = shared_dir / "data" / "train"
    wanted = ["n01440764_tench.JPEG", "n01518878_ostrich.JPEG", "n01496331_electric_ray.JPEG"]
    with (folder / "SOURCES.csv").open(newline="", encoding="utf-8") as file:
        files = {row["original"]: row["file"] for row in csv.DictReader(file)}
    pictures = [np.asarray(Image.open(folder / files[name]).convert("RGB")) for name in wanted]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_imagenet_tags_name_what_is_there(tags: ImageNetTags, animals: Tensor) -> None:
    prompts = tags(animals)
    assert [prompt.tags[0].name for prompt in prompts] == ["tench", "ostrich", "electric ray"]
    for prompt in prompts:
        scores = [tag.score for tag in prompt.tags]
        assert scores == sorted(scores, reverse=True)
        assert min(scores) >= tags.min_score
        assert prompt.text == ", ".join(tag.name for tag in prompt.tags)


def test_imagenet_tags_alone_and_in_a_batch_are_the_same_to_the_last_bit(tags: ImageNetTags, animals: Tensor) -> None:
    together = tags(animals)
    alone = [tags(one[None])[0] for one in animals]
    assert [p.tags for p in together] == [p.tags for p in alone]  # scores included


def test_imagenet_tags_show_the_network_one_picture_at_a_time(animals: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whether a batch gives other last digits depends on the machine; that no batch is formed does not.
    shown: list[int] = []
    classify = EfficientNetLite.classify

    def spy(net: EfficientNetLite, rgb: Tensor) -> Tensor:
        shown.append(len(rgb))
        return classify(net, rgb)

    monkeypatch.setattr(EfficientNetLite, "classify", spy)
    ImageNetTags()(animals)
    assert shown == [1, 1, 1]


def test_top_k_and_min_score(animals: Tensor) -> None:
    assert [len(p.tags) for p in ImageNetTags(top_k=7, min_score=0)(animals)] == [7, 7, 7]
    assert ImageNetTags(min_score=1)(torch.full((1, 3, 30, 30), 0.5)) == [Prompt("")]


@pytest.mark.parametrize("size", [(1, 1), (2, 90), (300, 41)])
def test_imagenet_tags_take_any_size(tags: ImageNetTags, size: tuple[int, int]) -> None:
    assert len(tags(torch.rand(2, 3, *size))) == 2
    assert tags(torch.rand(0, 3, *size)) == []


def test_imagenet_tags_read_estimates(tags: ImageNetTags, animals: Tensor) -> None:
    overshooting = (animals[:1] * 1.3 - 0.15).requires_grad_()
    before = overshooting.detach().clone()
    assert tags(overshooting)[0].tags == tags(overshooting.detach().clamp(0, 1))[0].tags  # scores included
    assert tags(animals[:1].double()) == tags(animals[:1])
    assert torch.equal(overshooting, before)
    with pytest.raises(InputError, match="NaN"):
        tags(torch.full((1, 3, 8, 8), float("nan")))


@pytest.mark.parametrize("wrong", [{"top_k": 0}, {"top_k": 1001}, {"min_score": 1.5}, {"min_score": float("nan")}])
def test_imagenet_tags_refuse_wrong_options(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ImageNetTags(**wrong)  # type: ignore[arg-type]


def test_nothing_is_loaded_before_the_first_call() -> None:
    code = (
        "import sys; from pnp_irib.prompts import load_extractor; load_extractor('imagenet-tags');"
        "assert 'pnp_irib.classifiers' not in sys.modules; assert 'torchvision' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_simple_extractors() -> None:
    pictures = torch.rand(2, 3, 4, 4)
    assert NoPrompt()(pictures) == [None, None]
    assert FixedPrompt(" a\nboat ")(pictures) == [Prompt("a boat")] * 2
    with pytest.raises(InputError):
        FixedPrompt(None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "prompts"),
    [
        ("boat", [Prompt("boat"), Prompt("boat")]),
        (Prompt("boat"), [Prompt("boat"), Prompt("boat")]),
        (None, [None, None]),
        (["boat", None], [Prompt("boat"), None]),
        ((Prompt("boat"), "sea"), [Prompt("boat"), Prompt("sea")]),
    ],
)
def test_callable_prompt(said: Sequence[str | None], prompts: list[Prompt | None]) -> None:
    received: list[Tensor] = []
    pictures = torch.rand(2, 3, 4, 4)

    def caption(batch: Tensor) -> Sequence[str | None]:
        received.append(batch)
        return said

    assert CallablePrompt(caption)(pictures) == prompts
    assert received[0] is pictures


@pytest.mark.parametrize("said", [["one"], ["1", "2", "3"], [], [1, 2], 7, {"a": 1, "b": 2}])
def test_callable_prompt_refuses_what_is_no_prompt(said: object) -> None:
    with pytest.raises(InputError):
        CallablePrompt(lambda _: said)(torch.rand(2, 3, 4, 4))  # type: ignore[arg-type, return-value]


class Captioner:
    name = "captioner"

    def __call__(self, pictures: Tensor, /) -> list[Prompt]:
        return [Prompt("x")] * len(pictures)


def test_load_extractor() -> None:
    assert load_extractor(None) == load_extractor("none") == NoPrompt()
    assert load_extractor("fixed:a red boat: at sea") == FixedPrompt("a red boat: at sea")
    assert isinstance(load_extractor("imagenet-tags"), ImageNetTags)
    mine = Captioner()
    assert load_extractor(mine) is mine

    def caption(pictures: Tensor) -> str:
        return "boat"

    assert load_extractor(caption) == CallablePrompt(caption)
    for extractor in (NoPrompt(), FixedPrompt("x"), CallablePrompt(caption), ImageNetTags(), mine):
        assert isinstance(extractor, PromptExtractor)


@pytest.mark.parametrize(
    ("wrong", "advice"),
    [
        ("imagenet-tag", "Did you mean 'imagenet-tags'"),
        ("fixed", "fixed:TEXT"),
        ("fixed: \n", "write fixed:TEXT"),
        ("", "Known: none, imagenet-tags"),
        (7, "int"),
        (NoPrompt, r"write NoPrompt\(\.\.\.\)"),
    ],
)
def test_load_extractor_advises(wrong: object, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        load_extractor(wrong)  # type: ignore[arg-type]
