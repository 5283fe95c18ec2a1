"""Networks of Stable Diffusion 2.x and XL under the names of the code that trained them (latent diffusion, OpenCLIP).

Here are those names for each parameter of the networks of diffusers and transformers, and the sizes of the networks, which
the shapes of the tensors tell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pnp_irib.errors import WeightsError
from pnp_irib.weights import load_strictly

__all__ = [
    "SD2",
    "XL",
    "Family",
    "Published",
    "clip_names",
    "empty_network",
    "load_published",
    "text_names",
    "unet_names",
    "vae_names",
]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out": "proj_out"}
_TEXT_LAYER = {
    ("layer_norm1",): "ln_1",
    ("layer_norm2",): "ln_2",
    ("self_attn", "out_proj"): "attn.out_proj",
    ("mlp", "fc1"): "mlp.c_fc",
    ("mlp", "fc2"): "mlp.c_proj",
}
_FUSED = re.compile(r"self_attn\.([qkv])_proj")


class Family(NamedTuple):
    """What the tensors of a model do not tell.

    Attributes:
        title: for messages.
        scaling: of latents.
    """

    title: str
    scaling: float


SD2 = Family("Stable Diffusion 2.x", 0.18215)
XL = Family("Stable Diffusion XL", 0.13025)


def unet_names(own: Iterable[str], layers: int) -> dict[str, str]:
    """Published names of a UNet's or ControlNet's parameters, by their own in diffusers.

    Args:
        own: all of them.
        layers: residual blocks of a level.
    """
    names = list(own)
    attentive = {name.split(".")[1] for name in names if re.match(r"up_blocks\.\d+\.attentions\.", name)}
    return {name: _unet_name(name, layers + 1, attentive) for name in names}


def _unet_name(name: str, step: int, attentive: set[str]) -> str:
    """One of them; ``step``: blocks of a level with what changes the resolution, which the published code counts through."""
    match name.split("."):
        case ["time_embedding", layer, kind]:
            return f"time_embed.{0 if layer == 'linear_1' else 2}.{kind}"
        case ["add_embedding", layer, kind]:
            return f"label_emb.0.{0 if layer == 'linear_1' else 2}.{kind}"
        case ["conv_in", kind]:
            return f"input_blocks.0.0.{kind}"
        case ["down_blocks", level, "downsamplers", "0", "conv", kind]:
            return f"input_blocks.{(int(level) + 1) * step}.0.op.{kind}"
        case ["down_blocks", level, "resnets", layer, part, kind]:
            return f"input_blocks.{1 + int(level) * step + int(layer)}.0.{_RESNET.get(part, part)}.{kind}"
        case ["down_blocks", level, "attentions", layer, *rest]:
            return f"input_blocks.{1 + int(level) * step + int(layer)}.1.{'.'.join(rest)}"
        case ["mid_block", "resnets", layer, part, kind]:
            return f"middle_block.{2 * int(layer)}.{_RESNET.get(part, part)}.{kind}"
        case ["mid_block", "attentions", layer, *rest]:
            return f"middle_block.{2 * int(layer) + 1}.{'.'.join(rest)}"
        case ["up_blocks", level, "upsamplers", "0", "conv", kind]:
            return f"output_blocks.{(int(level) + 1) * step - 1}.{2 if level in attentive else 1}.conv.{kind}"
        case ["up_blocks", level, "resnets", layer, part, kind]:
            return f"output_blocks.{int(level) * step + int(layer)}.0.{_RESNET.get(part, part)}.{kind}"
        case ["up_blocks", level, "attentions", layer, *rest]:
            return f"output_blocks.{int(level) * step + int(layer)}.1.{'.'.join(rest)}"
        case ["conv_norm_out", kind]:
            return f"out.0.{kind}"
        case ["conv_out", kind]:
            return f"out.2.{kind}"
        case ["controlnet_down_blocks", number, kind]:
            return f"zero_convs.{number}.0.{kind}"
        case ["controlnet_mid_block", kind]:
            return f"middle_block_out.0.{kind}"
    return name


def vae_names(own: Iterable[str]) -> dict[str, str]:
    """Published names of a VAE's parameters, by their own in diffusers."""
    names = list(own)
    last = max((int(found[1]) for name in names if (found := re.match(r"decoder\.up_blocks\.(\d+)\.", name))), default=0)
    return {name: _vae_name(name, last) for name in names}


