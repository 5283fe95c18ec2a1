"""Folders in the layout of diffusers whose weights are not all there, or have the names of older versions."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.errors import WeightsError
from tests.golden import golden_folder, missing

FOLDER = golden_folder("osediff") / "model" / "sd21base"
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    if not FOLDER.is_dir():
        missing("osediff")
    shutil.copytree(FOLDER, tmp_path / "base", copy_function=shutil.copyfile)
    return tmp_path / "base"


@pytest.mark.parametrize(
    ("part", "name"),
    [("vae", "quant_conv.bias"), ("unet", "conv_in.weight"), ("text_encoder", "final_layer_norm.bias")],
)
def test_what_is_missing_is_not_made_up(folder: Path, part: str, name: str) -> None:
    path = folder / part / WEIGHTS[part]
    weights = load_file(path)
    path.chmod(0o600)
    save_file({key: value for key, value in weights.items() if not key.endswith(name)}, path, {"format": "pt"})
    with pytest.raises(WeightsError, match=rf"base/{part} does not fit \w+: missing .*{name}\. Is the download complete\?"):
        StableDiffusion.load(folder)


def test_names_of_older_versions_are_understood(folder: Path) -> None:
    path = folder / "vae" / WEIGHTS["vae"]
    weights = load_file(path)
    path.chmod(0o600)
    renamed = dict(weights)
    for name in weights:
        for new, old in OLD.items():
            if f".attentions.0.{new}." in name:
                renamed[name.replace(new, old)] = renamed.pop(name)
    assert len(renamed.keys() - weights.keys()) == 16
    save_file(renamed, path, {"format": "pt"})
    assert StableDiffusion.load(folder).fingerprint == StableDiffusion.load(FOLDER).fingerprint
