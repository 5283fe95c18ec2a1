"""Tiny random pipelines of every supported class."""

from __future__ import annotations

from typing import Any

import diffusers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.golden import golden_folder, missing

TEXT = 16  # width of the text encoder
GROUPS = {"norm_num_groups": 4}


class Parts:
    """Models that the pipelines are made of; equal names give equal weights."""

    def __init__(self) -> None:
        folder = golden_folder("osediff") / "model" / "sd21base" / "tokenizer"
        if not folder.is_dir():
            missing("osediff")
        self.tokenizer = CLIPTokenizer.from_pretrained(folder)

    def text(self, kind: Any = CLIPTextModel) -> Any:
        sizes: dict[str, Any] = {"hidden_size": TEXT, "projection_dim": TEXT, "intermediate_size": 2 * TEXT}
        layers: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 2}
        config = CLIPTextConfig(vocab_size=len(self.tokenizer), **sizes, **layers)
        config.eos_token_id = self.tokenizer.eos_token_id
        return kind(config)

    def vae(self, **options: Any) -> Any:
        wide = options.pop("block_out_channels", (8, 16))
        blocks: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * len(wide),
            "up_block_types": ("UpDecoderBlock2D",) * len(wide),
        }
        return diffusers.AutoencoderKL(block_out_channels=wide, latent_channels=4, **blocks, **GROUPS, **options)

    def unet(self, **options: Any) -> Any:
        sizes = {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": TEXT,
        }
        blocks = {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        }
        return diffusers.UNet2DConditionModel(**sizes | blocks | GROUPS | options)

    def small(self, **options: Any) -> dict[str, Any]:
        """What most of them have."""
        parts = {"vae": self.vae(), "text_encoder": self.text(), "tokenizer": self.tokenizer, "unet": self.unet()}
        return parts | {"scheduler": diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)} | options

    def checked(self, **options: Any) -> dict[str, Any]:
        return self.small(safety_checker=None, feature_extractor=None, **options)

    def upscale(self, **options: Any) -> Any:
        vae = self.vae(scaling_factor=0.08333, **{"block_out_channels": (8, 8, 16)} | options)
        unet = self.unet(in_channels=7, num_class_embeds=1000)
        parts = self.small(vae=vae, unet=unet, low_res_scheduler=diffusers.DDPMScheduler())
        return diffusers.StableDiffusionUpscalePipeline(**parts, max_noise_level=350)

    def latent_upscale(self) -> Any:
        unet = self.unet(
            in_channels=8,
            out_channels=5,
            down_block_types=("KDownBlock2D", "KCrossAttnDownBlock2D", "KCrossAttnDownBlock2D"),
            up_block_types=("KCrossAttnUpBlock2D", "KCrossAttnUpBlock2D", "KUpBlock2D"),
            mid_block_type=None,
            norm_num_groups=None,
            act_fn="gelu",
            block_out_channels=(32, 64, 64),
            attention_head_dim=8,
            time_cond_proj_dim=128 + TEXT,
            time_embedding_type="fourier",
            timestep_post_act="gelu",
            resnet_time_scale_shift="scale_shift",
            conv_in_kernel=1,
            conv_out_kernel=1,
        )
        scheduler = diffusers.EulerDiscreteScheduler(prediction_type="sample")
        return diffusers.StableDiffusionLatentUpscalePipeline(**self.small(unet=unet, scheduler=scheduler))

    def img2img(self) -> Any:
        return diffusers.StableDiffusionImg2ImgPipeline(**self.checked(), requires_safety_checker=False)

    def img2img_xl(self) -> Any:
        unet = self.unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=6 * 4 + TEXT,
            cross_attention_dim=2 * TEXT,
        )
        second = {"text_encoder_2": self.text(CLIPTextModelWithProjection), "tokenizer_2": self.tokenizer}
        parts = self.small(unet=unet, scheduler=diffusers.EulerDiscreteScheduler(), **second)
        return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, add_watermarker=False)

    def controlnet(self, kind: Any = diffusers.StableDiffusionControlNetPipeline) -> Any:
        parts = self.checked()
        net = diffusers.ControlNetModel.from_unet(parts["unet"], conditioning_embedding_out_channels=(4, 8))
        for name, parameter in net.named_parameters():
            if name.startswith(("controlnet_", "controlnet_cond_embedding.conv_out")):  # zero before training
                nn.init.normal_(parameter, std=0.3)
        return kind(**parts, controlnet=net, requires_safety_checker=False)

    def controlnet_img2img(self) -> Any:
        return self.controlnet(diffusers.StableDiffusionControlNetImg2ImgPipeline)