def _vae_name(name: str, last: int) -> str:
    """One of them; ``last``: number of the decoder's last level, which the published code counts down to 0."""
    match name.split("."):
        case ["encoder", "down_blocks", level, "downsamplers", "0", "conv", kind]:
            return f"encoder.down.{level}.downsample.conv.{kind}"
        case ["encoder", "down_blocks", level, "resnets", layer, *rest]:
            return f"encoder.down.{level}.block.{layer}.{_vae_resnet(rest)}"
        case ["decoder", "up_blocks", level, "upsamplers", "0", "conv", kind]:
            return f"decoder.up.{last - int(level)}.upsample.conv.{kind}"
        case ["decoder", "up_blocks", level, "resnets", layer, *rest]:
            return f"decoder.up.{last - int(level)}.block.{layer}.{_vae_resnet(rest)}"
        case [half, "mid_block", "resnets", layer, *rest]:
            return f"{half}.mid.block_{int(layer) + 1}.{_vae_resnet(rest)}"
        case [half, "mid_block", "attentions", layer, part, *_, kind]:
            return f"{half}.mid.attn_{int(layer) + 1}.{_VAE_ATTENTION.get(part, part)}.{kind}"
        case [half, "conv_norm_out", kind]:
            return f"{half}.norm_out.{kind}"
    return name


def _vae_resnet(rest: list[str]) -> str:
    return ".".join(rest).replace("conv_shortcut", "nin_shortcut")


def clip_names(own: Iterable[str]) -> dict[str, str]:
    """Published names of the parameters of a text encoder of OpenAI, by their own in transformers, where it comes from."""
    return {name: name.removeprefix("text_model.") for name in own}


def text_names(own: Iterable[str]) -> dict[str, str]:
    """The same of one of OpenCLIP, whose names are others; three parameters share one tensor."""
    return {name: _text_name(name.removeprefix("text_model.")) for name in own}


def _text_name(name: str) -> str:
    match name.split("."):
        case ["embeddings", "token_embedding", kind]:
            return f"token_embedding.{kind}"
        case ["embeddings", "position_embedding", _]:
            return "positional_embedding"
        case ["final_layer_norm", kind]:
            return f"ln_final.{kind}"
        case ["text_projection", _]:
            return "text_projection"
        case ["encoder", "layers", number, "self_attn", "q_proj" | "k_proj" | "v_proj", kind]:
            return f"transformer.resblocks.{number}.attn.in_proj_{kind}"
        case ["encoder", "layers", number, *part, kind]:
            return f"transformer.resblocks.{number}.{_TEXT_LAYER.get(tuple(part), '.'.join(part))}.{kind}"
    return name


def empty_network(kind: str, config: Mapping[str, Any], dtype: torch.dtype, *, source: str) -> Any:
    """A network of diffusers without values, on the meta device.

    Args:
        kind: its class.
        config: its arguments.
        dtype: of its parameters.
        source: of the configuration, for messages.

    Raises:
        WeightsError: there is no such network.
    """
    import diffusers

    try:
        with torch.device("meta"):
            network = getattr(diffusers, kind).from_config(dict(config))
    except (ValueError, TypeError, KeyError, IndexError, ZeroDivisionError, RuntimeError) as error:
        raise WeightsError(f"{source} describes no {kind} that can be built: {' '.join(str(error).split())[:200]}") from error
    return nn.Module.to(network, dtype=dtype)


