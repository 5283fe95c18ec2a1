"""RAM and DAPE as what reads prompts off pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pnp_irib import load_restorer, wrap
from pnp_irib.errors import ConfigError, InputError, WeightsError
from pnp_irib.files import sha256_of
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import PixelArchitecture
from pnp_irib.prompts import Prompt, PromptExtractor, RamTags, load_extractor
from pnp_irib.prompts.ram.model import RamModel
from pnp_irib.prompts.ram.network import RamNetwork
from tests.prompts.ram.tiny import SIZES, Tiny
from tests.wrapper.models import Stated


def pictures(count: int, height: int = 21, width: int = 34, seed: int = 4) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def embedding_of(prompt: Prompt | None) -> Tensor:
    assert prompt is not None
    assert prompt.embedding is not None
    return prompt.embedding


def test_tags_are_those_above_their_thresholds(tmp_path: Path) -> None:
    tiny = Tiny(SIZES["plain"])
    scores = RamTags(tiny.write(tmp_path / "a")).network(pictures(1)).logits.sigmoid()[0]
    # At the score itself a tag is off, one step of float32 below it is on.
    lower = torch.nextafter(scores, torch.zeros(1))
    expected = [0, 3, 4]
    thresholds = tuple(lower[i].item() if i in expected else scores[i].item() for i in range(len(scores)))
    extractor = RamTags(Tiny(SIZES["plain"], thresholds=thresholds).write(tmp_path / "b"))
    prompt = extractor(pictures(1))[0]
    assert prompt.text == "thing 0, thing 3, thing 4"
    assert [tag.score for tag in prompt.tags] == [scores[i].item() for i in expected]
    never = RamTags(Tiny(SIZES["plain"], thresholds=(1.0,) * 7).write(tmp_path / "c"))
    assert (never(pictures(1))[0].text, never(pictures(1))[0].tags) == ("", ())


def test_the_embedding_is_on_the_prompt(folder: Path) -> None:
    extractor = RamTags(folder)
    given = pictures(3)
    prompts = extractor(given)
    with torch.no_grad():
        expected = extractor.network.embed(given)
    for prompt, embedding in zip(prompts, expected, strict=True):
        found = embedding_of(prompt)
        assert (found.shape, found.dtype, found.requires_grad) == ((17, 10), torch.float32, False)
        torch.testing.assert_close(found, embedding, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[0], found[1:].mean(0), atol=1e-5, rtol=1e-5)
    assert prompts[0] == Prompt(prompts[0].text, prompts[0].tags)  # embeddings do not count
    assert "embedding (17, 10)" in repr(prompts[0])


def test_alone_and_in_a_batch_are_the_same_to_the_last_bit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor, given = RamTags(folder), pictures(3)
    shown: list[int] = []
    embed = RamNetwork.embed

    def spy(net: RamNetwork, shown_to_it: Tensor) -> Tensor:
        shown.append(len(shown_to_it))
        return embed(net, shown_to_it)

    monkeypatch.setattr(RamNetwork, "embed", spy)
    together = extractor(given)
    for i, one in enumerate(given):
        (alone,) = extractor(one[None])
        assert alone.tags == together[i].tags
        assert torch.equal(embedding_of(alone), embedding_of(together[i]))
    assert set(shown) == {1}  # whether batches differ depends on the machine; that none is formed does not


def test_pictures_of_any_kind(folder: Path) -> None:
    extractor = RamTags(folder)
    assert extractor(pictures(0)) == []
    for size in ((1, 1), (2, 90), (300, 41)):
        assert len(extractor(pictures(2, *size))) == 2
    overshooting = (pictures(1) * 1.4 - 0.2).requires_grad_()
    before = overshooting.detach().clone()
    (seen,), (clipped,) = extractor(overshooting), extractor(before.clamp(0, 1))
    assert seen.tags == clipped.tags
    assert torch.equal(overshooting, before)
    assert extractor(pictures(1).double())[0].tags == extractor(pictures(1))[0].tags
    assert not torch.equal(extractor.network.embed(before), extractor.network.embed(before.clamp(0, 1)))  # as published


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((1, 3, 8, 8), float("nan")),
        torch.full((1, 3, 8, 8), float("inf")),
        torch.rand(3, 8, 8),
        torch.rand(1, 1, 8, 8),
        torch.rand(1, 3, 0, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_refused(folder: Path, wrong: Tensor) -> None:
    with pytest.raises(InputError, match="pictures must be"):
        RamTags(folder)(wrong)


@pytest.mark.parametrize("dtype", ["bfloat16", torch.float16])
def test_half_precision(folder: Path, dtype: str | torch.dtype) -> None:
    whole, low = RamTags(folder), RamTags(folder, dtype=dtype)
    (a,), (b,) = whole(pictures(1)), low(pictures(1))
    assert low.network.dtype == low.dtype != torch.float32
    assert embedding_of(b).dtype == torch.float32
    assert 0 < (embedding_of(a) - embedding_of(b)).abs().mean() < 0.1 * embedding_of(a).abs().mean()
    assert low.to(dtype="float32").network.dtype == torch.float32
    assert low(pictures(1))
    for wrong in ("float8", torch.float64, torch.int32):
        with pytest.raises(ConfigError, match="float32"):
            RamTags(folder, dtype=wrong)


def test_an_overflow_is_told(folder: Path) -> None:
    content = torch.load(folder / "ram_swin_large_14m.pth", weights_only=True)
    content["model"]["image_proj.bias"].fill_(1e5)
    torch.save(content, folder / "ram_swin_large_14m.pth")
    assert RamTags(folder)(pictures(1))
    with pytest.raises(ConfigError, match="float16 cannot hold; use float32"):
        RamTags(folder, dtype="float16")(pictures(1))
    content["model"]["image_proj.bias"].fill_(float("nan"))
    torch.save(content, folder / "ram_swin_large_14m.pth")
    with pytest.raises(WeightsError, match="damaged"):
        RamTags(folder)(pictures(1))


def test_gradients_reach_the_pictures_after_inference_mode(folder: Path) -> None:
    extractor = RamTags(folder)
    with torch.inference_mode():
        extractor(pictures(1))
        model = RamModel.read(folder)
    assert not any(parameter.is_inference() for parameter in model.network.parameters())
    given = pictures(2).requires_grad_()
    extractor.network.embed(given).square().sum().backward()
    assert given.grad is not None
    assert given.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in extractor.network.parameters())
    again = pictures(2).requires_grad_()
    extractor.network(again).logits.sum().backward()
    assert again.grad is not None
    assert again.grad.abs().sum() > 0


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    RamTags(folder)(pictures(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_by_name(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RamModel.read(folder).save(tmp_path / "dape.safetensors")
    dape, plain = load_extractor(f"dape:{folder}"), load_extractor(f"ram:{folder}")
    monkeypatch.chdir(tmp_path)
    copy = load_extractor("dape:local-dir:dape.safetensors")
    assert [extractor.name for extractor in (dape, plain, copy)] == ["dape", "ram", "dape"]
    assert isinstance(dape, PromptExtractor)
    assert repr(plain) == f"RamTags({str(folder)!r}, lora=False, dtype='float32')"
    monkeypatch.chdir("/")
    scores = [[tag.score for tag in extractor(pictures(1))[0].tags] for extractor in (dape, plain, copy)]  # type: ignore[union-attr]
    assert scores[0] == scores[2] != scores[1]
    (folder / "DAPE.pth").unlink()
    assert load_extractor(f"ram:{folder}")(pictures(1))[0] is not None
    for wrong, said in (
        (f"dape:{folder}", "DAPE.pth"),
        ("dape:no/such/place", "nothing is at .*no/such/place"),
        ("ram:hf-hub", "nothing is at .*hf-hub"),
    ):
        with pytest.raises(WeightsError, match=said):
            load_extractor(wrong)
    for wrong, said in (("dape:", "write dape:PATH"), ("dape", "dape:PATH"), ("dap:x", "dape:PATH")):
        with pytest.raises(ConfigError, match=said):
            load_extractor(wrong)


def test_nothing_is_loaded_before_the_first_call(folder: Path) -> None:
    code = (
        "import sys; from pnp_irib.prompts import load_extractor;"
        "assert {m for m in sys.modules if m.startswith('pnp_irib.prompts.ram.')} == {'pnp_irib.prompts.ram.extractor'};"
        f"assert load_extractor('dape:{folder}')._model is None; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    extractor = RamTags("hf-hub:owner/repo/dape.safetensors")  # nor fetched
    assert extractor._model is None


def small_projector() -> PixelProjector:
    sizes = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
    projector = PixelProjector(sizes)
    with torch.no_grad():
        projector.head.weight.normal_(0, 0.1)
        projector.prompt.words.weight.normal_(0, 3)
    return projector


def test_looking_forward_ends_when_nothing_new_is_read(tmp_path: Path) -> None:
    # No tag ever fires: the projector, which reads text alone, gives the same again, though the embedding was news once.
    folder = Tiny(SIZES["plain"], thresholds=(1.0,) * 7).write(tmp_path / "model")
    result = wrap(Stated(), projector=small_projector(), extractor=f"dape:{folder}", lfo=5)(pictures(1, 12, 16))
    assert len(result.trace) == 2
    assert torch.equal(result.trace[0].lq, result.trace[1].lq)
    assert result.prompt is not None
    assert torch.equal(embedding_of(result.prompt), embedding_of(RamTags(folder)(result.lq)[0]))


@pytest.mark.parametrize("copy", [False, True])
def test_looking_forward(folder: Path, tmp_path: Path, copy: bool) -> None:
    place = folder
    if copy:
        place = tmp_path / "dape.safetensors"
        RamModel.read(folder).save(place)
    restorer, projector = Stated(prompts="optional"), small_projector()
    robust = wrap(restorer, projector=projector, extractor=f"dape:{place}", lfo=1)
    elq = pictures(1, 12, 16)
    result = robust(elq)
    assert [step.index for step in result.trace] == [0, 1]
    reader = RamTags(folder)
    # Round 1 is made with what is read off the estimate of round 0, and the restorer is given the same.
    for step, seen in zip(result.trace, (elq, result.trace[0].lq[None]), strict=True):
        (expected,) = reader(seen)
        assert torch.equal(embedding_of(step.prompt), embedding_of(expected))
        assert step.prompt is not None
        assert step.prompt.tags == expected.tags
    (given,) = restorer.prompts[-1]
    assert given is result.prompt
    assert given.embedding.shape == (17, 10)
    names = {name.rpartition("/")[2]: sha256 for name, sha256 in result.used.files.items()}
    name = "dape.safetensors" if copy else "DAPE.pth"
    assert names[name] == sha256_of(place if copy else folder / "DAPE.pth")


def test_with_a_real_restorer(folder: Path) -> None:
    robust = wrap(
        load_restorer("realesr-animevideov3", dtype="float32"), projector=small_projector(), extractor=f"dape:{folder}"
    )
    result = robust(pictures(1, 12, 16), lfo=2)
    assert result.prompt is not None
    assert result.restored.shape == (1, 3, 48, 64)
    alone = [robust(one, lfo=1) for one in pictures(2, 12, 16)]
    for one, again in zip(alone, robust(list(pictures(2, 12, 16)), lfo=1), strict=True):
        assert torch.equal(one.restored, again.restored)


def test_a_path_is_not_saved(folder: Path, tmp_path: Path) -> None:
    robust = wrap("realesr-animevideov3", projector=small_projector(), extractor=f"dape:{folder}")
    with pytest.raises(ConfigError, match="file of this machine"):
        robust.save_pretrained(tmp_path / "saved")
    with pytest.raises(ConfigError, match="'dape' is an object of yours"):
        wrap("realesr-animevideov3", projector=small_projector(), extractor=load_extractor(f"dape:{folder}")).save_pretrained(
            tmp_path / "saved"
        )
    hub = "dape:hf-hub:owner/repo/dape.safetensors"
    wrap("realesr-animevideov3", projector=small_projector(), extractor=hub).save_pretrained(tmp_path / "saved")
    settings = next((tmp_path / "saved").glob("*wrap*.json"))
    assert hub in settings.read_text()
    settings.write_text(settings.read_text().replace(hub, f"dape:{folder}"))
    from pnp_irib import WrappedRestorer

    with pytest.raises(WeightsError, match="cannot come from a saved folder"):
        WrappedRestorer.from_pretrained(tmp_path / "saved")
