"""Image-text models of transformers as what reads prompts off pictures."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoProcessor,
    BlipForConditionalGeneration,
    CLIPTextConfig,
    LlavaForConditionalGeneration,
    VisionEncoderDecoderModel,
    ViTImageProcessor,
)
from transformers.utils.logging import is_progress_bar_enabled

import pnp_irib.hub.download as download
from pnp_irib import wrap
from pnp_irib.errors import ConfigError, InputError, MissingExtraError, PnPIribError, WeightsError
from pnp_irib.files import sha256_of
from pnp_irib.prompts import Captions, Prompt, PromptExtractor, load_extractor
from pnp_irib.prompts.captioner import QUESTION
from pnp_irib.prompts.loading import file_of
from pnp_irib.settings import saved_name
from tests.hub.server import HubServer
from tests.prompts import captioners
from tests.wrapper.models import Stated

BEGINNING = "word5\nword6\n"
TOKENS = 6


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioners.blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioners.llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def vit_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captioners.vit_gpt2(tmp_path_factory.mktemp("vit_gpt2"))


@pytest.fixture
def copy(blip: Path, tmp_path: Path) -> Path:
    """A captioner to be damaged."""
    return Path(shutil.copytree(blip, tmp_path / "copy"))


def pictures() -> Tensor:
    """Four that differ much, (4, 3, 40, 50)."""
    made = torch.rand(4, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    made[0] *= 0.1
    made[1, 0] = 1
    made[2] = (made[2] > 0.5).float()
    return made


def in_8_bits(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().permute(1, 2, 0).to(torch.uint8).numpy())


def texts(place: str | Path, shown: Tensor, **options: Any) -> list[str]:
    return [str(prompt) for prompt in Captions(place, max_new_tokens=TOKENS, **options)(shown)]


def likeliest(model: Any, words: Tensor, shown: Tensor) -> list[int]:
    """The next words by hand: at each step the whole text anew."""
    new: list[int] = []
    while len(new) < TOKENS and 2 not in new:
        logits = model(input_ids=torch.cat((words, torch.tensor([new], dtype=torch.long)), 1), pixel_values=shown).logits
        new.append(int(logits[0, -1].argmax()))
    return new


def line(tokens: list[int]) -> str:
    return " ".join(captioners.WORDS[token].strip() for token in tokens if token >= len(captioners.SPECIAL))


@torch.no_grad()
@pytest.mark.parametrize("beginning", [None, BEGINNING])
def test_a_captioner_goes_on_by_itself(blip: Path, beginning: str | None) -> None:
    model, processor = BlipForConditionalGeneration.from_pretrained(blip).eval(), AutoProcessor.from_pretrained(blip)
    # Words of BLIP begin with bos. The text says word5, word6, which is no part of what is read.
    words = torch.tensor(
        [[1]] if beginning is None else [[1, captioners.WORDS.index("word5\n"), captioners.WORDS.index("word6\n")]]
    )
    shown = [processor.image_processor(in_8_bits(one), return_tensors="pt").pixel_values for one in pictures()]
    expected = [line(likeliest(model, words, one)) for one in shown]
    assert texts(blip, pictures(), question=beginning) == expected
    assert len(set(expected)) == len(expected)


@torch.no_grad()
@pytest.mark.parametrize("question", [None, BEGINNING])
def test_a_chat_is_about_the_picture_and_the_question(llava: Path, question: str | None) -> None:
    model, processor = LlavaForConditionalGeneration.from_pretrained(llava).eval(), AutoProcessor.from_pretrained(llava)
    asked = f"<s>word1 <image>\n{QUESTION if question is None else question} word2"
    expected = []
    for one in pictures():
        inputs = processor(images=in_8_bits(one), text=asked, return_tensors="pt")
        expected.append(line(likeliest(model, inputs.input_ids, inputs.pixel_values)))
    assert texts(llava, pictures(), question=question) == expected
    assert len(set(expected)) == len(expected)


def test_the_question_matters(llava: Path, blip: Path) -> None:
    for folder in (llava, blip):
        answers = [texts(folder, pictures(), question=question) for question in (None, BEGINNING, "word7\nword8\n")]
        assert len({tuple(answer) for answer in answers}) == 3
    # A beginning belongs to no caption, whether or not the model repeats it.
    assert not any(text.startswith("word5 word6") for text in texts(blip, pictures(), question=BEGINNING))


@torch.no_grad()
def test_a_captioner_in_two_parts(vit_gpt2: Path) -> None:
    model, shown = VisionEncoderDecoderModel.from_pretrained(vit_gpt2).eval(), pictures()
    assert model.generation_config.num_beams == 4  # and yet no beams here
    expected = []
    for one in shown:
        seen, words = ViTImageProcessor.from_pretrained(vit_gpt2)(in_8_bits(one), return_tensors="pt").pixel_values, [1]
        while len(words) <= TOKENS and 2 not in words:
            logits = model(pixel_values=seen, decoder_input_ids=torch.tensor([words])).logits
            words.append(int(logits[0, -1].argmax()))
        expected.append(line(words[1:]))
    assert texts(vit_gpt2, shown) == expected
    assert len(set(expected)) > 1
    with pytest.raises(ConfigError, match="leave out the question"):
        texts(vit_gpt2, shown, question="What is it?")


def test_alone_and_in_a_batch_are_the_same(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[int] = []
    generate = LlavaForConditionalGeneration.generate

    def spy(model: Any, **given: Any) -> Any:
        shown.append(len(given["pixel_values"]))
        return generate(model, **given)

    monkeypatch.setattr(LlavaForConditionalGeneration, "generate", spy)
    extractor = Captions(llava, max_new_tokens=TOKENS)
    assert extractor(pictures()) == [extractor(one[None])[0] for one in pictures()]
    assert set(shown) == {1}  # whether batches differ depends on the machine; that none is formed does not


def test_nothing_is_drawn_at_random(llava: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llava, tmp_path / "copy"))
    settings = json.loads((folder / "generation_config.json").read_text())
    settings |= {"do_sample": True, "temperature": 9.0, "top_p": 0.9, "num_beams": 3, "max_length": 7}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    expected, before = texts(llava, pictures()), torch.get_rng_state()
    assert texts(folder, pictures()) == texts(folder, pictures()) == expected
    assert torch.equal(torch.get_rng_state(), before)


def test_a_thinking_model_is_told_not_to(tmp_path: Path) -> None:
    template = captioners.TEMPLATE + "{% if enable_thinking is not defined or enable_thinking %}word9\nword10\n{% endif %}"
    thinking, plain = captioners.llava(tmp_path / "a", template), captioners.llava(tmp_path / "b")
    assert texts(thinking, pictures()) == texts(plain, pictures())


def test_tokens_are_counted(blip: Path) -> None:
    short = [str(prompt) for prompt in Captions(blip, max_new_tokens=2)(pictures())]
    assert max(len(text.split()) for text in short) == 2
    assert all(long.startswith(text) for long, text in zip(texts(blip, pictures()), short, strict=True))


def test_pictures_of_any_kind(blip: Path) -> None:
    extractor = Captions(blip, max_new_tokens=TOKENS)
    assert extractor(torch.rand(0, 3, 4, 4)) == []
    for size in ((1, 1), (3, 90), (300, 1)):
        assert len(extractor(torch.rand(1, 3, *size))) == 1
    overshooting = (pictures() * 1.4 - 0.2).requires_grad_()
    before = overshooting.detach().clone()
    assert extractor(overshooting) == extractor(before.clamp(0, 1)) == extractor(before.double())
    assert torch.equal(overshooting, before)
    with torch.inference_mode():  # whose tensors nothing else may use
        late = Captions(blip, max_new_tokens=TOKENS)
        assert late(before) == extractor(before)
    assert late(before) == extractor(before)


@pytest.mark.parametrize(
    "wrong",
    [
        torch.full((1, 3, 8, 8), float("nan")),
        torch.full((1, 3, 8, 8), float("inf")),
        torch.rand(3, 8, 8),
        torch.rand(1, 1, 8, 8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    ],
)
def test_what_is_no_picture_is_refused(blip: Path, wrong: Tensor) -> None:
    with pytest.raises(InputError, match="pictures must"):
        Captions(blip)(wrong)


def test_dtypes(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []
    generate = BlipForConditionalGeneration.generate

    def spy(model: Any, **given: Any) -> Any:
        assert not torch.is_autocast_enabled("cpu")
        assert model.dtype == given["pixel_values"].dtype
        seen.append(model.dtype)
        return generate(model, **given)

    monkeypatch.setattr(BlipForConditionalGeneration, "generate", spy)
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in ("auto", "bfloat16"):
            texts(copy, pictures()[:1], dtype=dtype)
    BlipForConditionalGeneration.from_pretrained(copy, dtype=torch.float16).save_pretrained(copy)
    for dtype in ("auto", "float32"):
        texts(copy, pictures()[:1], dtype=dtype)
    assert seen == [torch.float32, torch.bfloat16, torch.float16, torch.float32]


def test_by_name(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = load_extractor(f"caption:{blip}")
    assert isinstance(named, PromptExtractor)
    assert (named.name, repr(named)) == (
        f"caption:{blip}",
        f"Captions('{blip}', question=None, max_new_tokens=256, dtype='auto')",
    )
    monkeypatch.chdir(blip.parent)
    relative = load_extractor(f"caption:local-dir:{blip.name}")
    assert relative == named
    assert hash(relative) == hash(named)
    assert named != Captions(blip, question="What is it?")
    monkeypatch.chdir("/")
    assert relative(pictures()[:1]) == named(pictures()[:1])
    assert [file_of(f"caption:{place}") for place in (blip, "hf-hub:owner/repo@v1", "")] == [str(blip), None, None]
    for extractor in (f"caption:{blip}", named):
        with pytest.raises(ConfigError, match="file of this machine"):
            saved_name(extractor)
    remote = "caption:hf-hub:owner/repo@v1"
    assert saved_name(remote) == saved_name(load_extractor(remote)) == remote
    with pytest.raises(ConfigError, match="object of yours"):
        saved_name(Captions("hf-hub:owner/repo@v1", max_new_tokens=9))


def test_nothing_is_loaded_before_the_first_call(blip: Path) -> None:
    code = (
        "import sys; from pnp_irib.prompts import load_extractor;"
        f"assert load_extractor('caption:{blip}').origins == (); load_extractor('caption:hf-hub:owner/repo');"
        "assert not {'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("caption", ConfigError, "caption:PATH"),
        ("caption:", ConfigError, "write caption:PATH"),
        ("captions:x", ConfigError, "Did you mean 'caption:PATH'"),
        ("caption:no/such/place", WeightsError, "nothing is at .*no/such/place"),
        ("caption:owner/repo", WeightsError, "written hf-hub:owner/repo"),
        ("caption:hf-hub:owner", ConfigError, "hf-hub:owner/repo"),
        (f"caption:{__file__}", WeightsError, "no folder"),
    ],
)
def test_names_of_nothing(spec: str, error: type[PnPIribError], said: str) -> None:
    with pytest.raises(error, match=said):
        load_extractor(spec)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "processor_config.json", "tokenizer"])
def test_a_missing_file_is_told_at_once(copy: Path, name: str) -> None:
    for path in copy.glob(f"{name}*"):
        path.unlink()
    with pytest.raises(WeightsError, match=f"no image-text model.*{name}.*missing"):
        Captions(copy)


def test_weights_in_pieces(copy: Path) -> None:
    model = BlipForConditionalGeneration.from_pretrained(copy)
    (copy / "model.safetensors").unlink()
    model.save_pretrained(copy, max_shard_size="20KB")
    pieces = sorted(path.name for path in copy.glob("model-*.safetensors"))
    assert len(pieces) > 1
    extractor = Captions(copy, max_new_tokens=TOKENS)
    extractor(pictures())
    (origin,) = extractor.origins
    assert [origin.hash_of(piece) for piece in pieces] == [sha256_of(copy / piece) for piece in pieces]
    (copy / pieces[1]).rename(copy / "elsewhere")
    with pytest.raises(WeightsError, match=f"{pieces[1]} is missing"):
        Captions(copy)
    index = copy / "model.safetensors.index.json"
    (copy / "b.bin").touch()
    for content, said in (('{"weight_map": {"a": "b.bin"}}', "b.bin.*only weights in safetensors"), ("{", "cannot be read")):
        index.write_text(content)
        with pytest.raises(WeightsError, match=said):
            Captions(copy)


def without_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["text_decoder.bert.encoder.layer.1.output.dense.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def of_another_kind(folder: Path) -> None:
    CLIPTextConfig().save_pretrained(folder)


def with_code(folder: Path) -> None:
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModelForImageTextToText": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(own))
    (folder / "mine.py").write_text("raise SystemExit('this ran')")


def cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-99])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_weight, r"does not fit BlipFor.*layer\.1\.output.*is missing, and 0 more"),
        (of_another_kind, "'clip_text_model', which writes no captions"),
        (with_code, "code that comes with it, and such code is never run"),
        (cut, "cannot be read as an image-text model"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as an image-text model"),
    ],
)
def test_a_model_that_is_none_is_refused(copy: Path, change: Callable[[Path], object], said: str) -> None:
    change(copy)
    extractor = Captions(copy)
    with pytest.raises(WeightsError, match=said):
        extractor(pictures())
    assert extractor.origins == ()


def test_a_part_that_no_caption_reads_may_be_missing(vit_gpt2: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(vit_gpt2, tmp_path / "copy"))
    weights = load_file(folder / "model.safetensors")
    assert [weights.pop(name) for name in list(weights) if "pooler" in name]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    before = torch.get_rng_state()
    assert texts(folder, pictures()) == texts(vit_gpt2, pictures())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "wrong", [{"question": " "}, {"question": 7}, {"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"dtype": "float8"}]
)
def test_wrong_options_are_refused(blip: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Captions(blip, **wrong)


def test_what_the_model_refuses_is_told(tmp_path: Path) -> None:
    folder = captioners.llava(tmp_path / "model", "{{ raise_exception('no pictures here') }}")
    with pytest.raises(ConfigError, match=r"shown 50x40 pixels, gives no caption: no pictures here\. If .*question="):
        Captions(folder)(pictures())
    with pytest.raises(ConfigError, match="shown 32x33 pixels"):  # processors take a side of 1 or 3 for channels
        Captions(folder)(torch.rand(1, 3, 33, 3))
    with pytest.raises(ConfigError, match=r"no pictures here\.$"):
        Captions(folder, question="What?")(pictures())


def test_packages_that_are_missing_are_named(blip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ImportError("\nVideos requires the Torchvision library but it was not found.\nRestart. Twice.\n")

    with monkeypatch.context() as patch:
        patch.setattr(AutoProcessor, "from_pretrained", refuse)
        with pytest.raises(MissingExtraError, match=r"not installed: Videos requires the Torchvision .* found\. Install it"):
            Captions(blip)(pictures())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pnp-irib\[diffusion\]"):
        Captions(blip)(pictures())


def test_transformers_is_kept_quiet(copy: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps(settings | {"temperature": 0.2, "max_length": 9}))
    transformers = logging.getLogger("transformers")
    level, bars = transformers.level, is_progress_bar_enabled()
    transformers.addHandler(caplog.handler)
    try:
        texts(copy, pictures())
    finally:
        transformers.removeHandler(caplog.handler)
    assert (caplog.records, *capfd.readouterr()) == ([], "", "")
    assert (transformers.level, is_progress_bar_enabled()) == (level, bars)


def test_from_the_hub(hub: HubServer, blip: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    files = {path.name: path.read_bytes() for path in blip.iterdir()}
    card = b"---\nlicense: bsd-3-clause\n---\n"
    more = {"README.md": card, "pytorch_model.bin": b"pickle", "flax/config.json": b"{}"}
    commit = hub.add_repo("owner/blip", files | more)
    monkeypatch.setattr(download, "LARGE", 1000)
    place = "hf-hub:owner/blip"
    extractor = Captions(place, max_new_tokens=TOKENS)
    assert load_extractor(f"caption:{place}") == Captions(place)
    assert hub.requests == []
    expected = texts(blip, pictures())
    assert [str(prompt) for prompt in extractor(pictures())] == expected
    said = capfd.readouterr().err
    assert (
        f"of hf-hub:owner/blip@{commit}; licences: bsd-3-clause as stated there, see https://huggingface.co/owner/blip" in said
    )
    fetched = {path.rpartition("/")[2] for path in hub.gets()}
    assert fetched == {*files, sha256_of(blip / "model.safetensors")} - {"model.safetensors"}  # large ones come by their hash
    (origin,) = extractor.origins
    assert (origin.place, origin.commit) == ("hf-hub:owner/blip", commit)
    assert {file.name: file.sha256 for file in origin.files} == {name: sha256_of(blip / name) for name in files}

    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert texts(place, pictures()) == texts(f"{place}@{commit}", pictures()) == expected
    assert hub.requests == []
    with pytest.raises(WeightsError, match="offline nothing is fetched"):
        texts("hf-hub:owner/other", pictures())


def test_of_a_model_that_cannot_be_used_no_weights_are_fetched(hub: HubServer, copy: Path) -> None:
    def asked(name: str, said: str) -> None:
        hub.requests.clear()
        with pytest.raises(WeightsError, match=said):
            Captions(f"hf-hub:owner/{name}")(pictures())
        assert not [path for path in hub.gets() if path.endswith((".safetensors", ".bin", ".py"))]

    files = {path.name: path.read_bytes() for path in copy.iterdir()}
    asked("absent", "no repository owner/absent")
    hub.add_repo("owner/pickle", {name: data for name, data in files.items() if name != "model.safetensors"} | {"a.bin": b""})
    asked("pickle", "weights in safetensors, the only ones read, missing")
    hub.add_repo("owner/bare", {"model.safetensors": files["model.safetensors"]})
    asked("bare", "config.json missing")
    with_code(copy)
    hub.add_repo("owner/code", {path.name: path.read_bytes() for path in copy.iterdir()})
    asked("code", "never run")
    of_another_kind(copy)
    hub.add_repo("owner/text", {path.name: path.read_bytes() for path in copy.iterdir()})
    asked("text", "writes no captions")


def test_what_another_program_left_in_the_cache_is_completed(hub: HubServer, blip: Path) -> None:
    hub.add_repo("owner/blip", {path.name: path.read_bytes() for path in blip.iterdir()})
    from pnp_irib.hub.names import parse_name

    download.fetch(parse_name("hf-hub:owner/blip"), ["config.json"])
    assert texts("hf-hub:owner/blip", pictures()) == texts(blip, pictures())


def test_a_restorer_is_given_the_captions(blip: Path) -> None:
    restorer = Stated(prompts="optional")
    result = wrap(restorer, projector=None, extractor=f"caption:{blip}")(pictures()[1:2])
    (expected,) = Captions(blip)(pictures()[1:2])
    assert result.prompt == expected != Prompt("")
    assert restorer.prompts[-1] == [expected]
    assert result.used.files[f"local-dir:{blip}/model.safetensors"] == sha256_of(blip / "model.safetensors")
