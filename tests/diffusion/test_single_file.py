"""Stable Diffusion in a single file, without configurations beside it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import EPS, ZERO_SNR_V, NoiseSchedule
from pnp_irib.diffusion.single_file import UNET, Heads
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.weights import resolve_file
from tests.golden import golden_folder, missing
from tests.hub.server import HubServer

FILE = golden_folder("diffbir") / "model" / "sd2.1-base-zsnr-laionaes5.ckpt"
FOLDER = golden_folder("osediff") / "model" / "sd21base"
TOKENIZER = golden_folder("seesr") / "model" / "stable-diffusion-2-base" / "tokenizer"
HEADS = Heads(unet=16, text=8)


@pytest.fixture(scope="module", autouse=True)
def recorded() -> None:
    for path, name in ((FILE, "diffbir"), (FOLDER, "osediff"), (TOKENIZER, "seesr")):
        if not path.exists():
            missing(name)


@pytest.fixture(autouse=True)
def nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No place has the small files of Stable Diffusion 2.1-base."""
    monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def content() -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = torch.load(FILE, weights_only=True)["state_dict"]
    return tensors


@pytest.fixture(scope="module")
def base() -> StableDiffusion:
    return load(FILE, noise=ZERO_SNR_V)


def load(file: Path, **options: Any) -> StableDiffusion:
    small: dict[str, Any] = {"tokenizer": TOKENIZER, "heads": HEADS}
    return StableDiffusion.load(file, **small | options)


def test_the_shapes_tell_the_sizes(base: StableDiffusion, content: dict[str, Tensor]) -> None:
    stated = json.loads((FILE.parent / "configs.json").read_text())["cldm"]
    unet, text = stated["unet_cfg"], stated["clip_cfg"]["text_cfg"]
    widths = [unet["model_channels"] * factor for factor in unet["channel_mult"]]
    assert base.unet.config.block_out_channels == widths
    assert base.unet.config.attention_head_dim == [width // unet["num_head_channels"] for width in widths]
    assert (base.text.encoder.config.num_hidden_layers, base.text.encoder.config.num_attention_heads) == (
        text["layers"] - 1,
        text["heads"],
    )
    assert base.factor == 8
    assert base.noise == ZERO_SNR_V
    assert base.alphas[0].item() == pytest.approx(0.99915)
    assert base.alphas[-1] == 0
    own = base.unet.state_dict()["time_embedding.linear_2.weight"]
    assert torch.equal(own, content[f"{UNET}time_embed.2.weight"].float())
    for part in base.modules:
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())
        assert all(value.device.type == "cpu" for value in [*part.parameters(), *part.buffers()])


def test_texts_are_padded_as_openclip_does(base: StableDiffusion, tmp_path: Path) -> None:
    shutil.copytree(TOKENIZER, tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer_config.json"
    path.chmod(0o600)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "<|endoftext|>"}))
    (tmp_path / "tokenizer" / "special_tokens_map.json").unlink(missing_ok=True)
    other = load(FILE, tokenizer=tmp_path / "tokenizer")
    assert other.text.tokens(["bird"])[0, -1] == 0
    assert torch.equal(other.embed(["bird", ""]), base.embed(["bird", ""]))


def test_other_files_of_the_same_are_the_same(base: StableDiffusion, content: dict[str, Tensor], tmp_path: Path) -> None:
    flat = tmp_path / "flat.ckpt"
    torch.save({f"module.{name}": value for name, value in content.items()}, flat)  # without state_dict, spread over devices
    assert load(flat).fingerprint == base.fingerprint
    copy = tmp_path / "copy.safetensors"
    save_file({name: value.clone() for name, value in content.items()}, copy)
    half = load(copy, dtype=torch.float16)
    assert half.fingerprint == base.fingerprint
    assert {part.dtype for part in half.unet.parameters()} == {torch.float16}
    # What has the wanted type already is not converted, and still no two parameters share memory.
    for file in (flat, copy):
        same = load(file, dtype=torch.float16)
        places = [value.data_ptr() for part in same.modules[:3] for value in part.parameters()]
        assert len(set(places)) == len(places)
        assert all(value.untyped_storage().nbytes() == value.nbytes for value in same.unet.parameters())
    without = {name: value for name, value in content.items() if not name.startswith(UNET)}
    torch.save({"state_dict": without}, tmp_path / "without.ckpt")
    with pytest.raises(WeightsError, match=r"without\.ckpt holds no tensors named model\.diffusion_model\.\*"):
        load(tmp_path / "without.ckpt")
    assert load(tmp_path / "without.ckpt", unet=base.unet).fingerprint == base.fingerprint


