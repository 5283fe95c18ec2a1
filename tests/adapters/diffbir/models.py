"""DiffBIR's second stage with the tiny weights of the golden data."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.model import EPS, ZERO_SNR_V, NoiseSchedule
from pnp_irib.diffusion.single_file import Heads
from pnp_irib_diffbir.cleaners.cleaner import Cleaner
from pnp_irib_diffbir.cleaners.loading import load_cleaner
from pnp_irib_diffbir.files import read_controlnet
from pnp_irib_diffbir.networks import Networks
from pnp_irib_diffbir.restorer import DiffBIR
from tests.golden import golden_folder, missing

MODEL = golden_folder("diffbir") / "model"
TOKENIZER = golden_folder("seesr") / "model" / "stable-diffusion-2-base" / "tokenizer"  # the golden data of DiffBIR has none
BASE = "sd2.1-base-zsnr-laionaes5.ckpt"
CONTROLNET = "DiffBIR_v2.1.pt"


def ready() -> None:
    """Skip, or in CI fail, where the golden data is not."""
    for name, folder in (("diffbir", MODEL), ("seesr", TOKENIZER)):
        if not folder.is_dir():
            missing(name)


def file(name: str) -> Path:
    """The file that stands for a published one."""
    stands_for = json.loads((MODEL / "aliases.json").read_text())["same file stands for"]
    return MODEL / next((own for own, others in stands_for.items() if name in others), name)


def heads() -> Heads:
    """Of the tiny networks, as their configuration has them."""
    config: dict[str, Any] = json.loads((MODEL / "configs.json").read_text())["cldm"]
    text = config["clip_cfg"]["text_cfg"]
    return Heads(unet=config["unet_cfg"]["num_head_channels"], text=text["width"] // text["heads"])


@functools.cache
def swinir() -> Cleaner:
    return load_cleaner(file("realesrgan_s4_swinir_100k.pth"))


@functools.cache
def loaded() -> tuple[StableDiffusion, Networks]:
    """Reading the files takes longer than most tests."""
    base = StableDiffusion.load(file(BASE), tokenizer=TOKENIZER, heads=heads(), noise=ZERO_SNR_V)
    return base, Networks(base.unet, read_controlnet(file(CONTROLNET), base.unet))


def build(version: str = "v2.1") -> tuple[StableDiffusion, Networks]:
    """Base and networks of a version, on modules that all tests share; the golden data has one file for all versions."""
    base, networks = loaded()
    noise: NoiseSchedule = ZERO_SNR_V if version == "v2.1" else EPS
    return (
        StableDiffusion(
            base.text,
            base.vae,
            base.unet,
            noise.alphas,
            base.fingerprint,
            base.place,
            base.conv_in,
            origin=base.origin,
            noise=noise,
        ),
        networks,
    )


def restorer(version: str = "v2.1", **options: Any) -> DiffBIR:
    """Small: pictures of at least 64 pixels instead of 512, two steps instead of 10 or 50; behind it a tiny SwinIR."""
    base, networks = build(version)
    small: dict[str, Any] = {"process_size": 64, "num_inference_steps": 2, "dtype": "float32"}
    return DiffBIR(base, networks, swinir(), version=version, **small | options)
