"""RAM as one network: a picture once through Swin gives its embedding and the scores of all labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.errors import InputError
from pnp_irib.prompts.ram.architecture import RamArchitecture
from pnp_irib.prompts.ram.head import TaggingHead
from pnp_irib.prompts.ram.swin import SwinEncoder

__all__ = ["RamNetwork", "RamOutput", "check_pictures"]

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, as is the deviation
_STD = (0.229, 0.224, 0.225)


class RamOutput(NamedTuple):
    """What is seen in N pictures.

    Attributes:
        embedding: (N, 1 + L, embedding), token 0 is that of the mean; (N, 145, 512) at the published sizes.
        logits: (N, labels), before the sigmoid.
    """

    embedding: Tensor
    logits: Tensor


class RamNetwork(nn.Module):
    """The parts of RAM (arXiv 2306.03514) that tagging and the image embedding use, under their published names.

    Differentiable with respect to the pictures. `RamTags` reads prompts with it; a restorer that attends to the embedding may
    call `embed` itself.

    Args:
        architecture: the sizes; the weights are random.
    """

    def __init__(self, architecture: RamArchitecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.visual_encoder = SwinEncoder(architecture)
        self.image_proj = nn.Linear(architecture.features, architecture.embedding)
        self.label_embed = nn.Parameter(torch.randn(architecture.labels, architecture.label_width))
        same = architecture.head_width == architecture.label_width
        self.wordvec_proj = nn.Identity() if same else nn.Linear(architecture.label_width, architecture.head_width)
        self.tagging_head = TaggingHead(architecture)
        self.fc = nn.Linear(architecture.head_width, 1)
        self._kept: tuple[list[Tensor], list[int], Tensor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.label_embed.dtype

    def forward(self, pictures: Tensor) -> RamOutput:
        """Embedding and logits in one pass.

        Args:
            pictures: (N, 3, H, W), floating point, RGB in about [0, 1], any size. Not clamped.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        embedding = self.embed(pictures)
        return RamOutput(embedding, self.classify(embedding))

    def embed(self, pictures: Tensor) -> Tensor:
        """The embedding alone, (N, 1 + L, embedding); see `forward`.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        return self.encode(self.prepare(pictures))

    def prepare(self, pictures: Tensor) -> Tensor:
        """Pictures as Swin takes them: squeezed to its square, then normalised with the mean and deviation of ImageNet.

        Bilinear with half-pixel centres and without antialiasing, also where that aliases: so the published results of SeeSR
        were made, with a torchvision that did not antialias tensors. Enlarged pictures are the same either way.

        Args:
            pictures: (N, 3, H, W) in about [0, 1].

        Returns:
            (N, 3, S, S), S = ``architecture.image_size``, in the dtype of the weights.

        Raises:
            InputError: not a batch of RGB pictures.
        """
        check_pictures(pictures)
        side = self.architecture.image_size
        square = F.interpolate(pictures, (side, side), mode="bilinear", align_corners=False, antialias=False)
        mean, std = (square.new_tensor(values)[:, None, None] for values in (_MEAN, _STD))
        return ((square - mean) / std).to(self.dtype)

    def encode(self, pixels: Tensor) -> Tensor:
        """What `prepare` gave to the embedding, (N, 1 + L, embedding). It is not normalised, as SeeSR reads it."""
        embedding: Tensor = self.image_proj(self.visual_encoder(pixels))
        return embedding

    def classify(self, embedding: Tensor) -> Tensor:
        """An embedding to logits, (N, labels)."""
        logits: Tensor = self.tagging_head(self.label_stream(), embedding, self.fc)
        return logits

    def label_stream(self) -> Tensor:
        """(labels, head_width): ReLU of the projected label embeddings. No picture changes it, so it is kept between calls.

        It is computed anew when a weight that it is made of was changed, cast, moved or replaced, and in every call where
        gradients of these weights are recorded.
        """
        weights = [self.label_embed, *self.wordvec_proj.parameters()]
        recorded = torch.is_grad_enabled() and any(weight.requires_grad for weight in weights)
        if recorded or any(weight.is_inference() for weight in weights):  # which count no versions
            return self._stream()
        versions = [weight._version for weight in weights]
        if self._kept is not None:
            known, known_versions, stream = self._kept
            if versions == known_versions and all(map(_same_memory, weights, known)):
                return stream
        # Outside of inference mode: a stream made inside of it could never take part in training.
        with torch.inference_mode(False), torch.no_grad():
            stream = self._stream()
            # The memory itself is held, so that no other weight can take its address and be mistaken for it.
            self._kept = ([weight.detach() for weight in weights], versions, stream)
        return stream

    def _stream(self) -> Tensor:
        with torch.autocast(self.label_embed.device.type, enabled=False):  # what is kept must not depend on who asked first
            return F.relu(self.wordvec_proj(self.label_embed))


def check_pictures(pictures: Tensor) -> None:
    """Check that it is a batch (N, 3, H, W) in floating point.

    Raises:
        InputError: it is not.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or not pictures.is_floating_point() or 0 in pictures.shape[-2:]:
        found = f"{pictures.dtype} {tuple(pictures.shape)}"
        raise InputError(f"pictures must be a floating point tensor (N, 3, H, W) in [0, 1]; got {found}.")


def _same_memory(weight: Tensor, known: Tensor) -> bool:
    return (weight.data_ptr(), weight.dtype, weight.device) == (known.data_ptr(), known.dtype, known.device)