def load_published(
    network: nn.Module, names: Mapping[str, str], tensors: dict[str, Tensor], *, source: str, prefix: str = ""
) -> None:
    """Give a planned network the tensors of a published file, in its dtype; without a copy of those that have it already.

    Args:
        network: on the meta device; frozen, and in evaluation mode afterwards.
        names: published names of all its parameters.
        tensors: by these names; taken out one by one, so that what is converted is not held twice.
        source: of them, for messages.
        prefix: that their names have in the file, for messages.

    Raises:
        WeightsError: names what is missing, unexpected or of another shape.
    """
    own = network.state_dict()
    if missing := sorted(set(names.values()) - tensors.keys()):
        told = ", ".join(f"{prefix}{name}" for name in missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        raise WeightsError(f"{source} does not fit {type(network).__name__}: missing {told}.")
    uses = Counter(names.values())
    found: dict[str, Tensor] = {}
    for name, published in names.items():
        uses[published] -= 1
        value = tensors[published] if uses[published] else tensors.pop(published)
        if ".in_proj_" in published and (third := _FUSED.search(name)):
            value = value.tensor_split(3)["qkv".index(third[1])]
        if published == "text_projection":  # OpenCLIP multiplies from the other side
            value = value.mT
        if own[name].ndim == 2 and value.shape[2:] == (1, 1):  # a convolution of one pixel is a linear layer
            value = value.flatten(1)
        found[name] = _of_its_own(value).to(own[name].dtype)
    found |= {f"{prefix}{name}": value for name, value in tensors.items()}
    load_strictly(network, found, source=source, assign=True)
    network.eval().requires_grad_(False)


def _of_its_own(value: Tensor) -> Tensor:
    """A tensor that shares its memory with no other, as views do, which some files hold; one that does not is not copied."""
    if value.is_meta or (value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes):
        return value
    return value.clone(memory_format=torch.contiguous_format)


class Published:
    """Shapes of the published tensors of one network.

    Args:
        tensors: by published names.
        source: of them, for messages.
        prefix: that their names have in the file, for messages.
        family: that the model is of.
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, source: str, prefix: str = "", family: Family = SD2) -> None:
        self.shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        self.source = source
        self.prefix = prefix
        self.family = family

    def size(self, name: str, dimension: int = 0) -> int:
        """One dimension of a tensor.

        Raises:
            WeightsError: it is not there, or has it not.
        """
        shape = self.shapes.get(name, ())
        if dimension >= len(shape):
            said = f"has {self.prefix}{name} of the shape {shape}" if name in self.shapes else f"misses {self.prefix}{name}"
            raise WeightsError(f"{self.source} {said}; expected {self.family.title} as its authors publish it.")
        return shape[dimension]

    def count(self, pattern: str) -> int:
        """How many different numbers stand where the group of a pattern is, at the beginning of a name."""
        return len({found[1] for name in self.shapes if (found := re.match(pattern, name))})

    def heads(self, width: int, of: int) -> int:
        """Attention heads of ``of`` channels in ``width`` of them.

        Raises:
            WeightsError: it does not come out even.
        """
        if width % of:
            raise WeightsError(
                f"{self.source} has attention of {width} channels ({self.prefix}*), no multiple of the {of} of a head. A "
                f"single file does not say how wide heads are: give heads=Heads(unet=..., text=...)."
            )
        return width // of

    def unet(self, head_width: int, pooled: int | None = None) -> dict[str, Any]:
        """Arguments of its ``UNet2DConditionModel``.

        Args:
            head_width: channels of an attention head.
            pooled: width of the vector of a text that it reads beside six lengths in pixels; None: it reads neither.

        Raises:
            WeightsError: it is none of the family.
        """
        levels = 1 + self.count(r"input_blocks\.(\d+)\.0\.op\.")
        blocks = self.count(r"input_blocks\.(\d+)\.")
        step = blocks // levels
        if step < 2 or blocks % levels:
            raise WeightsError(
                f"{self.source} has {blocks} blocks in {levels} levels ({self.prefix}input_blocks.*); expected the same "
                f"number in each, as in {self.family.title}."
            )
        first = [f"input_blocks.{1 + level * step}" for level in range(levels)]
        widths = [self.size(f"{block}.0.out_layers.3.weight") for block in first]
        attentive = [self.count(rf"{re.escape(block)}\.1\.transformer_blocks\.(\d+)\.") for block in first]
        middle = self.count(r"middle_block\.1\.transformer_blocks\.(\d+)\.")
        self.size("middle_block.1.proj_in.weight")
        return {
            "in_channels": self.size("input_blocks.0.0.weight", 1),
            "out_channels": self.size("out.2.weight"),
            "block_out_channels": widths,
            "layers_per_block": step - 1,
            "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in attentive],
            "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(attentive)],
            "transformer_layers_per_block": [depth or middle for depth in attentive],
            "cross_attention_dim": self.size("middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
            # Under this name diffusers has the number of heads.
            "attention_head_dim": [self.heads(width, head_width) for width in widths],
            "use_linear_projection": len(self.shapes["middle_block.1.proj_in.weight"]) == 2,
            "norm_num_groups": 32,
            **({} if pooled is None else self._beside(pooled)),
        }

    def _beside(self, pooled: int) -> dict[str, Any]:
        """Arguments of a UNet that say what it reads beside the words."""
        width = self.size("label_emb.0.0.weight", 1)
        if width <= pooled or (width - pooled) % 6:
            raise WeightsError(
                f"{self.source} reads {width} numbers beside the words ({self.prefix}label_emb.0.0.weight); expected the "
                f"{pooled} of its text encoder and a multiple of 6, as in {self.family.title}."
            )
        return {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": (width - pooled) // 6,
            "projection_class_embeddings_input_dim": width,
        }

    def vae(self) -> dict[str, Any]:
        """Arguments of its ``AutoencoderKL``.

        Raises:
            WeightsError: it is none of the family.
        """
        levels = self.count(r"encoder\.down\.(\d+)\.")
        return {
            "in_channels": self.size("encoder.conv_in.weight", 1),
            "out_channels": self.size("decoder.conv_out.weight"),
            "latent_channels": self.size("decoder.conv_in.weight", 1),
            "block_out_channels": [self.size(f"encoder.down.{level}.block.0.conv1.weight") for level in range(levels)],
            "layers_per_block": self.count(r"encoder\.down\.0\.block\.(\d+)\."),
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "norm_num_groups": 32,
            "scaling_factor": self.family.scaling,
        }

    def text(self, head_width: int, *, pooled: bool = False) -> dict[str, Any]:
        """Arguments of the ``CLIPTextConfig`` of an encoder of OpenCLIP.

        Args:
            head_width: channels of an attention head.
            pooled: with the last layer and what makes one vector of it; False: without, as Stable Diffusion 2.x does not use
                them.

        Raises:
            WeightsError: it is none of OpenCLIP.
        """
        width = self.size("ln_final.weight")
        return {
            "hidden_size": width,
            "intermediate_size": self.size("transformer.resblocks.0.mlp.c_fc.weight"),
            "num_hidden_layers": self.count(r"transformer\.resblocks\.(\d+)\.") - (not pooled),
            "num_attention_heads": self.heads(width, head_width),
            "vocab_size": self.size("token_embedding.weight"),
            "max_position_embeddings": self.size("positional_embedding"),
            "hidden_act": "gelu",
            **({"projection_dim": self.size("text_projection", 1)} if pooled else {}),
        }

    def clip(self, head_width: int) -> dict[str, Any]:
        """Arguments of the ``CLIPTextConfig`` of an encoder of OpenAI.

        Raises:
            WeightsError: it is none.
        """
        width = self.size("final_layer_norm.weight")
        return {
            "hidden_size": width,
            "intermediate_size": self.size("encoder.layers.0.mlp.fc1.weight"),
            "num_hidden_layers": self.count(r"encoder\.layers\.(\d+)\."),
            "num_attention_heads": self.heads(width, head_width),
            "vocab_size": self.size("embeddings.token_embedding.weight"),
            "max_position_embeddings": self.size("embeddings.position_embedding.weight"),
            "hidden_act": "quick_gelu",
        }
