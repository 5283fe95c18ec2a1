"""Every recorded case of the published SeeSR."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.diffusion.latents import gaussian_window, plan_latent_tiles
from pnp_irib.diffusion.published import batch_of, eight_bits, enlarge, recolor, rounded, truncated
from pnp_irib.diffusion.schedule import ancestral_step, leading, noised, steps_of, trailing
from pnp_irib.diffusion.vae import PublishedTiles, decode, encode, sample_posterior
from pnp_irib.diffusion.vae_published import plan_tiles
from pnp_irib.images.color import adain, wavelet
from pnp_irib.noise import ReplayedNoise
from pnp_irib.prompts import Prompt
from pnp_irib.weights import load_checkpoint
from pnp_irib_seesr.networks import published_name
from pnp_irib_seesr.restorer import SeeSR
from tests.adapters.seesr.models import MODEL, build
from tests.golden import Case, cases_of, check_recorded, golden_folder

Outputs = dict[str, Any]
METHODS = {"nofix": "none", "adain": "adain", "wavelet": "wavelet"}


def published(case: Case, turbo: Path, **options: Any) -> SeeSR:
    """The restorer of a case: upstream's names of the options, upstream's defaults."""
    given = case.options
    return build(
        turbo if given.get("turbo") else None,
        compat="upstream",
        num_inference_steps=given.get("num_inference_steps", 2),
        guidance_scale=given.get("guidance_scale", 5.5),
        conditioning_scale=given.get("conditioning_scale", 1.0),
        start=given.get("start_point", "lr"),
        batch=2 if given.get("guidance_scale", 5.5) > 1 else 1,
        latent_tile=given.get("latent_tiled_size", 96),
        latent_overlap=given.get("latent_tiled_overlap", 4),
        vae_tiles=PublishedTiles(given.get("vae_encoder_tiled_size", 1024), given.get("vae_decoder_tiled_size", 224)),
        **options,
    )


def drawn(case: Case) -> ReplayedNoise:
    """What was drawn; of the posterior's noise for both halves of the guidance only the first was used."""
    return ReplayedNoise([case.tensors[d["tensor"]][:1] for d in case.facts["noise"]])


@contextlib.contextmanager
def watched(module: torch.nn.Module, told: Callable[[Any, Any], object]) -> Iterator[None]:
    hook = module.register_forward_hook(lambda _, given, out: told(given, out) and None)
    try:
        yield
    finally:
        hook.remove()


def pictures(eight: Tensor) -> Tensor:
    return eight.permute(2, 0, 1)[None].float() / 255


def unit(picture: Tensor) -> Tensor:
    return (picture[0] * 0.5 + 0.5).clamp(0, 1)


@torch.no_grad()
def pipeline(case: Case, turbo: Path) -> Outputs:
    restorer = published(case, turbo)
    found: Outputs = {"timesteps": [step.timestep for step in restorer.steps]}
    raw: list[tuple[Tensor, Tensor]] = []
    residuals: list[Any] = []

    def each(number: int, noise: Tensor, latent: Tensor) -> None:
        found[f"eps_{number}"], found[f"latents_{number}"] = noise, latent

    restorer.on_step = each
    noise = drawn(case)
    inputs = case.facts["inputs"]
    image = case.tensors["ram_encoder_hidden_states"]
    networks = restorer.networks
    with (
        watched(networks, lambda given, out: raw.append((given[0], out))),
        watched(networks.controlnet, lambda given, out: residuals.append(out)),
    ):
        picture = restorer.denoise(pictures(case.tensors["image"]), [inputs["prompt"]], image, noise)
    assert noise.left == 0
    calls = len(raw) // len(restorer.steps)
    found |= {f"unet_raw_{n}": out for n, (_, out) in enumerate(raw[::calls])}
    for n, (given, out) in enumerate(raw[:calls]):
        found |= {f"tile_{n:02d}_input": given, f"tile_{n:02d}_raw": out}
    down, middle = residuals[0]
    return found | {
        "start_latents": raw[0][0][:1] if calls == 1 else start(case, restorer),
        "network_calls_per_step": calls,
        "controlnet_down_0_step_0": down[0],
        "controlnet_mid_step_0": middle,
        "decoded": picture,
        "image_out": rounded(unit(picture)),
    }


def start(case: Case, restorer: SeeSR) -> Tensor:
    """What the first step begins with; tiles show only parts of it."""
    mean, logvar = encode(restorer.base.vae, pictures(case.tensors["image"]) * 2 - 1, restorer.vae_mode)
    noise, posterior = (case.tensors[d["tensor"]][:1] for d in case.facts["noise"][:2])
    latent = sample_posterior(mean, logvar, posterior) * restorer.base.vae.config.scaling_factor
    return noised(latent, noise, restorer.base.alphas[999].item())


