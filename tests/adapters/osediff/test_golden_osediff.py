"""Every recorded case of the published OSEDiff."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.base import StableDiffusion
from pnp_irib.diffusion.distill import denoising_loss, variational_score_loss
from pnp_irib.diffusion.latents import gaussian_window, plan_latent_tiles
from pnp_irib.diffusion.lora import active
from pnp_irib.diffusion.published import enlarge, recolor, truncated
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode, sample_posterior
from pnp_irib.diffusion.vae_published import plan_tiles
from pnp_irib.images.color import adain, wavelet
from pnp_irib.noise import ReplayedNoise
from pnp_irib.prompts import Prompt
from pnp_irib_osediff.checkpoint import UNET_ADAPTERS, Checkpoint
from pnp_irib_osediff.restorer import OSEDiff, load_osediff, prompt_text
from tests.golden import Case, cases_of, check, golden_folder, missing

MODEL = golden_folder("osediff") / "model"
Outputs = dict[str, Any]


@functools.cache
def loaded_base() -> StableDiffusion:
    return StableDiffusion.load(MODEL / "sd21base")


def fresh_base() -> StableDiffusion:
    """A copy; reading the files takes longer than most cases."""
    return copy.deepcopy(loaded_base())


def build(case: Case, *, checkpoint: str | None = None, merged: bool | None = None, **options: Any) -> OSEDiff:
    """The restorer of a case: upstream's names of the options, upstream's defaults."""
    given = case.options
    tiles = PublishedTiles(encoder=given.get("vae_encoder_tiled_size", 1024), decoder=given.get("vae_decoder_tiled_size", 224))
    return load_osediff(
        fresh_base(),
        MODEL / (checkpoint or given.get("checkpoint", "osediff.pkl")),
        merged=given.get("merge", False) if merged is None else merged,
        compat="upstream",
        vae_tiles=tiles,
        latent_tile=given.get("latent_tiled_size", 96),
        latent_overlap=given.get("latent_tiled_overlap", 32),
        tile_batch=1,
        dtype="float32",
        **options,
    )


def signed(eight: Tensor) -> Tensor:
    """(H, W, 3) or (N, H, W, 3) in 8 bits to (N, 3, H, W) in [-1, 1]."""
    batch = eight if eight.ndim == 4 else eight[None]
    return batch.permute(0, 3, 1, 2).float() / 255 * 2 - 1


def eight_bits(picture: Tensor) -> np.ndarray[Any, Any]:
    found = np.stack([truncated(p * 0.5 + 0.5) for p in picture.detach()])
    return found if len(found) > 1 else found[0]


def text(case: Case) -> Outputs:
    embedder = fresh_base().text
    prompts = case.options["prompts"]
    return {"input_ids": embedder.tokens(prompts), "prompt_embeds": embedder(prompts)}


def weights(case: Case) -> Outputs:
    base = build(case, merged=True).base
    parts = {f"unet.{k}": v for k, v in base.unet.state_dict().items()} | {
        f"vae.{k}": v for k, v in base.vae.state_dict().items()
    }
    assert not [name for name in parts if "lora" in name or "base_layer" in name]
    return parts


def scheduler(case: Case) -> Outputs:
    alphas = fresh_base().alphas
    alpha = alphas[999]
    denoised = (case.tensors["sample"] - (1 - alpha).sqrt() * case.tensors["model_output"]) / alpha.sqrt()
    # The list of timesteps of the published scheduler is of no use (see its facts): the step is taken at 999.
    return {
        "alphas_cumprod": alphas,
        "set_timesteps_1": torch.tensor([1]),
        "pred_original_sample": denoised,
        "prev_sample": denoised + 1e-10 * case.noise[0],
    }


@torch.no_grad()
def vae_encode(case: Case) -> Outputs:
    restorer = build(case)
    with restorer.acting():
        mean, logvar = encode(restorer.base.vae, signed(case.tensors["lq_u8"]), restorer.vae_mode)
    sample = sample_posterior(mean, logvar, case.noise[0])
    return {"mean": mean, "logvar": logvar, "latent": sample * restorer.base.vae.config.scaling_factor}


@torch.no_grad()
def unet(case: Case) -> Outputs:
    restorer = build(case)
    embedding = restorer.base.text([case.options["prompt"]])
    with restorer.acting():
        return {"eps": restorer.base.unet(case.tensors["latent"], 999, encoder_hidden_states=embedding).sample}


@torch.no_grad()
def vae_decode(case: Case) -> Outputs:
    restorer = build(case)
    latent = case.tensors["x_denoised"] / restorer.base.vae.config.scaling_factor
    picture = decode(restorer.base.vae, latent, restorer.vae_mode)
    found: Outputs = {"image": picture, "image_u8": eight_bits(picture.clamp(-1, 1))}
    if crop := case.options.get("crop"):
        found["image_crop"] = picture[..., crop[0] : crop[1], crop[2] : crop[3]]
    return found


@torch.no_grad()
def onestep(case: Case) -> Outputs:
    restorer = build(case)
    seen: list[tuple[Tensor, Tensor]] = []
    hook = restorer.base.unet.register_forward_hook(lambda _, given, out: seen.append((given[0], out.sample)))
    noise = ReplayedNoise(case.noise)
    result = restorer.step(signed(case.tensors["lq_u8"]), restorer.base.text([case.options["prompt"]]), noise)
    hook.remove()
    assert noise.left == 0
    return {
        "latent": result.latent,
        "eps": result.noise,
        "x_denoised": result.denoised,
        "image": result.picture,
        "image_u8": eight_bits(result.picture),
        "tile_latent": torch.cat([given for given, _ in seen]),
        "tile_eps": torch.cat([found for _, found in seen]),
    }


def vae_plan(case: Case) -> Outputs:
    found: Outputs = {}
    for i, (height, width, tile, decoder) in enumerate(case.options["plans"]):
        tiles = plan_tiles(height, width, tile, decoder=decoder)
        whole = (0, height, 0, width)
        boxes = [(t.read, t.core) for t in tiles] if tiles else [(whole, whole)]
        size = (lambda side: side * 8) if decoder else (lambda side: side // 8)
        found[f"plan_{i:02d}_input"] = [(left, right, top, bottom) for (top, bottom, left, right), _ in boxes]
        found[f"plan_{i:02d}_output"] = [
            tuple(map(size, (left, right, top, bottom))) for _, (top, bottom, left, right) in boxes
        ]
    return found


def latent_plan(case: Case) -> Outputs:
    found: Outputs = {}
    for i, (height, width, tile, overlap) in enumerate(case.options["plans"]):
        tiles = plan_latent_tiles(height, width, tile=tile, overlap=overlap, compat=True)
        boxes = [(x, y, tiles.width, tiles.height) for y, x in tiles.corners] if tiles else [(0, 0, width, height)]
        found[f"plan_{i:02d}_xywh"] = boxes
    return found


def gauss(case: Case) -> Outputs:
    return {f"weights_{n:03d}": gaussian_window(n, n, symmetric=False) for n in case.options["sizes"]}


def color(case: Case) -> Outputs:
    target, source = (case.tensors[name].permute(2, 0, 1)[None].float() / 255 for name in ("target_u8", "source_u8"))
    found: Outputs = {}
    for name, match in (("adain", adain), ("wavelet", wavelet)):
        matched = match(target, source)[0]
        found |= {f"{name}_float": matched, f"{name}_u8": truncated(matched.clamp(0, 1))}
    return found


def preprocess(case: Case) -> Outputs:
    given = case.tensors["image_u8"].numpy()
    options = case.options
    size = {"upscale": options["upscale"], "process_size": options["process_size"]}
    return {"processed_u8": enlarge(given, **size, last=Image.Resampling.LANCZOS)}


@torch.no_grad()
def script(case: Case) -> Outputs:
    options = case.options
    matched = {"nofix": "none"}.get(options.get("align_method", "adain"), options.get("align_method", "adain"))
    size = {"upscale": options.get("upscale", 4), "process_size": options.get("process_size", 512)}
    restorer = build(case, color=matched, **size)
    prompt = Prompt(options["tags"])
    noise = ReplayedNoise(case.noise)
    user = options.get("prompt", "")
    assert prompt_text(prompt, user) == case.facts["facts"]["prompt"]
    lq = case.tensors["image_u8"].permute(2, 0, 1)[None].float() / 255
    seen = enlarge(case.tensors["image_u8"].numpy(), **size, last=Image.Resampling.LANCZOS)
    embedding = restorer.base.text([prompt_text(prompt, user)])
    network = restorer.step(signed(torch.from_numpy(seen)), embedding, ReplayedNoise(case.noise)).picture
    if user:  # only the script has a user's prompt beside the tags
        output = recolor(truncated(network[0] * 0.5 + 0.5), seen, restorer.color)
    else:
        output = (restorer.restore(lq, prompts=[prompt], noise=noise)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        assert noise.left == 0
    return {"output_u8": output, "network_u8": eight_bits(network)}


def named(restorer: OSEDiff) -> dict[str, Tensor]:
    parts = {"unet": restorer.base.unet, "vae": restorer.base.vae}
    return {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}


def gradient(case: Case) -> Outputs:
    restorer = build(case)
    watched = {name: named(restorer)[name].requires_grad_() for name in case.options.get("lora_grads", [])}
    lq = signed(case.tensors["lq_u8"]).requires_grad_()
    embedding = restorer.base.text([case.options["prompt"]]).clone().requires_grad_()
    picture = restorer.step(lq, embedding, ReplayedNoise(case.noise)).picture
    loss = (picture * case.tensors["w"].float()).sum() / case.options["divisor"]
    loss.backward()
    grads = {f"grad.{name}": p.grad for name, p in watched.items()}
    return {
        "loss": loss[None],
        "grad_lq": lq.grad,
        "grad_prompt_embeds": embedding.grad,
        "image": picture,
        "image_u8": eight_bits(picture),
        **grads,
    }


def gradient_norms(case: Case) -> Outputs:
    restorer = build(case)
    watched = {n: p for n, p in named(restorer).items() if ".lora_" in n or n.startswith("unet.conv_in.")}
    assert sorted(watched) == sorted(case.facts["facts"]["names"])
    for parameter in watched.values():
        parameter.requires_grad_()
    embedding = restorer.base.text([case.options["prompt"]])
    picture = restorer.step(signed(case.tensors["lq_u8"]), embedding, ReplayedNoise(case.noise)).picture
    loss = (picture * case.tensors["w"].float()).sum() / case.options["divisor"]
    loss.backward()
    norms = {name: p.grad.double().norm() for name, p in watched.items() if p.grad is not None}
    return {"grad_norms": torch.stack([norms[name] for name in case.facts["facts"]["names"]])}


def gradient_chain(case: Case) -> Outputs:
    options = case.options
    f = build(case, checkpoint=options["f_checkpoint"], merged=False)
    g = build(case, checkpoint=options["g_checkpoint"], merged=True)
    watched = {name: named(f)[name].requires_grad_() for name in options["lora_grads"]}
    lq, noise = signed(case.tensors["lq_u8"]).requires_grad_(), ReplayedNoise(case.noise)
    mid = f.step(lq, f.base.text([options["prompt_f"]]), noise).picture
    mid.retain_grad()
    picture = g.step(mid, g.base.text([options["prompt_g"]]), noise).picture
    loss = (picture * case.tensors["w"].float()).sum() / options["divisor"]
    loss.backward()
    return {
        "loss": loss[None],
        "grad_input": lq.grad,
        "grad_mid": mid.grad,
        "mid": mid,
        "mid_u8": eight_bits(mid),
        "output_u8": eight_bits(picture),
        **{f"grad.{name}": p.grad for name, p in watched.items()},
    }


class Critic:
    """A second UNet with the LoRA of a checkpoint, its own first convolution kept."""

    def __init__(self, case: Case) -> None:
        base = fresh_base()
        checkpoint = Checkpoint.read(MODEL / case.options.get("checkpoint", "osediff.pkl"))
        kept = {name: value.clone() for name, value in base.unet.state_dict().items() if name.startswith("conv_in.")}
        checkpoint.install(base.unet, base.vae)
        for name, value in kept.items():
            base.unet.conv_in.base_layer.get_parameter(name.removeprefix("conv_in.")).copy_(value)
        self.unet = base.unet
        # The published code leaves only the adapter of the middle block active; that all act is what was meant.
        self.names = list(UNET_ADAPTERS) if case.options.get("activate") == "all" else ["default_others"]

    def __call__(self, latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        with active(self.unet, self.names):
            found: Tensor = self.unet(latents, timesteps, encoder_hidden_states=embedding).sample
        return found


def frozen_denoiser(base: StableDiffusion) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def predict(latents: Tensor, timesteps: Tensor, embedding: Tensor) -> Tensor:
        found: Tensor = base.unet(latents, timesteps, encoder_hidden_states=embedding).sample
        return found

    return predict


def vsd(case: Case) -> Outputs:
    options = case.options
    base, critic = fresh_base(), Critic(case)
    embedding, negative = base.text(options["prompts"]), base.text(options["neg_prompts"])
    latents = case.tensors["latents"].requires_grad_()
    times, noise, other_noise, other_times = case.noise
    loss = variational_score_loss(
        latents,
        frozen_denoiser(base),
        critic,
        embedding=embedding,
        negative=negative,
        guidance=options["cfg_vsd"],
        timesteps=times.long(),
        noise=noise,
        alphas=base.alphas,
    )
    loss.mean().backward()
    watched = {name: critic.unet.get_parameter(name).requires_grad_() for name in options["lora_grads"]}
    follow = denoising_loss(
        latents.detach(), critic, embedding=embedding, timesteps=other_times.long(), noise=other_noise, alphas=base.alphas
    )
    follow.mean().backward()
    grads = {f"grad_diff.{name}": p.grad for name, p in watched.items()}
    return {"loss_vsd": loss.mean()[None], "grad_latents": latents.grad, "loss_diff": follow.mean()[None], **grads}


def train_step(case: Case) -> Outputs:
    options = case.options
    restorer, base, critic = build(case), fresh_base(), Critic(case)
    watched = {name: named(restorer)[name].requires_grad_() for name in options["lora_grads"]}
    source, target = signed(case.tensors["src_u8"]), signed(case.tensors["tgt_u8"])
    embedding, negative = base.text(options["prompts"]), base.text(options["neg_prompts"])
    result = restorer.step(source, embedding, ReplayedNoise(case.noise[:2]))
    reconstruction = (result.picture - target).square().mean() * options["lambda_l2"]
    prior = options["lambda_vsd"] * variational_score_loss(
        result.denoised,
        frozen_denoiser(base),
        critic,
        embedding=embedding,
        negative=negative,
        guidance=options["cfg_vsd"],
        timesteps=case.noise[2].long(),
        noise=case.noise[3],
        alphas=base.alphas,
    )
    (reconstruction + prior.mean()).backward()
    return {
        "image": result.picture,
        "image_u8": eight_bits(result.picture),
        "x_denoised": result.denoised,
        "loss_l2": reconstruction[None],
        "loss_vsd": prior.mean()[None],
        **{f"grad.{name}": p.grad for name, p in watched.items()},
    }


KINDS: dict[str, Callable[[Case], Outputs]] = {
    "text": text,
    "weights": weights,
    "scheduler": scheduler,
    "vae_encode": vae_encode,
    "unet": unet,
    "vae_decode": vae_decode,
    "onestep": onestep,
    "vae_plan": vae_plan,
    "latent_plan": latent_plan,
    "gauss": gauss,
    "color": color,
    "preprocess": preprocess,
    "script": script,
    "gradient": gradient,
    "gradient_norms": gradient_norms,
    "gradient_chain": gradient_chain,
    "vsd": vsd,
    "train_step": train_step,
}


@pytest.mark.parametrize("case", cases_of("osediff"))
def test_as_published(case: Case | None) -> None:
    if case is None:
        return missing("osediff")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        check(case, KINDS[case.kind](case))
    finally:
        torch.set_num_threads(threads)
