"""Base models: their places, mirrors with other weights, single files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pnp_irib.diffusion.places as places
from pnp_irib import wrap
from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import ZERO_SNR_V
from pnp_irib.diffusion.places import SD21_BASE, KnownModel, find_base, places_of
from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib_osediff.restorer import load_osediff
from tests.golden import golden_folder, missing
from tests.hub.server import HubServer

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model() -> Path:
    folder = golden_folder("osediff") / "model"
    if not folder.is_dir():
        missing("osediff")
    return folder


@pytest.fixture
def files(model: Path) -> dict[str, bytes]:
    base = model / "sd21base"
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*") if path.is_file()}


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., KnownModel]:
    """A list of places in the place of the real one, and a cache and configuration of our own."""
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def stated(*where: str, **hashes: str) -> KnownModel:
        made = KnownModel(SD21_BASE.key, SD21_BASE.title, SD21_BASE.licence, where, hashes.get("hashes", {}))  # type: ignore[arg-type]
        monkeypatch.setitem(places.KNOWN, SD21_BASE.key, made)
        return made

    return stated


def other(files: dict[str, bytes], tmp_path: Path) -> dict[str, bytes]:
    """The same with another UNet."""
    (tmp_path / "unet").write_bytes(files[UNET])
    tensors = load_file(tmp_path / "unet")
    tensors["conv_out.bias"] = tensors["conv_out.bias"] + 1
    save_file(tensors, tmp_path / "other")
    return files | {UNET: (tmp_path / "other").read_bytes()}


def test_places_are_tried_in_order_and_the_first_use_is_recorded(
    hub: HubServer,
    model: Path,
    files: dict[str, bytes],
    known: Callable[..., KnownModel],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add_repo("second/sd", files)
    hub.add_repo("third/sd", other(files, tmp_path))
    known("hf-hub:gone/sd", "hf-hub:second/sd", "hf-hub:third/sd")
    restorer = load_osediff(None, model / "osediff.pkl", process_size=16, dtype="float32")
    said = capsys.readouterr().err
    assert "first use of Stable Diffusion 2.1-base, from hf-hub:second/sd@" in said
    record = tmp_path / "own" / "bases" / f"{SD21_BASE.key}.json"
    assert len(json.loads(record.read_text())[UNET]) == 64
    used = wrap(restorer, projector=None)(torch.rand(1, 3, 6, 6)).used.files
    assert {name.partition("@")[0] for name in used if name.startswith("hf-hub:")} == {"hf-hub:second/sd"}
    assert any(name.endswith("/osediff.pkl") and len(sha256) == 64 for name, sha256 in used.items())
    assert any(name.endswith(UNET) and sha256 for name, sha256 in used.items())
    known("hf-hub:third/sd")
    with pytest.raises(WeightsError, match=r"third/sd@\w+ was refused: its unet/.*of the first use, from hf-hub:second/sd@"):
        find_base(SD21_BASE.key)
    record.write_text("[]")
    asked = len(hub.requests)
    find_base(SD21_BASE.key)
    assert len(hub.requests) == asked  # the cache has it
    assert len(json.loads(record.read_text())[UNET]) == 64  # a damaged record is made anew


def test_known_hashes_refuse_a_mirror_and_the_next_is_taken(
    hub: HubServer, files: dict[str, bytes], known: Callable[..., KnownModel], tmp_path: Path
) -> None:
    import hashlib

    hub.add_repo("false/sd", other(files, tmp_path))
    hub.add_repo("true/sd", files)
    hashes: Any = {UNET: hashlib.sha256(files[UNET]).hexdigest()}
    known("hf-hub:false/sd", "hf-hub:true/sd", hashes=hashes)
    assert str(find_base(SD21_BASE.key).origin).startswith("hf-hub:true/sd@")
    assert not [path for path in hub.gets() if "false/sd" in path]  # nothing of it was fetched
    known("hf-hub:false/sd", hashes=hashes)
    with pytest.raises(WeightsError, match=r"found in none of its places: .* expected [0-9a-f]{64}\. If you have it, give"):
        find_base(SD21_BASE.key)


def test_the_user_names_other_places(
    hub: HubServer,
    files: dict[str, bytes],
    model: Path,
    known: Callable[..., KnownModel],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    made = known("hf-hub:gone/sd")
    hub.add_repo("mine/sd", files)
    config = tmp_path / "config" / "pnp_irib" / "places.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(f"{SD21_BASE.key}: [hf-hub:also-gone/sd, 'hf-hub:mine/sd']\n")
    assert places_of(made) == (["hf-hub:also-gone/sd", "hf-hub:mine/sd"], str(config))
    assert str(find_base(SD21_BASE.key).origin).startswith("hf-hub:mine/sd@")
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(f"{SD21_BASE.key}: hf-hub:mine/sd\n")
    monkeypatch.setenv("PNP_IRIB_PLACES", str(elsewhere))
    for content, said in (
        (f"{SD21_BASE.key}: hf-hub:mine/sd", "expected names of models and lists of places"),
        (f"{SD21_BASE.key}: []", "expected names of models and lists of places"),
        ("stable-diffusion-2.1-base: [hf-hub:a/b]", "Did you mean 'stable-diffusion-2-1-base'"),
        ("[hf-hub:a/b]", "holds a list"),
    ):
        elsewhere.write_text(content)
        with pytest.raises(ConfigError, match=rf"elsewhere\.yaml.*{said}"):
            find_base(SD21_BASE.key)
    elsewhere.write_text(f"{SD21_BASE.key}: [{SD21_BASE.key}, {tmp_path / 'nowhere'}, hf-hub:mine/sd]\n")  # none loops
    assert str(find_base(SD21_BASE.key).origin).startswith("hf-hub:mine/sd@")
    with pytest.raises(WeightsError, match=r"there is no base model at .*nowhere"):
        find_base(tmp_path / "nowhere")
    assert str(find_base("mine/sd").origin).startswith("hf-hub:mine/sd@")
    monkeypatch.setenv("PNP_IRIB_PLACES", str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match="which is no file"):
        find_base(SD21_BASE.key)
    monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", str(model / "sd21base"))
    assert find_base(SD21_BASE.key).path == model / "sd21base"
    monkeypatch.setenv("PNP_IRIB_STABLE_DIFFUSION_2_1_BASE", "hf-hub:gone/too")
    with pytest.raises(WeightsError, match=r"\(from PNP_IRIB_STABLE_DIFFUSION_2_1_BASE\): there is no repository gone/too"):
        find_base(SD21_BASE.key)


def configurations(folder: Path, model: Path) -> dict[str, bytes]:
    """Small files that describe the single file of DiffBIR's golden data, in the layout of diffusers."""
    stated = json.loads((folder / "configs.json").read_text())["cldm"]
    unet, vae, text = stated["unet_cfg"], stated["vae_cfg"]["ddconfig"], stated["clip_cfg"]["text_cfg"]
    base = model / "sd21base"
    read = {part: json.loads((base / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")}
    wide = [unet["model_channels"] * factor for factor in unet["channel_mult"]]
    read["unet"] |= {
        "block_out_channels": wide,
        "attention_head_dim": [width // unet["num_head_channels"] for width in wide],
        "layers_per_block": unet["num_res_blocks"],
        "cross_attention_dim": unet["context_dim"],
        "norm_num_groups": 32,
    }
    read["vae"] |= {"block_out_channels": [vae["ch"] * factor for factor in vae["ch_mult"]], "layers_per_block": 2}
    read["text_encoder"] |= {
        "hidden_size": text["width"],
        "intermediate_size": 4 * text["width"],
        "num_hidden_layers": text["layers"] - 1,
        "num_attention_heads": text["heads"],
        "vocab_size": text["vocab_size"],
    }
    found = {f"{part}/config.json": json.dumps(content).encode() for part, content in read.items()}
    for part in ("scheduler", "tokenizer"):
        found |= {f"{part}/{path.name}": path.read_bytes() for path in (base / part).iterdir()}
    return found


def test_a_single_file_is_the_model_that_it_was(
    hub: HubServer, model: Path, known: Callable[..., KnownModel], tmp_path: Path
) -> None:
    golden = golden_folder("diffbir")
    if not golden.is_dir():
        missing("diffbir")
    hub.add_repo("owner/sd", configurations(golden / "model", model))  # no weights: a single file has them
    known("hf-hub:owner/sd")
    file = golden / "model" / "sd2.1-base-zsnr-laionaes5.ckpt"
    base = StableDiffusion.load(file)
    text, network = (load_file(golden / "cases" / name / "tensors.safetensors") for name in ("text", "network"))

    def close(found: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(found, expected.float(), atol=1e-3, rtol=0)

    with torch.no_grad():
        close(base.text.encoder(text["tokens"].long())[0], text["c_txt"])
        times = torch.tensor([999.0, 431.25, 0.0])
        given = {"encoder_hidden_states": network["c_txt"].float()}
        close(base.unet(network["x"].float(), times, **given).sample, network["model_out_no_control"])
    content = torch.load(file, weights_only=True)["state_dict"]
    sums = [
        sum(value.float().abs().sum() for value in tensors)
        for tensors in (
            base.vae.state_dict().values(),
            [value for key, value in content.items() if key.startswith("first_stage_model.")],
        )
    ]
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-5, atol=0)
    copy = tmp_path / "copy.safetensors"
    save_file({key: value.clone() for key, value in content.items() if value.is_floating_point()}, copy)
    again = StableDiffusion.load(copy, noise=ZERO_SNR_V)  # the small files are those of a base that predicts the noise
    assert again.fingerprint == base.fingerprint
    assert again.alphas[-1] == 0
    assert base.alphas[-1].item() == pytest.approx(0.00466, abs=1e-5)
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"other\.ckpt holds no tensors named model\.diffusion_model\."):
        StableDiffusion.load(tmp_path / "other.ckpt")
    wrong = dict(content)
    del wrong["first_stage_model.decoder.conv_in.weight"]
    torch.save({"state_dict": wrong}, tmp_path / "part.ckpt")
    with pytest.raises(
        WeightsError, match=r"part\.ckpt does not fit AutoencoderKL: missing first_stage_model\.decoder\.conv_in"
    ):
        StableDiffusion.load(tmp_path / "part.ckpt")
