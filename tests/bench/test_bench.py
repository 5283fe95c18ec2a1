"""Whole runs on photographs with a real restorer."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from pnp_irib import load_restorer, wrap
from pnp_irib.bench import BenchConfig, BenchReport, run_bench, runner
from pnp_irib.bench.metrics import METRICS
from pnp_irib.bench.report import CAPTIONS, CELL, MAX_GRID_BYTES, GridRow, Stage, evenly
from pnp_irib.classifiers import weight_file
from pnp_irib.degrade import degrade
from pnp_irib.errors import ConfigError, ImageFileError
from pnp_irib.files import sha256_of
from pnp_irib.images.io import read_picture, write_picture
from pnp_irib.images.similarity import psnr
from pnp_irib.noise import picture_seed
from pnp_irib.profile import PRESETS
from pnp_irib.registry import find_spec
from tests.hub.server import HubServer

RESTORER = "realesr-animevideov3"


def config(data: Path, projector: Path | str, **options: object) -> BenchConfig:
    name = projector if isinstance(projector, str) else f"local-dir:{projector}"
    content = {"data": data, "projector": name, "restorer": RESTORER, "dtype": "float32"} | options
    return BenchConfig.model_validate(content)


@pytest.fixture(scope="module")
def report(photographs: Path, brightening: Path) -> BenchReport:
    return run_bench(config(photographs, brightening, seeds=(0, 5)))


def test_every_column_is_what_it_says(report: BenchReport, photographs: Path, brightening: Path) -> None:
    """One picture and seed again, step by step, without the bench."""
    record = report.records[3]
    assert (record.name, record.seed) == ("kodak_02.png", 5)
    hq = read_picture(photographs / record.name).rgb[..., :200, :180]  # 203x182, cut to multiples of four
    assert (record.hq_size, record.lq_size) == ((200, 180), (50, 45))
    assert record.degradation_seed == picture_seed(5, record.name)
    elq = degrade(hq, "extreme", seeds=[picture_seed(5, record.name)], scale=4)
    bicubic = torch.nn.functional.interpolate(elq, (200, 180), mode="bicubic", antialias=True).clamp(0, 1)
    restorer = load_restorer(RESTORER, dtype="float32")
    with torch.inference_mode():
        alone = restorer.restore(elq).clamp(0, 1)
        wrapped = restorer.restore((elq + 0.1).clamp(0, 1)).clamp(0, 1)
    for column, picture in (("bicubic", bicubic), ("alone", alone), ("wrapped", wrapped)):
        assert getattr(record, column)["psnr"] == pytest.approx(psnr(picture, hq), abs=1e-3), column
    assert record.wrapped["colour_error"] > record.alone["colour_error"] + 10  # 0.1 is 25 of 255


def test_the_seed_of_a_picture_is_the_same_everywhere() -> None:
    # computed by hand: the first 7 bytes of sha256("0/a.png"), big-endian
    assert picture_seed(0, "a.png") == int(hashlib.sha256(b"0/a.png").hexdigest()[:14], 16)
    assert picture_seed(1, "a.png") != picture_seed(0, "a.png") != picture_seed(0, "b.png")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_inputs_are_deterministic_and_depend_on_no_neighbour(name: str, photographs: Path) -> None:
    hq = read_picture(photographs / "kodak_01.png").rgb
    other = hq.flip(-1)
    seed = picture_seed(0, "kodak_01.png")
    first = degrade(hq, name, seeds=[seed])
    assert torch.equal(degrade(torch.cat((other, hq)), name, seeds=[1, seed])[1:], first)
    assert not torch.equal(degrade(hq, name, seeds=[picture_seed(1, "kodak_01.png")]), first)


def test_runs_repeat(report: BenchReport, photographs: Path, brightening: Path) -> None:
    again = run_bench(config(photographs, brightening, seeds=(0, 5)))
    assert [replace(r, seconds={}) for r in again.records] == [replace(r, seconds={}) for r in report.records]
    # a limit and other seeds change no picture that is measured in both
    part = run_bench(config(photographs, brightening, seeds=(5,), limit=1))
    assert replace(part.records[0], seconds={}) == replace(report.records[1], seconds={})


def test_differences_pair_pictures_over_seeds(report: BenchReport) -> None:
    assert [(r.name, r.seed) for r in report.records] == [
        ("kodak_01.png", 0),
        ("kodak_01.png", 5),
        ("kodak_02.png", 0),
        ("kodak_02.png", 5),
    ]
    assert report.pictures == 2
    psnr_metric = METRICS[0]
    by_hand = [r.wrapped["psnr"] - r.alone["psnr"] for r in report.records]
    means = sorted(((by_hand[0] + by_hand[1]) / 2, (by_hand[2] + by_hand[3]) / 2))
    found = report.differences["psnr"]
    assert (found.low, found.high) == pytest.approx(means)  # two pictures: the ends are the pictures themselves
    assert found.mean == pytest.approx(sum(by_hand) / 4)
    assert report.relative(psnr_metric) == pytest.approx(found.mean / report.mean("alone", psnr_metric))


@pytest.mark.parametrize("projector", ["identity", "none"])
def test_a_projector_that_does_nothing_changes_nothing(projector: str, photographs: Path, identity: Path) -> None:
    found = run_bench(config(photographs, identity if projector == "identity" else "none"))
    for record in found.records:
        assert record.wrapped == record.alone
        assert record.bicubic != record.alone
    for metric in METRICS:
        interval = found.differences[metric.key]
        assert (interval.mean, interval.low, interval.high) == (0, 0, 0)
    if projector == "none":
        assert found.models["projector_sha256"] is None
        assert "none (as asked)" in found.markdown()


def test_times_and_memory_of_each_stage(report: BenchReport) -> None:
    for record in report.records:
        expected = set(Stage) if record.seed == 0 else set(Stage) - {Stage.READ}  # a file is read once for all seeds
        assert record.seconds.keys() == expected
        assert all(seconds > 0 for seconds in record.seconds.values())
    if report.peak_mib:
        assert report.peak_mib.keys() == report.peak_rise_mib.keys() == set(Stage)
        # the restorer holds 64 channels of 64x48 pixels, the tiny projector next to nothing
        assert report.peak_rise_mib[Stage.RESTORE] > report.peak_rise_mib[Stage.PROJECT]
    else:
        assert "measured on Linux only" in report.markdown()


def test_another_scale_than_the_restorers_own(photographs: Path, identity: Path) -> None:
    found = run_bench(config(photographs, identity, scale=3, limit=1))
    record = found.records[0]
    assert (record.hq_size, record.lq_size) == ((192, 255), (64, 85))
    assert record.alone == record.wrapped
    assert found.config["scale"] == 3


def test_looking_forward_gives_the_projector_a_prompt(photographs: Path, identity: Path) -> None:
    found = run_bench(config(photographs, identity, lfo=1, limit=1))
    assert found.records[0].wrapped == found.records[0].alone
    assert "look forward 1" in found.markdown()


def test_nothing_of_the_caller_changes(photographs: Path, brightening: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = wrap(RESTORER, projector=f"local-dir:{brightening}", dtype="float32")
    network = loaded.restorer.network  # type: ignore[attr-defined]
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    monkeypatch.setattr(runner, "wrap", lambda *_, **__: loaded)  # what measuring does, apart from loading
    state = torch.get_rng_state()
    before = {p: p.read_bytes() for p in sorted(photographs.iterdir())}
    run_bench(config(photographs, brightening, limit=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[key]) for key, value in network.state_dict().items())
    assert {p: p.read_bytes() for p in sorted(photographs.iterdir())} == before


def test_order_and_selection_of_files(tmp_path: Path, photographs: Path, identity: Path) -> None:
    source = photographs / "kodak_01.png"
    for name in ("b.png", "a/z.PNG", "a/b.png", ".hidden.png", "a/.cache/c.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, tmp_path / name)
    seen: list[tuple[int, int]] = []
    found = run_bench(config(tmp_path, identity), on_progress=lambda done, total: seen.append((done, total)))
    assert [r.name for r in found.records] == ["a/b.png", "a/z.PNG", "b.png"]
    assert found.pictures == 3  # two files of one name are two pictures
    assert found.records[0].degradation_seed == found.records[2].degradation_seed  # the seed is that of the file name
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_what_cannot_be_measured_says_why(
    tmp_path: Path, photographs: Path, identity: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"no pictures under .*Looked for"):
        run_bench(config(tmp_path, identity))
    with pytest.raises(ConfigError, match=r"extrem.*Did you mean"):
        run_bench(config(photographs, identity, preset="extrem"))
    with pytest.raises(ConfigError, match="comes twice"):
        run_bench(config(photographs, identity, seeds=(1, 1)))
    with pytest.raises(ConfigError, match="from 0"):
        run_bench(config(photographs, identity, seeds=(-1,)))
    with pytest.raises(ValidationError, match="seed"):
        config(photographs, identity, seed=1)
    write_picture(torch.zeros(1, 3, 3, 9), tmp_path / "tiny.png")
    with pytest.raises(ImageFileError, match="9x3, too small to be reduced by 4"):
        run_bench(config(tmp_path, identity))
    monkeypatch.setattr(runner, "MAX_HQ_PIXELS", 1000)
    with pytest.raises(ImageFileError, match="256x192 pixels, above the 1000 "):
        run_bench(config(photographs, identity))


def test_auto_without_a_projector_is_refused(photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pnp_irib.projectors.loading.bundled_projectors", dict)
    with pytest.raises(ConfigError, match="--projector none"):
        run_bench(config(photographs, "auto"))
    assert run_bench(config(photographs, "none", limit=1)).pictures == 1  # as the message advises


def test_written_files(report: BenchReport, tmp_path: Path, brightening: Path, photographs: Path) -> None:
    written = report.write(tmp_path / "new" / "folder")
    assert [p.name for p in written] == ["bench.json", "bench.md", "grid.png"]
    assert sorted(p.name for p in written[0].parent.iterdir()) == ["bench.json", "bench.md", "grid.png"]

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(written[0].read_text(), parse_constant=refuse)
    assert content["picture_count"] == 2
    assert content["config"]["seeds"] == [0, 5]
    assert len(content["pictures"]) == 4
    assert content["pictures"][3]["wrapped"] == report.records[3].wrapped
    weights = hashlib.sha256((brightening / "model.safetensors").read_bytes()).hexdigest()
    assert content["models"]["projector_sha256"] == weights  # the hash of the file that was loaded
    network = wrap(RESTORER, projector=None).restorer.network  # type: ignore[attr-defined]
    assert content["models"]["restorer_parameters"] == sum(p.numel() for p in network.parameters())
    assert content["models"]["judge_sha256"] == sha256_of(weight_file("lite2"))
    assert content["models"]["restorer_sha256"] == find_spec(RESTORER).weights[0].sha256
    assert content["bootstrap"] == {"resamples": 10_000, "seed": 0}
    assert len(content["config"]["data_sha256"]) == 64
    for key in ("pnp_irib", "commit", "torch", "numpy", "pillow", "python", "system", "cpu", "threads"):
        assert key in content["environment"]
    assert content["environment"]["cpu"]

    table = written[1].read_text()
    for metric in METRICS:
        line = next(line for line in table.splitlines() if line.startswith(f"| {metric.title}"))
        assert line.split(" | ")[1] == ("higher" if metric.higher_is_better else "lower")
        assert line.count("|") == 8
    assert f"{report.mean('wrapped', METRICS[0]):.2f}" in table
    assert "2 pictures, seeds 0, 5" in table
    assert "too narrow" in table  # two pictures

    with Image.open(written[2]) as grid:
        # pictures fit without enlarging: rows of 192 and 200 pixels under the captions
        assert grid.size == (len(CAPTIONS) * 294 + 6, 28 + 198 + 206)
        hq = read_picture(photographs / "kodak_01.png").rgb
        shown = torch.tensor(list(grid.crop((4 * 294 + 6, 28, 4 * 294 + 6 + 256, 28 + 192)).tobytes()))
        assert torch.equal(shown.view(192, 256, 3).permute(2, 0, 1), (255 * hq[0]).round().long())


def test_a_failed_write_leaves_the_earlier_report(
    report: BenchReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = report.write(tmp_path)
    before = [p.read_bytes() for p in written]
    broken = replace(report, total_seconds=math.nan)
    with pytest.raises(ValueError, match="JSON"):
        broken.write(tmp_path)
    assert [p.read_bytes() for p in written] == before


def test_the_grid_stays_below_six_megabytes(report: BenchReport, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.rand(8, 5, 1, 3, CELL, CELL, generator=random)  # what PNG compresses least
    large = replace(report, rows=[GridRow.of("noise", list(row)) for row in noise])
    path = large.write(tmp_path)[2]
    assert 0.5 * MAX_GRID_BYTES < path.stat().st_size <= MAX_GRID_BYTES
    with Image.open(path) as grid:
        assert grid.width < large.grid().width


def test_grid_rows_are_small_whatever_the_pictures() -> None:
    wide = torch.rand(1, 3, 400, 1200)
    row = GridRow.of("wide", [wide[..., ::4, ::4], wide, wide[..., ::4, ::4], wide, wide])
    assert {cell.size for cell in row.cells} == {(288, 96)}


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, [0]), (3, [0, 1, 2]), (8, list(range(8))), (9, [0, 1, 2, 3, 5, 6, 7, 8]), (15, list(range(0, 15, 2)))],
)
def test_shown_pictures_are_evenly_spread(count: int, expected: list[int]) -> None:
    assert evenly(count, 8) == expected


def test_a_report_goes_to_the_hub_with_its_projector(
    report: BenchReport, brightening: Path, identity: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pnp_irib.cli.push import run

    report.write(tmp_path / "out")
    run(brightening, "owner/bright", [tmp_path / "out" / "bench.json"], None, private=True)
    assert "/owner/bright/commit/" in capsys.readouterr().out
    card = hub.files("owner/bright")["README.md"].decode()
    first = METRICS[0]
    assert f"| {first.title}, {first.unit} | {report.mean('alone', first):.3f} | {report.mean('wrapped', first):.3f} |" in card
    assert f"{report.pictures} pictures of {Path(report.config['data']).name}" in card
    with pytest.raises(ConfigError, match="Measure this one"):
        run(identity, "owner/other", [tmp_path / "out" / "bench.json"], None, private=False)
    (tmp_path / "no.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"no\.json is no bench\.json"):
        run(brightening, "owner/bright", [tmp_path / "no.json"], None, private=False)