@torch.no_grad()
def end_to_end(case: Case, turbo: Path) -> Outputs:
    options = case.options
    size = {"upscale": options["upscale"], "process_size": options["process_size"]}
    words = {key: options[key] for key in ("added_prompt", "negative_prompt")}
    restorer = published(case, turbo, color=METHODS[options["align_method"]], **size, **words)
    given = case.tensors["image"]
    lq, noise = pictures(given), drawn(case)
    prompt, user = restorer.tagger(lq)[0], options["prompt"]
    assert prompt.embedding is not None
    seen = enlarge(given.numpy(), **size, last=Image.Resampling.BICUBIC)
    found: Outputs = {
        "tags_prompt": f"{prompt.text}, {user},",
        "full_prompt": restorer.prompt_text(prompt.text, user),
        "image_embedding": prompt.embedding[None],
        "enlarged": seen,
        "processed_size [height, width]": list(seen.shape[:2]),
    }
    decoded: list[Tensor] = []
    for sample in range(options["sample_times"]):

        def each(number: int, noise: Tensor, latent: Tensor, sample: int = sample) -> None:
            found[f"sample_{sample}_latents_{number}"] = latent

        restorer.on_step = each
        with watched(restorer.base.vae.decoder, lambda given, out: decoded.append(out)):
            final = restorer.restore(lq, prompts=[Prompt(user)] if user else None, noise=noise)
        found[f"sample_{sample}_before_colour_fix"] = rounded(unit(decoded[-1]))
        found[f"sample_{sample}_final"] = eight_bits(final)[0]
    assert noise.left == 0
    return found


def gradient(case: Case, turbo: Path) -> Outputs:
    restorer = published(case, turbo)
    image = pictures(case.tensors["image"]).requires_grad_()
    embedding = case.tensors["ram_encoder_hidden_states"].clone().requires_grad_()
    picture = restorer.denoise(image, [case.facts["inputs"]["prompt"]], embedding, drawn(case))
    output = (picture * 0.5 + 0.5).clamp(0, 1)
    loss = (output * case.tensors["w"]).sum()
    loss.backward()
    return {
        "output": output,
        "loss": pytest.approx(loss.item(), abs=1e-2),
        "grad_image": image.grad,
        "grad_image_embedding": embedding.grad,
    }


@torch.no_grad()
def controlnet_forward(case: Case, turbo: Path) -> Outputs:
    networks, t = build().networks, case.tensors
    given = {
        "encoder_hidden_states": t["text_embeds"],
        "cross_attention_kwargs": {"image_embedding": t["image_embeds"]},
        "controlnet_cond": networks.read(t["condition_uint8"].float() / 255),
        "return_dict": False,
    }
    found: Outputs = {}
    for scale, end in ((1.0, ""), (0.7, "_scale_0.7")):
        down, middle = networks.controlnet(t["sample"], case.options["timestep"], conditioning_scale=scale, **given)
        found |= {f"down_{n:02d}{end}": maps for n, maps in enumerate(down)} | {f"mid{end}": middle}
    return found


@torch.no_grad()
def unet_forward(case: Case, turbo: Path) -> Outputs:
    networks, t = build().networks, case.tensors
    condition = Case(case.folder.parent / case.folder.name.replace("unet", "controlnet")).tensors["condition_uint8"]
    found: Outputs = {}

    def watch(name: str) -> contextlib.AbstractContextManager[None]:
        kind = "image" if "image_attentions" in name else "text"
        module = networks.unet.get_submodule(name.replace("image_attentions", "attentions")).get_submodule(kind)
        return watched(module, lambda given, out: found.update({f"{name}:in": given[0][:1], f"{name}:out": out[0][:1]}))

    names = {name.partition(":")[0] for name in case.facts["outputs"] if ":" in name}
    timestep = case.options["timestep"]
    given = {"encoder_hidden_states": t["text_embeds"], "return_dict": False}
    image = {"image_embedding": t["image_embeds"]}
    zero = {"image_embedding": torch.zeros_like(t["image_embeds"])}
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(watch(name))
        alone = networks.unet(t["sample"], timestep, cross_attention_kwargs=image, **given)[0]
    return found | {
        "eps_without_residuals": alone,
        "eps_with_residuals": networks(
            t["sample"], timestep, t["text_embeds"], t["image_embeds"], networks.read(condition.float() / 255)
        ),
        "eps_with_zero_image_embeds": networks.unet(t["sample"], timestep, cross_attention_kwargs=zero, **given)[0],
    }


