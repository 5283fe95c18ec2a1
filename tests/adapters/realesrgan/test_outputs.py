from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pnp_irib.files import sha256_of
from pnp_irib.images.io import read_picture
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer, TilingRestorer
from pnp_irib.spec import RestorerSpec
from pnp_irib_realesrgan.networks import SRVGGNetCompact
from pnp_irib_realesrgan.restorer import RealESRGAN
from pnp_irib_realesrgan.spec import ANIME
from tests.adapters.realesrgan.files import NAMES, SPECS, local_files


def run_ncnn(spec: RestorerSpec, picture: Tensor) -> Tensor:
    """What ncnn itself makes of its own files, in float32."""
    ncnn = pytest.importorskip("ncnn")
    param, data = local_files(spec)
    net = ncnn.Net()
    net.opt.num_threads = 1
    for option in ("use_fp16_storage", "use_fp16_packed", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    assert net.load_param(str(param)) == 0
    assert net.load_model(str(data)) == 0
    extractor = net.create_extractor()
    pixels = np.ascontiguousarray(picture[0].numpy())  # ncnn keeps no copy
    assert extractor.input("data", ncnn.Mat(pixels)) == 0
    status, out = extractor.extract("output")
    assert status == 0
    return torch.from_numpy(np.array(out))[None].clone()


def test_agrees_with_ncnn_on_a_photograph(restorer: RealESRGAN, photo: Tensor) -> None:
    crop = photo[..., 100:128, 60:108]
    with torch.inference_mode():
        ours = restorer.restore(crop)
    theirs = run_ncnn(restorer.spec, crop)
    assert ours.shape == theirs.shape == (1, 3, 112, 192)
    assert (ours - theirs).abs().max() < 2 / 255
    # A claim that could fail: the restored photograph is far from a plain enlargement.
    plain = torch.nn.functional.interpolate(crop, scale_factor=4.0, mode="nearest")
    assert (theirs - plain).abs().max() > 10 / 255


def test_the_dtype_that_auto_takes_is_within_3_of_float32(restorer: RealESRGAN, photo: Tensor) -> None:
    crop = photo[..., 40:72, 30:62]
    with torch.inference_mode():
        exact = restorer.restore(crop).clamp(0, 1)
        fast = load_restorer(restorer.spec.name).restore(crop).clamp(0, 1)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().max() <= 3 / 255


def test_a_dtype_that_is_not_within_3_is_not_called_safe() -> None:
    degraded = Path(__file__).resolve().parents[3] / "examples" / "images" / "colosseum.png"
    crop = read_picture(degraded).rgb[..., :64, :64]  # the network makes up most here, and differs by about 15/255
    with pytest.warns(UserWarning, match=r"bfloat16 is not known to be safe here; safe: float32"):
        half = load_restorer(ANIME.name, dtype="bfloat16")
    with torch.inference_mode():
        difference = (half.restore(crop) - load_restorer(ANIME.name, dtype="float32").restore(crop)).abs()
    assert difference.max() > 3 / 255
    assert difference.mean() < 3 / 255  # it works, it is only not exact enough everywhere


def test_batch_is_the_same_as_alone(compact: RealESRGAN, photo: Tensor) -> None:
    pictures = torch.cat((photo[..., :20, :24], photo[..., 60:80, 90:114], photo[..., 30:50, 3:27]))
    with torch.inference_mode():
        together = compact.restore(pictures)
        alone = torch.cat([compact.restore(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_size_dtype_and_scale_of_the_output(compact: RealESRGAN) -> None:
    assert compact.restore(torch.rand(2, 3, 1, 1)).shape == (2, 3, 4, 4)
    assert compact.restore(torch.rand(1, 3, 7, 5), scale=1.5).shape == (1, 3, 10, 8)  # round(10.5) = 10
    assert compact.restore(torch.rand(1, 3, 4, 5, dtype=torch.float64)).dtype == torch.float64


def test_keeps_the_protocols(restorer: RealESRGAN) -> None:
    assert isinstance(restorer, Restorer)
    assert isinstance(restorer, TilingRestorer)
    assert restorer.spec.name in NAMES
    assert not any(m.training for m in restorer.network.modules())
    assert not any(p.requires_grad for p in restorer.network.parameters())


def test_the_specs_tell_the_truth_about_the_files() -> None:
    for spec in SPECS:
        _, data = local_files(spec)
        assert (data.stat().st_size, sha256_of(data)) == (spec.weights[0].size, spec.weights[0].sha256)


def test_gradient_agrees_with_finite_differences(restorer: RealESRGAN, photo: Tensor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float64 is not among the dtypes that were measured
        double = load_restorer(restorer.spec.name, dtype=torch.float64)
    parameters = [p.detach().clone() for p in double.network.parameters()]  # type: ignore[attr-defined]
    lq = photo[..., 50:58, 70:80].double().requires_grad_()
    target = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def loss(picture: Tensor) -> Tensor:
        return (double.restore(picture) * target).sum()

    (gradient,) = torch.autograd.grad(loss(lq), lq)
    assert torch.isfinite(gradient).all()
    assert (gradient.abs() > 0).double().mean() > 0.99
    for seed in range(3):
        direction = torch.randn(lq.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        # A small step: these networks have kinks everywhere. Without gradients the activations work in place.
        with torch.no_grad():
            numeric = (loss(lq + 1e-8 * direction) - loss(lq - 1e-8 * direction)) / 2e-8
        torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-4, atol=1e-4)
    for before, after in zip(parameters, double.network.parameters(), strict=True):  # type: ignore[attr-defined]
        assert torch.equal(before, after)
        assert after.grad is None


def test_compact_network_of_other_sizes() -> None:
    network = SRVGGNetCompact(features=4, convolutions=2, scale=3)
    assert network(torch.rand(1, 3, 2, 5)).shape == (1, 3, 6, 15)