def test_it_may_lie_on_the_hub(hub: HubServer, base: StableDiffusion) -> None:
    commit = hub.add_repo("owner/sd", {"zsnr.ckpt": FILE.read_bytes()})
    found = StableDiffusion.load("hf-hub:owner/sd/zsnr.ckpt", tokenizer=TOKENIZER, heads=HEADS)
    assert found.fingerprint == base.fingerprint
    assert found.origin is not None
    assert str(found.origin).startswith(f"hf-hub:owner/sd@{commit}")
    assert [file.name for file in found.origin.files] == ["zsnr.ckpt"]
    assert load(resolve_file("hf-hub:owner/sd/zsnr.ckpt")).origin == found.origin  # the same by its place in the cache


def test_of_other_small_files_only_the_tokenizer_is_used(base: StableDiffusion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", str(FOLDER))  # its networks have other sizes
    found = load(FILE, tokenizer=None)
    assert found.fingerprint == base.fingerprint
    assert torch.equal(found.embed(["bird"]), base.embed(["bird"]))


def test_a_single_file_has_no_small_files_and_is_not_fetched_for_them(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("owner/sd", {"zsnr.ckpt": b"gigabytes"})
    for place in (str(FILE), "hf-hub:owner/sd/zsnr.ckpt"):
        monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", place)
        with pytest.raises(WeightsError, match=rf"places of .* 2\.1-base: {place} is a single file\. Fetch them once"):
            load(FILE, tokenizer=None)
    assert not hub.gets()


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.ff.net.2.bias",
        "first_stage_model.encoder.mid.attn_1.norm.weight",
        "first_stage_model.post_quant_conv.bias",
        "cond_stage_model.model.transformer.resblocks.1.mlp.c_proj.weight",
        "cond_stage_model.model.token_embedding.weight",
    ],
)
def test_what_is_missing_is_named(content: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    torch.save({key: value for key, value in content.items() if key != name}, tmp_path / "part.ckpt")
    with pytest.raises(WeightsError, match=rf"part\.ckpt .*miss.* {name}"):
        load(tmp_path / "part.ckpt")


def test_what_does_not_fit_is_told(content: dict[str, Tensor], tmp_path: Path) -> None:
    def told(changed: dict[str, Tensor], **options: Any) -> str:
        torch.save({"state_dict": content | changed}, tmp_path / "other.ckpt")
        with pytest.raises(WeightsError) as error:
            load(tmp_path / "other.ckpt", **options)
        return str(error.value)

    assert f"unexpected {UNET}label_emb.0.0.weight" in told({f"{UNET}label_emb.0.0.weight": torch.ones(2)})
    assert "conv_out.bias has the shape (5,), expected (4,)" in told({f"{UNET}out.2.bias": torch.ones(5)})
    assert "attention of 32 channels" in (said := told({}, heads=None))
    assert "give heads=Heads(unet=..., text=...)" in said
    assert "no tokenizer at" in told({}, tokenizer=tmp_path)
    assert "or give the folder of a tokenizer: tokenizer=" in told({}, tokenizer=None)
    short = content["cond_stage_model.model.token_embedding.weight"][:49000]
    assert "the tokenizer has 49408 tokens, the text encoder of" in told(
        {"cond_stage_model.model.token_embedding.weight": short}
    )
    first = {f"{UNET}input_blocks.0.0.weight": torch.ones(32, 9, 3, 3)}
    assert "reads 9 channels, expected the 4 of a latent. Is it one for inpainting or depth?" in told(first)
    with pytest.raises(ConfigError, match=r"heads\.unet=0: expected a whole number"):
        Heads(unet=0)


def test_a_folder_says_what_it_predicts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="heads= is for single files"):
        StableDiffusion.load(FOLDER, heads=HEADS)
    folder = tmp_path / "base"
    shutil.copytree(FOLDER, folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.chmod(0o600)
    stated = json.loads(path.read_text())

    def load(noise: NoiseSchedule, **changed: Any) -> StableDiffusion:
        path.write_text(json.dumps(stated | changed))
        return StableDiffusion.load(folder, noise=noise)

    v, zero = {"prediction_type": "v_prediction"}, {"rescale_betas_zero_snr": True}
    assert load(EPS).noise == EPS
    found = load(ZERO_SNR_V, **v, **zero)
    assert found.noise == ZERO_SNR_V
    torch.testing.assert_close(found.alphas, ZERO_SNR_V.alphas, atol=1e-5, rtol=0)
    for noise, changed, said in (
        (EPS, v, r"predicts 'v_prediction'; expected 'epsilon', as Stable Diffusion 2\.1-base does"),
        (EPS, zero, r"begins at pure noise; expected the noise of"),
        (ZERO_SNR_V, {}, r"predicts 'epsilon'; expected 'v_prediction'\.$"),
        (ZERO_SNR_V, v, r"with 0\.0047 of the picture; expected one that was fine-tuned to begin at pure noise\.$"),
    ):
        with pytest.raises(WeightsError, match=said):
            load(noise, **changed)
