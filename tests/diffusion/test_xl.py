"""Stable Diffusion XL from a folder and from a single file, against the recorded outputs of SUPIR's code."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import pnp_irib.diffusion.places as places
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import EPS
from pnp_irib.diffusion.places import SDXL, SDXL_BASE, KnownModel, find_base
from pnp_irib.diffusion.single_file import UNET, Heads
from pnp_irib.diffusion.xl import StableDiffusionXL
from pnp_irib.diffusion.xl_file import CLIP, OPENCLIP
from pnp_irib.errors import ConfigError, WeightsError
from tests.diffusion.xl_models import FOLDER, HEADS, parts_by_name, ready, single_file
from tests.golden import Case, check, golden_folder, missing
from tests.hub.server import HubServer

SD2 = golden_folder("osediff") / "model" / "sd21base"
SD2_FILE = golden_folder("diffbir") / "model" / "sd2.1-base-zsnr-laionaes5.ckpt"
TOKENIZER = FOLDER / "tokenizer"


@pytest.fixture(scope="module", autouse=True)
def recorded() -> None:
    ready()
    for path, name in ((SD2, "osediff"), (SD2_FILE, "diffbir")):
        if not path.exists():
            missing(name)


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No place has the small files of a known model."""
    for known in places.KNOWN.values():
        monkeypatch.setenv(known.variable, str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def base() -> StableDiffusionXL:
    return StableDiffusionXL.load(FOLDER)


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., Path]:
    """Writes a single file with other tensors; None: one that is left out."""

    def write(changed: Mapping[str, Tensor | None] | None = None) -> Path:
        tensors = {name: value for name, value in {**single_file(), **(changed or {})}.items() if value is not None}
        save_file(tensors, tmp_path / "xl.safetensors")
        return tmp_path / "xl.safetensors"

    return write


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A copy of the folder that may be written to."""
    folder = tmp_path / "sdxl"
    shutil.copytree(FOLDER, folder, copy_function=shutil.copyfile)
    for part in folder.rglob("*"):
        part.chmod(0o700)
    return folder


def case(name: str) -> Case:
    return Case(golden_folder("supir") / "cases" / name)


def load(file: Path, **options: Any) -> StableDiffusionXL:
    given: dict[str, Any] = {"tokenizer": TOKENIZER, "heads": HEADS}
    return StableDiffusionXL.load(file, **given | options)


def of(base: StableDiffusionXL) -> dict[str, dict[str, Tensor]]:
    return parts_by_name(base.text.encoder, base.vae, base.unet)


def edit(file: Path, **changed: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))


def test_folder_and_single_file_are_the_same_model(base: StableDiffusionXL, written: Callable[..., Path]) -> None:
    single = load(written())
    for part, stored in of(base).items():
        weights = load_file(next((FOLDER / part).glob("*.safetensors")))
        assert stored.keys() == weights.keys()
        assert of(single)[part].keys() == weights.keys()
        for name, value in weights.items():
            assert torch.equal(stored[name], value.float()), name
            assert torch.equal(of(single)[part][name], value.float()), name
    for loaded in (base, single):
        assert loaded.fingerprint == base.fingerprint
        assert loaded.vae.config.scaling_factor == 0.13025
        assert loaded.unet.config.attention_head_dim == [1, 2, 2]
        assert loaded.factor == 8
        assert (loaded.noise, loaded.alphas.tolist()) == (EPS, EPS.alphas.tolist())
        for module in loaded.modules:
            assert not any(part.training for part in module.modules())
            assert not any(parameter.requires_grad for parameter in module.parameters())
            assert all(value.device.type == "cpu" for value in [*module.parameters(), *module.buffers()])
    texts = ["", "a boat!"]
    for found, expected in zip(single.embed(texts), base.embed(texts), strict=True):
        assert torch.equal(found, expected)
    (words, pooled), latent = base.embed(texts), torch.randn(2, 4, 8, 8)
    given = {"text_embeds": pooled, "time_ids": torch.tensor([[64.0, 48, 0, 0, 64, 48]] * 2)}
    with torch.no_grad():
        found, expected = (loaded.unet(latent, 500, words, added_cond_kwargs=given).sample for loaded in (single, base))
    assert torch.equal(found, expected)


def test_what_has_the_dtype_of_the_file_is_not_copied_twice(written: Callable[..., Path]) -> None:
    half = load(written(), dtype=torch.float16)
    values = [value for part in half.modules[:3] for value in part.parameters()]
    assert {value.dtype for value in values} == {torch.float16}
    assert len({value.data_ptr() for value in values}) == len(values)
    assert all(value.untyped_storage().nbytes() == value.nbytes for value in values)


@pytest.mark.parametrize("name", ["text", "text_exclamation"])
def test_texts_are_read_as_published(base: StableDiffusionXL, name: str) -> None:
    recorded = case(name)
    texts = recorded.options["texts"]
    first, second = base.text.tokens(texts)
    words = base.embed(texts)
    width = base.text.encoder[0].config.hidden_size
    hidden = {"hidden_1": words.hidden[..., :width], "hidden_2": words.hidden[..., width:]}
    check(recorded, {"tokens_1": first, "tokens_2": second, "pooled_2": words.pooled, **hidden})


def test_the_length_of_a_text_is_not_cut(base: StableDiffusionXL, recwarn: pytest.WarningsRecorder) -> None:
    texts = case("text").options["texts"]
    for text in texts:
        ids = base.text.tokens([text])[0][0].tolist()
        assert min(base.text.length(text), 75) == ids.index(49407) - 1
    assert base.text.length("boat " * 200) == 200
    assert base.text.length("") == 0
    # From the first tag on, only one of the encoders reads what an escape stands for.
    assert base.text.length("<b> fish &amp; chips") == 8
    first, second = base.text.tokens(["<b> fish &amp; chips"])
    assert [ids[0].tolist().index(49407) for ids in (first, second)] == [9, 7]


def test_the_unet_reads_sizes_and_texts_as_published(base: StableDiffusionXL, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, unet = case("size_embedding"), base.unet
    given = sizes.tensors["sizes"]
    check(sizes, {"embedding": unet.add_time_proj(given.flatten()).reshape(len(given), -1)})
    recorded = case("unet_forward")
    latent, times, words, vector = (recorded.tensors[name] for name in ("xt", "timesteps", "context", "y"))
    monkeypatch.setattr(unet, "add_time_proj", nn.Identity())  # the recorded vector has the sinusoids of sizes in it
    pooled = base.text.encoder[1].config.projection_dim
    beside = {"text_embeds": vector[:, :pooled], "time_ids": vector[:, pooled:]}
    with torch.no_grad():
        found = unet(latent, times, words, added_cond_kwargs=beside).sample
    expected = recorded.tensors["eps_scale_0.0"]
    assert (found - expected).abs().max() <= recorded.facts["tolerance"]["eps_scale_0.0"]


def test_parts_take_turns_within_a_limit() -> None:
    base = StableDiffusionXL.load(FOLDER)
    expected = base.embed(["boat"])
    base.text.forget()
    base.limit_memory(10**9, torch.device("cpu"))
    found = base.to(dtype=torch.float32).embed(["boat"])
    assert base.offload is not None
    assert base.offload.present == ("text",)
    assert torch.equal(found.hidden, expected.hidden)
    base.to(dtype=torch.bfloat16)
    assert {value.dtype for value in base.embed(["boat"])} == {torch.bfloat16}


def test_a_known_name_stands_for_a_repository(
    hub: HubServer, base: StableDiffusionXL, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: Callable[..., Path]
) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path / "own"))
    files = {file: (FOLDER / file).read_bytes() for file in (*SDXL.configs, *SDXL.weights)}
    assert not any("tokenizer_2" in file for file in files)
    hub.add_repo("owner/xl", {**files, "unet/diffusion_pytorch_model.fp16.safetensors": b"not needed"})
    hub.add_repo("owner/file", {"xl.safetensors": written().read_bytes()})
    made = KnownModel(SDXL_BASE.key, SDXL_BASE.title, SDXL_BASE.licence, ("hf-hub:owner/xl",), layout=SDXL)
    monkeypatch.setitem(places.KNOWN, SDXL_BASE.key, made)
    assert made.variable == "PNP_IRIB_STABLE_DIFFUSION_XL_BASE_1_0"
    monkeypatch.delenv(made.variable)
    # Of a single file, the tokenizer is fetched.
    single = StableDiffusionXL.load("hf-hub:owner/file/xl.safetensors", heads=HEADS)
    assert single.fingerprint == base.fingerprint
    assert not [path for path in hub.gets() if "owner/xl" in path and "model.safetensors" in path]
    found = StableDiffusionXL.load(SDXL_BASE.key)
    assert (found.fingerprint, found.place) == (base.fingerprint, SDXL_BASE.key)
    assert found.origin is not None
    assert set(SDXL.weights) <= {file.name for file in found.origin.files}
    record = json.loads((tmp_path / "own" / "bases" / f"{SDXL_BASE.key}.json").read_text())
    assert set(SDXL.weights) <= record.keys()
    assert StableDiffusionXL.load("hf-hub:owner/xl").fingerprint == base.fingerprint
    assert not [path for path in hub.gets() if "fp16" in path]
    with pytest.raises(ConfigError, match=r"xl-base-1\.0 is Stable Diffusion XL; expected Stable Diffusion 1\.x or 2\.x, of"):
        StableDiffusion.load(SDXL_BASE.key)
    with pytest.raises(
        ConfigError, match=r"2-1-base is .* 2\.x; expected Stable Diffusion XL, of which .*: stable-diffusion-xl"
    ):
        StableDiffusionXL.load("stable-diffusion-2-1-base")
    with pytest.raises(WeightsError, match=r"known name: stable-diffusion-xl-base-1\.0$"):
        find_base(tmp_path / "nothing", layout=SDXL)


def test_any_tokenizer_of_clip_serves_a_single_file(
    base: StableDiffusionXL, monkeypatch: pytest.MonkeyPatch, written: Callable[..., Path], copied: Path
) -> None:
    file, texts = written(), case("text_exclamation").options["texts"]
    expected = base.text.tokens(texts)
    with pytest.raises(WeightsError, match=r"places of Stable Diffusion XL base 1\.0: .*nowhere.* tokenizer=\.\.\."):
        load(file, tokenizer=None)
    monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", str(SD2))
    special = {"content": "!", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    plain = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    edit(copied / "tokenizer_2" / "tokenizer_config.json", added_tokens_decoder={"0": special}, **plain)
    (copied / "tokenizer_2" / "special_tokens_map.json").unlink()
    for own in (None, FOLDER / "tokenizer_2", copied / "tokenizer_2"):
        found = load(file, tokenizer=own).text.tokens(texts)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), own
    (copied / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(WeightsError, match=r"no tokenizer at .*: vocab\.json missing"):
        load(file, tokenizer=copied / "tokenizer")


@pytest.mark.parametrize(
    "name",
    [
        f"{UNET}label_emb.0.2.bias",
        f"{UNET}label_emb.0.0.weight",
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
        "first_stage_model.quant_conv.bias",
        f"{CLIP}embeddings.position_embedding.weight",
        f"{CLIP}encoder.layers.2.self_attn.q_proj.bias",
        f"{OPENCLIP}text_projection",
        f"{OPENCLIP}transformer.resblocks.2.attn.in_proj_weight",
    ],
)
def test_what_is_missing_is_named(written: Callable[..., Path], name: str) -> None:
    with pytest.raises(WeightsError, match=rf"xl\.safetensors .*miss.* {name}"):
        load(written({name: None}))


def test_what_a_single_file_is_instead_is_told(written: Callable[..., Path], tmp_path: Path) -> None:
    def told(changed: Mapping[str, Tensor | None], **options: Any) -> str:
        with pytest.raises(WeightsError) as error:
            load(written(changed), **options)
        return str(error.value)

    # Which is not read is ignored outside of the parts, and told inside.
    assert load(written({"denoiser.sigmas": torch.ones(2), f"{OPENCLIP}logit_scale": None})).factor == 8
    assert f"unexpected {OPENCLIP}ln_first.weight" in told({f"{OPENCLIP}ln_first.weight": torch.ones(2)})
    clip = {name: None for name in single_file() if name.startswith(CLIP)}
    refiner = {"conditioner.embedders.0.model.ln_final.weight": torch.ones(2)}
    said = told({**clip, **refiner})
    assert f"holds no tensors named {CLIP}*; expected Stable Diffusion XL as its authors publish it." in said
    assert said.endswith("It looks like the refiner of Stable Diffusion XL.")
    with pytest.raises(WeightsError, match=r"expected Stable Diffusion XL as .* It looks like Stable Diffusion 2\.x\.$"):
        load(SD2_FILE)
    with pytest.raises(WeightsError, match=r"expected Stable Diffusion 2\.x as .* It looks like Stable Diffusion XL\.$"):
        StableDiffusion.load(written(), tokenizer=TOKENIZER, heads=HEADS)
    assert "Of another layout? Give a folder" in told({name: None for name in single_file() if name.startswith(UNET)} | clip)
    assert "attention of 32 channels" in told({}, heads=Heads(unet=64, text=4))
    assert "attention of 8 channels" in told({}, heads=Heads(unet=32))
    wide = single_file()[f"{UNET}label_emb.0.0.weight"]
    said = told({f"{UNET}label_emb.0.0.weight": wide[:, :-1].contiguous()})
    assert "reads 107 numbers beside the words" in said
    assert "expected the 12 of its text encoder and a multiple of 6" in said
    assert "the tokenizer has 49408 tokens, the text encoder of" in told(
        {f"{OPENCLIP}token_embedding.weight": single_file()[f"{OPENCLIP}token_embedding.weight"][:49000].contiguous()}
    )
    assert "reads 9 channels" in told({f"{UNET}input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)})


def test_what_a_folder_is_instead_is_told(copied: Path) -> None:
    def told(folder: Path = copied, **options: Any) -> str:
        with pytest.raises(WeightsError) as error:
            StableDiffusionXL.load(folder, **options)
        return str(error.value)

    with pytest.raises(ConfigError, match="heads= is for single files"):
        StableDiffusionXL.load(copied, heads=HEADS)
    shutil.rmtree(copied / "tokenizer_2")
    assert StableDiffusionXL.load(copied).embed(["boat"]).pooled.shape == (1, 12)
    assert "no Stable Diffusion XL model in the layout of diffusers: text_encoder_2 missing. It looks like Stable Di" in told(
        SD2
    )
    with pytest.raises(WeightsError, match=r"has a second text encoder: it is Stable Diffusion XL, expected 1\.x or 2\.x"):
        StableDiffusion.load(copied)
    scheduler = copied / "scheduler" / "scheduler_config.json"
    stated = scheduler.read_text()
    for changed, said in (
        (
            {"prediction_type": "v_prediction"},
            "predicts 'v_prediction'; expected 'epsilon', as Stable Diffusion XL base 1.0 does.",
        ),
        ({"rescale_betas_zero_snr": True}, "begins at pure noise; expected the noise of Stable Diffusion XL base 1.0."),
        ({"beta_end": 0.02}, "was trained on 1000 steps from 0.9991 to 0.0002"),
        ({"num_train_timesteps": 500}, "; expected 1000 steps from 0.9991 to 0.0047 of the picture, as Stable Diffusion XL"),
    ):
        edit(scheduler, **changed)
        assert said in told()
        scheduler.write_text(stated)
    shutil.move(copied / "tokenizer", copied / "words")
    assert "tokenizer missing" in told()
    assert StableDiffusionXL.load(copied, tokenizer=copied / "words").factor == 8
    shutil.move(copied / "words", copied / "tokenizer")
    path = copied / "text_encoder_2" / "model.safetensors"
    weights = load_file(path)
    save_file({name: value for name, value in weights.items() if "projection" not in name}, path, {"format": "pt"})
    assert "text_encoder_2 does not fit CLIPTextModelWithProjection: missing text_projection.weight. Is the dow" in told()
    save_file(weights, path, {"format": "pt"})
    unet = copied / "unet"
    shutil.rmtree(unet)
    shutil.copytree(SD2 / "unet", unet, copy_function=shutil.copyfile)
    said = told()
    assert "beside a vector of 0; expected 16 and 12, as its text encoders and six lengths make. Is all of it" in said
    shutil.rmtree(copied / "text_encoder")
    assert "text_encoder missing. It looks like the refiner of Stable Diffusion XL, which is another model. Give" in told()
