"""Models of other sizes than the recorded one, with random weights, against plain computations of the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pnp_irib.prompts.ram.architecture import RamArchitecture
from pnp_irib.prompts.ram.head import TaggingHead
from pnp_irib.prompts.ram.model import RamModel
from pnp_irib.prompts.ram.network import RamNetwork
from tests.prompts.ram.tiny import SIZES, Tiny, plain_embedding, plain_logits


@pytest.fixture(params=SIZES)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(SIZES[request.param])


def pictures(count: int, height: int, width: int) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("count", "size", "lora"), [(1, (20, 31), True), (3, (90, 70), False)])
def test_as_computed_plainly(tiny: Tiny, tmp_path: Path, count: int, size: tuple[int, int], lora: bool) -> None:
    network = RamModel.read(tiny.write(tmp_path / "model"), lora=lora).network
    assert network.architecture == tiny.sizes
    weights = tiny.merged() if lora else tiny.weights
    given = pictures(count, *size)
    with torch.no_grad():
        seen = network(given)
        expected = plain_embedding(tiny.sizes, weights, network.prepare(given))
        expected_logits = plain_logits(tiny.sizes, weights, expected)
    assert seen.embedding.shape == (count, tiny.sizes.tokens, tiny.sizes.embedding)
    torch.testing.assert_close(seen.embedding.double(), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(seen.logits.double(), expected_logits, atol=1e-4, rtol=1e-4)
    assert expected_logits.std(dim=1).min() > 0.005  # labels differ, so that the order of the columns shows


def swin_of_transformers(sizes: RamArchitecture, weights: dict[str, Tensor]) -> Any:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(
        image_size=sizes.image_size,
        patch_size=sizes.patch,
        embed_dim=sizes.embed_dim,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        window_size=sizes.window,
        mlp_ratio=float(sizes.mlp_ratio),
        layer_norm_eps=1e-5,
    )
    model = SwinModel(config, add_pooling_layer=False).eval()
    wanted = {name for name in model.state_dict() if not name.endswith("relative_position_index")}
    named: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name.startswith("visual_encoder."):
            for theirs, part in _parts(name.removeprefix("visual_encoder."), value):
                (place,) = [spelled for spelled in _spellings(theirs) if spelled in wanted]
                named[place] = part
    assert named.keys() == wanted
    model.load_state_dict(named, strict=False)
    return model


def _parts(name: str, value: Tensor) -> list[tuple[str, Tensor]]:
    if ".attn.qkv." not in name:
        return [(name, value)]
    return [(name.replace("qkv", part), third) for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True)]


def _spellings(name: str) -> set[str]:
    """Those of several versions of transformers."""
    older = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        "patch_embed.norm": "embeddings.norm",
        "attn.proj": "attention.output.dense",
        "attn.relative": "attention.self.relative",
        "attn.query": "attention.self.query",
        "attn.key": "attention.self.key",
        "attn.value": "attention.self.value",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
    }
    newer = {
        **older,
        "attn.proj": "attention.o_proj",
        "attn.relative": "attention.relative_position_bias.relative",
        "attn.query": "attention.q_proj",
        "attn.key": "attention.k_proj",
        "attn.value": "attention.v_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    name = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
    found = set()
    for spelling in (older, newer):
        theirs = name
        for ours, replaced in spelling.items():
            theirs = theirs.replace(ours, replaced)
        found.add(f"encoder.{theirs}" if theirs.startswith("layers.") else theirs)
    return found


@pytest.mark.parametrize("name", ["plain", "deep", "other patches"])  # not where windows shrink, which transformers has not
def test_as_transformers_has_it(name: str) -> None:
    pytest.importorskip("transformers")
    tiny = Tiny(SIZES[name])
    network = RamNetwork(tiny.sizes)
    network.load_state_dict(tiny.weights)
    pixels = torch.randn(2, 3, tiny.sizes.image_size, tiny.sizes.image_size)
    with torch.no_grad():
        tokens = network.visual_encoder(pixels)
        expected = swin_of_transformers(tiny.sizes, tiny.weights)(pixels).last_hidden_state
    torch.testing.assert_close(tokens[:, 1:], expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(tokens[:, 0], expected.mean(1), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 5, 6, 14, 1000])
def test_labels_may_be_asked_in_any_portions(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Tiny(SIZES["deep"])
    network = RamNetwork(tiny.sizes)
    network.load_state_dict(tiny.weights)
    tokens = torch.randn(2, 5, tiny.sizes.embedding)
    shown: list[int] = []
    layer = network.tagging_head.encoder.layer[0]
    layer.register_forward_hook(lambda _module, given, _out: shown.append(given[0][..., 0].numel()))
    with torch.no_grad():
        whole = network.classify(tokens)
        shown.clear()
        monkeypatch.setattr(TaggingHead, "rows", rows)
        torch.testing.assert_close(network.classify(tokens), whole, atol=1e-6, rtol=1e-6)
    assert max(shown) <= max(2, rows)  # of two pictures together
    assert sum(shown) == 2 * tiny.sizes.labels


def test_gradients_are_those_of_differences() -> None:
    tiny = Tiny(SIZES["plain"])
    network = RamNetwork(tiny.sizes)
    network.load_state_dict(tiny.weights)
    network.double().requires_grad_(False)
    given = pictures(2, 9, 12).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(network(x)), given, fast_mode=True, nondet_tol=0)


def test_the_label_stream_is_kept_and_follows_the_weights() -> None:
    tiny = Tiny(SIZES["plain"])
    network = RamNetwork(tiny.sizes).requires_grad_(False)
    network.load_state_dict(tiny.weights)

    def fresh() -> Tensor:
        projection = network.wordvec_proj
        assert isinstance(projection, nn.Linear)
        return F.linear(network.label_embed, projection.weight, projection.bias).clamp(min=0)

    with torch.inference_mode():
        first = network.label_stream()
    assert not first.is_inference()
    assert network.label_stream() is first
    torch.testing.assert_close(first, fresh())
    for change in (
        lambda: network.label_embed.mul_(2),
        lambda: network.get_parameter("wordvec_proj.bias").add_(1),
        lambda: network.load_state_dict(Tiny(tiny.sizes, seed=8).weights),
        lambda: network.load_state_dict(Tiny(tiny.sizes, seed=9).weights, assign=True),
        lambda: network.double(),
        lambda: network.bfloat16(),
    ):
        before = network.label_stream()
        change()
        torch.testing.assert_close(network.label_stream(), fresh())
        assert network.label_stream().dtype == network.dtype
        assert network.label_stream() is not before
        assert network.label_stream() is network.label_stream()
    network.label_embed.data = network.label_embed.data * 3
    torch.testing.assert_close(network.label_stream(), fresh())
    network.float().requires_grad_(True)
    network.label_stream().sum().backward()
    assert network.label_embed.grad is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_comes_close(dtype: torch.dtype) -> None:
    tiny = Tiny(SIZES["plain"])
    network = RamNetwork(tiny.sizes).requires_grad_(False)
    network.load_state_dict(tiny.weights)
    given = pictures(2, 40, 40)
    whole, low = network(given), network.to(dtype)(given)
    assert low.embedding.dtype == low.logits.dtype == dtype
    bound = 0.1 if dtype is torch.bfloat16 else 0.02
    for a, b in zip(whole, low, strict=True):
        assert (a - b.float()).abs().mean() < bound * a.abs().mean()