def color_fix(case: Case, turbo: Path) -> Outputs:
    target, source = (pictures(case.tensors[name]) for name in ("target", "source"))
    found: Outputs = {}
    for name, match in (("adain", adain), ("wavelet", wavelet)):
        matched = match(target, source)
        eight = recolor(case.tensors["target"].numpy(), case.tensors["source"].numpy(), name)  # type: ignore[arg-type]
        assert np.array_equal(eight, truncated(matched[0].clamp(0, 1)))
        found |= {f"{name}_float": matched, f"{name}_uint8": eight}
    return found


@torch.no_grad()
def vae(case: Case, turbo: Path) -> Outputs:
    restorer = build()
    mean, logvar = encode(restorer.base.vae, pictures(case.tensors["image"]) * 2 - 1)
    noise = case.tensors[case.facts["noise"][0]["tensor"]]
    latent = sample_posterior(mean, logvar, noise) * restorer.base.vae.config.scaling_factor
    decoded = decode(restorer.base.vae, latent / restorer.base.vae.config.scaling_factor)
    return {"mean": mean, "logvar": logvar, "latent": latent, "decoded": decoded}


@torch.no_grad()
def vae_tiled(case: Case, turbo: Path) -> Outputs:
    options, autoencoder = case.options, build().base.vae
    tiles = PublishedTiles(options["encoder_tile"], options["decoder_tile"])
    image, latent = pictures(case.tensors["image"]) * 2 - 1, case.tensors["latent_to_decode"]
    mean = encode(autoencoder, image, tiles)[0]
    decoded = decode(autoencoder, latent, tiles)
    off = (decoded - decode(autoencoder, latent)).abs()
    return {
        "mean_tiled": mean,
        "mean_untiled_difference_max": pytest.approx((mean - encode(autoencoder, image)[0]).abs().max().item(), rel=1e-2),
        "decoded_tiled_channel_0": decoded[:, :1],
        "decoded_untiled_difference_max": pytest.approx(off.max().item(), rel=1e-2),
        "decoded_untiled_difference_mean": pytest.approx(off.mean().item(), rel=1e-2),
    }


def text(case: Case, turbo: Path) -> Outputs:
    embedder, found = build().base.text, {}
    prompts = case.facts["inputs"]
    for number in range(len(prompts)):
        prompt = prompts[f"prompt_{number}"]
        found[f"input_ids_{number}"], found[f"embeds_{number}"] = embedder.tokens([prompt]), embedder([prompt])
    both = embedder([prompts["prompt_1"], prompts["prompt_0"]])
    return found | {
        "cfg_order_note": case.facts["outputs"]["cfg_order_note"],
        "cfg_embeds_std": pytest.approx(both.std().item(), rel=1e-4),
    }


def tile_plan(case: Case, turbo: Path) -> Outputs:
    found: list[dict[str, Any]] = []
    for plan in case.facts["outputs"]["plans"]:
        found.append(vae_plan(plan) if "part" in plan else latent_plan(plan))
    windows = {f"weights_{n}": gaussian_window(n, n, symmetric=False) for n in (9, 12)}
    return {"plans": found} | windows


def latent_plan(plan: dict[str, Any]) -> dict[str, Any]:
    given = {key: plan[key] for key in ("h", "w", "tile_size", "overlap")}
    tiles = plan_latent_tiles(plan["h"], plan["w"], tile=plan["tile_size"], overlap=plan["overlap"], compat=True)
    if tiles is None:
        return given | {"tiled": False}
    xs, ys = sorted({x for _, x in tiles.corners}), sorted({y for y, _ in tiles.corners})
    assert tiles.corners == tuple((y, x) for x in xs for y in ys)  # in upstream's order
    return given | {"tiled": True, "effective_tile": tiles.height, "x_origins": xs, "y_origins": ys}


def vae_plan(plan: dict[str, Any]) -> dict[str, Any]:
    given = {key: plan[key] for key in ("part", "tile_size", "pad", "height", "width")}
    decoder = plan["part"] == "decoder"
    tiles = plan_tiles(plan["height"], plan["width"], plan["tile_size"], decoder=decoder)
    if tiles is None:
        return given | {"tiled": False}

    def size(side: int) -> int:
        return side * 8 if decoder else side // 8

    return given | {
        "tiled": True,
        "input_boxes": [[left, right, top, bottom] for top, bottom, left, right in (t.read for t in tiles)],
        "output_boxes": [
            [size(x) for x in (left, right, top, bottom)] for top, bottom, left, right in (t.core for t in tiles)
        ],
    }


def sizes(case: Case, turbo: Path) -> Outputs:
    found = []
    for row in case.facts["outputs"]["rows"]:
        width, height = row["in [w,h]"]
        blank = np.zeros((height, width, 3), np.uint8)
        seen = enlarge(blank, upscale=row["upscale"], process_size=row["process_size"], last=Image.Resampling.BICUBIC)
        out = [width * row["upscale"], height * row["upscale"]]
        found.append(row | {"processed": [seen.shape[1], seen.shape[0]], "out": out})
    return {"rows": found}


