"""Tiny random image-text models in the files that transformers writes: one of each way of captioning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<cls>"]
WORDS = [*SPECIAL, *(f"word{i}\n" for i in range(60))]  # the text of a caption has several lines
SIZES: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURE: dict[str, Any] = {"image_size": 32, "patch_size": 8}
SQUARE: dict[str, Any] = {"height": 32, "width": 32}
IDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEMPLATE = (
    "<s>{% for message in messages %}word1 {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}{% if add_generation_prompt %} word2{% endif %}"
)


def tokenizer(*, closed: bool = False) -> PreTrainedTokenizerFast:
    """Of words; ``closed``: texts stand between <cls> and </s>."""
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    # Words are read from texts as they stand in the vocabulary: with the end of their line.
    raw.pre_tokenizer = pre_tokenizers.Split("\n", "merged_with_previous")
    if closed:
        raw.post_processor = processors.TemplateProcessing("<cls> $A </s>", special_tokens=[("<cls>", 5), ("</s>", 2)])
    names: dict[str, Any] = {"model_input_names": ["input_ids", "attention_mask"]}
    names |= {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "cls_token": "<cls>"}
    return PreTrainedTokenizerFast(tokenizer_object=raw, additional_special_tokens=["<image>"], **names)


def save(model: Any, folder: Path, *parts: Any) -> Path:
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 or "embedding" in name:  # large, so that pictures and words matter
            parameter.data.normal_(0, 0.5, generator=generator)
    for part in (model, *parts):
        part.save_pretrained(folder)
    return folder


def blip(folder: Path) -> Path:
    """Captions a picture alone, or goes on with the beginning of a caption."""
    text: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "encoder_hidden_size": 16,
        "max_position_embeddings": 300,
        "sep_token_id": 2,
        **IDS,
    }
    config = BlipConfig(text_config={**text, **SIZES}, vision_config={**SIZES, **PICTURE}, projection_dim=16)
    processor = BlipProcessor(BlipImageProcessor(size=SQUARE), tokenizer(closed=True))
    return save(BlipForConditionalGeneration(config), folder, processor)


def llava(folder: Path, template: str = TEMPLATE) -> Path:
    """Chats."""
    text = LlamaConfig(vocab_size=len(WORDS), **SIZES, **IDS)
    vision = CLIPVisionConfig(projection_dim=16, **SIZES, **PICTURE)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    processor = LlavaProcessor(
        pictures,
        tokenizer(),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    return save(LlavaForConditionalGeneration(config), folder, processor)


def vit_gpt2(folder: Path) -> Path:
    """Captions a picture alone; has no processor, but the parts of one."""
    decoder = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=300, **IDS)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**SIZES, **PICTURE), decoder)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 1, 0, 2
    model = VisionEncoderDecoderModel(config)
    model.generation_config.num_beams, model.generation_config.max_length = 4, 16  # as it is published
    return save(model, folder, ViTImageProcessor(size=SQUARE), tokenizer())