def scheduler(case: Case, turbo: Path) -> Outputs:
    t, alphas = case.tensors, build().base.alphas
    found: Outputs = {"alphas_cumprod": alphas}
    for name, table in case.facts["outputs"].items():
        if not isinstance(table, dict) or "timesteps" not in table:
            continue
        kind, count = name.rsplit("_", 1)
        timesteps = (leading if kind == "sd2" else trailing)(int(count))
        stride = 1000 // int(count)
        steps = steps_of(alphas, timesteps, stride=stride)
        zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        rows, variances = [], []
        for step in steps:
            # The mean is linear in the picture and the latent: x0 = 1, x = 0, and the other way round.
            implied = step.alpha**0.5 / (1 - step.alpha) ** 0.5
            of_latent = ancestral_step(one, one / (1 - step.alpha) ** 0.5, step, None).item()
            of_picture = ancestral_step(zero, -one * implied, step, None).item()
            rows.append([of_picture, of_latent])
            variances.append((ancestral_step(zero, zero, step, one)).item() ** 2)
        found[name] = {
            "timesteps": list(timesteps),
            "previous": [s.timestep - stride for s in steps],
            "variance": pytest.approx(variances, rel=2e-3, abs=1e-7),
            "coefficients [x0, x]": [pytest.approx(row, rel=2e-3, abs=1e-5) for row in rows],
        }
    for number, timestep in enumerate((751, 501, 251, 1)):
        (step,) = steps_of(alphas, [timestep], stride=250)
        noise = t[case.facts["noise"][number]["tensor"]]
        found[f"step_{timestep}"] = ancestral_step(t["x"], t["eps"], step, noise)
    one, zero = torch.ones(1), torch.zeros(1)
    mixed = [noised(*pair, alphas[999].item()).item() for pair in ((one, zero), (zero, one))]
    return found | {
        "start_mix_at_999 [latent, noise]": pytest.approx(mixed, rel=1e-5),
        "add_noise_999": noised(t["lr_latent"], t["start_noise"], alphas[999].item()),
    }


def checkpoint_loading(case: Case, turbo: Path) -> Outputs:
    restorer, found = build(), {}
    networks = {"seesr/unet": restorer.networks.unet, "seesr/controlnet": restorer.networks.controlnet}
    for name, facts in case.facts["outputs"].items():
        if not isinstance(facts, dict):
            continue
        folder = MODEL / name
        tensors = load_checkpoint(folder / facts["file"])
        found[name] = {
            "file": facts["file"],
            "tensors": len(tensors),
            "numbers": sum(value.numel() for value in tensors.values()),
            "image_attention_tensors": sum("image_attentions" in key for key in tensors),
            "abs_sum": pytest.approx(sum(value.double().abs().sum().item() for value in tensors.values()), rel=1e-6),
        }
        if name in networks:
            own = {published_name(key): value for key, value in networks[name].state_dict().items()}
            if name == "seesr/controlnet":
                reader = restorer.networks.reader.state_dict()
                own |= {f"controlnet_cond_embedding.{key}": value for key, value in reader.items()}
            assert own.keys() == tensors.keys()
            assert all(torch.equal(own[key], value.float()) for key, value in tensors.items())
    merged = {published_name(key): value for key, value in build(turbo).networks.unet.state_dict().items()}
    stock, ours = (load_checkpoint(MODEL / f / "unet/diffusion_pytorch_model.safetensors") for f in ("sd-turbo", "seesr"))
    expected = stock | {key: value for key, value in ours.items() if "image_attentions" in key}
    assert merged.keys() == expected.keys()
    assert all(torch.equal(merged[key], value.float()) for key, value in expected.items())
    return found | {"turbo_unet": case.facts["outputs"]["turbo_unet"]}


KINDS = {
    "pipeline": pipeline,
    "end_to_end": end_to_end,
    "gradient": gradient,
    "controlnet_forward": controlnet_forward,
    "unet_forward": unet_forward,
    "color_fix": color_fix,
    "vae": vae,
    "vae_tiled": vae_tiled,
    "text": text,
    "tile_plan": tile_plan,
    "sizes": sizes,
    "scheduler": scheduler,
    "checkpoint_loading": checkpoint_loading,
}


@pytest.mark.parametrize("case", cases_of("seesr"))
def test_a_recorded_case(case: Case, turbo: Path) -> None:
    check_recorded(case, KINDS[case.kind](case, turbo))


def test_all_cases_are_there() -> None:
    kinds = {Case(path).kind for path in (golden_folder("seesr") / "cases").iterdir()}
    assert kinds == set(KINDS)
    assert batch_of([np.zeros((2, 3, 3), np.uint8)]).shape == (1, 3, 2, 3)
