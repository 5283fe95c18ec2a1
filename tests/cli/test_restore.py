from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pnp_irib.cli.main import restorer_options
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.pixel import PixelArchitecture
from tests.cli.run import COMMAND, ENVIRONMENT, FAST, Crop, files, pnp, restore, size
from tests.restorers import OURS


def test_a_folder_with_all_kinds_of_trouble(crop: Crop, tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "a.jpg", "deep/er/b.webp", "c.gif"):
        crop(given / name)
    (given / "damaged.png").write_bytes((given / "a.png").read_bytes()[:200])
    (given / "empty.jpg").write_bytes(b"")
    (given / "text.png").write_text("hello")
    before = {name: (given / name).read_bytes() for name in files(given)}
    done = restore(given, "-o", out, "--json", "--compare", "--consistency")
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {Path(line["input"]).name: line["status"] for line in lines} == {
        "a.jpg": "restored",
        "a.png": "restored",
        "c.gif": "restored",
        "damaged.png": "failed",
        "b.webp": "restored",
        "empty.jpg": "failed",
        "text.png": "failed",
    }
    for line in lines:
        if line["status"] == "failed":
            assert line["reason"]
            assert "\n" not in line["reason"]
            assert "internal error" not in line["reason"]
        else:
            assert line["used"]["restorer"] == "realesr-animevideov3"
            assert set(line["stages"]) == {"read", "project", "restore"}
            assert size(Path(line["output"])) == (48, 48)
            assert size(Path(line["comparison"])) == (4 * 48 + 3 * 8, 48)
            assert size(Path(line["consistency"]["map"])) == (48, 48)
            assert 0 <= line["consistency"]["mean"] <= line["consistency"]["worst"] <= 1
    written = [name for name in files(out) if ".compare." not in name and ".consistency." not in name]
    assert written == ["a.jpg", "a.png", "c.gif.png", "deep/er/b.webp"]
    assert {name: (given / name).read_bytes() for name in files(given)} == before

    # Again: what is there is skipped, with the comparisons no inputs of anything.
    stamps = {name: (out / name).stat().st_mtime_ns for name in files(out)}
    again = restore(given, "-o", out, "--json")
    assert again.returncode == 1
    assert [json.loads(line)["status"] for line in again.stdout.splitlines()].count("skipped") == 4
    assert {name: (out / name).stat().st_mtime_ns for name in files(out)} == stamps


def test_one_file_with_options_agrees_with_python(crop: Crop, tmp_path: Path) -> None:
    from pnp_irib import wrap

    path = crop(tmp_path / "a.png", 20)
    sizes = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)
    projector = PixelProjector(sizes)
    projector.head.weight.data.normal_(0, 0.1)
    projector.save_pretrained(tmp_path / "projector")
    name = f"local-dir:{tmp_path / 'projector'}"
    options = (
        "--scale",
        "2.5",
        "--strength",
        "0.5",
        "--prompt",
        "a boat",
        "--tile",
        "16",
        "--seed",
        "3",
        "--dtype",
        "float32",
    )
    done = pnp("restore", path, "-o", tmp_path / "b.png", *FAST[:2], "--projector", name, "--device", "cpu", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert "WrappedRestorer(realesr-animevideov3, x4)" in done.stderr
    assert f"[1/1] {path} -> {tmp_path / 'b.png'}" in done.stderr
    robust = wrap("realesr-animevideov3", projector=name, dtype="float32")
    here = robust(path, scale=2.5, strength=0.5, prompt="a boat", tile=16, seed=3)
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (50, 50)
        assert np.abs(np.asarray(image).astype(int) - np.asarray(here.image).astype(int)).max() <= 1  # threads may differ


def test_overwrite_and_format(crop: Crop, tmp_path: Path) -> None:
    path, out = crop(tmp_path / "a.png"), tmp_path / "out"
    crop(out / "a.png", 3)
    assert "exists; --overwrite replaces it" in restore(path, "-o", out).stderr
    assert size(out / "a.png") == (3, 3)
    assert restore(path, "-o", out, "--overwrite").returncode == 0
    assert size(out / "a.png") == (48, 48)
    assert restore(path, "-o", out, "--format", "jpg").returncode == 0
    assert files(out) == ["a.png", "a.png.jpg"]


def test_the_input_is_never_written_over(crop: Crop, tmp_path: Path) -> None:
    path = crop(tmp_path / "a.png")
    before = path.read_bytes()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").symlink_to(path)
    os.link(path, tmp_path / "b.png")
    for target in (tmp_path / "out", tmp_path / "b.png"):  # for the others see the plan
        done = restore(path, "-o", target, "--overwrite")
        assert done.returncode == 1, target
        assert "never written over" in done.stderr
        assert path.read_bytes() == before
    assert files(tmp_path) == ["a.png", "b.png", "out/a.png"]


def test_every_picture_has_a_line_with_the_time_left(crop: Crop, tmp_path: Path) -> None:
    given = tmp_path / "in"
    crop(given / "a.png")
    (given / "b.png").write_text("hello")
    crop(given / "c.png")
    lines = [line for line in restore(given, "-o", tmp_path / "out").stderr.splitlines() if line.startswith("[")]
    assert re.fullmatch(r"\[1/3, 0:00:\d\d left\] .*a\.png -> .*a\.png  \d+\.\d s", lines[0])
    assert lines[1].startswith("[2/3, 0:00:0")
    assert lines[1].count("b.png") == 1
    assert lines[2].startswith(f"[3/3] {given / 'c.png'} -> ")


def test_names_that_are_no_unicode(crop: Crop, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    crop(path)
    assert restore(path, "-o", tmp_path / "out").returncode == 0
    assert restore(path, "-o", tmp_path / "out", "--overwrite", "--json").returncode == 0
    assert pnp("degrade", path, "-o", tmp_path / "small").returncode == 0
    assert [os.fsencode(found.name) for found in (tmp_path / "small").iterdir()] == [b"caf\xe9.png"]


def test_fail_fast(crop: Crop, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_text("hello")
    crop(tmp_path / "in" / "b.png")
    done = restore(tmp_path / "in", "-o", tmp_path / "out", "--fail-fast")
    assert done.returncode == 1
    assert not (tmp_path / "out" / "b.png").exists()
    assert "1 of 2 failed" in done.stderr
    done = restore(tmp_path / "in" / "absent.png", tmp_path / "in" / "b.png", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "absent.png" in done.stderr
    assert files(tmp_path / "out") == ["b.png"]


USAGE = {
    "tile text": (("--tile", "big"), "expected auto, none, or a number of pixels"),
    "tile small": (("--tile", "8"), "at least 16 pixels"),
    "scale zero": (("--scale", "0"), "above 0, at most 64"),
    "scale text": (("--scale", "big"), "--scale"),
    "strength": (("--strength", "2"), "outside [0, 1]"),
    "restorer": (("--restorer", "realesrgan-x4pluss"), "Did you mean 'realesrgan-x4plus'"),
    "projector": (("--projector", "no-such"), "no bundled projector named 'no-such'"),
    "device": (("--device", "abacus"), "cannot be used"),
    "dtype": (("--dtype", "float31"), "Did you mean 'float32'"),
    "format": (("--format", "gif"), "expected one of png"),
    "lfo": (("--lfo", "-1"), "--lfo"),
    "seed": (("--seed", "x"), "--seed"),
    "max pixels": (("--max-pixels", "0"), "--max-pixels"),
    "unknown option": (("--colour", "red"), "--colour"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_usage_errors_end_with_2_before_any_picture(crop: Crop, tmp_path: Path, kind: str) -> None:
    arguments, advice = USAGE[kind]
    defaults = ["--restorer", "realesr-animevideov3", "--projector", "none", "--device", "cpu"]
    done = pnp("restore", crop(tmp_path / "a.png"), "-o", tmp_path / "out", *defaults, *arguments)
    assert done.returncode == 2, done.stderr
    assert advice in done.stderr
    assert (done.stderr.count("\n"), done.stdout) == (1, "")
    assert done.stderr.startswith("pnp-irib: ")
    assert not (tmp_path / "out").exists()


def test_usage_errors_without_inputs(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = restore(tmp_path / "empty", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("pnp-irib: no pictures under")
    for wrong in (["restore"], ["repair"], ["restore", "a.png"]):
        done = pnp(*wrong)
        assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, ""), done
    assert "Usage" in pnp().stdout + pnp().stderr
    assert pnp("--version").stdout.startswith("pnp-irib ")
    for command in ("restore", "models", "degrade", "train", "bench"):
        assert pnp(command, "--help").returncode == 0


def running(given: Path, out: Path) -> subprocess.Popen[str]:
    """A run over many pictures that has finished at least two; on a busy machine it waits for the test, not the reverse."""
    process = subprocess.Popen(
        ["nice", "-n", "19", COMMAND, "restore", str(given), "-o", str(out), *FAST],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    for _ in range(2400):
        if out.is_dir() and len(list(out.glob("[!.]*"))) >= 2:
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def many(crop: Crop, folder: Path) -> Path:
    for index in range(400):
        crop(folder / f"{index:03}.png", 64)
    return folder


def test_interrupted_leaves_whole_files_only(crop: Crop, tmp_path: Path) -> None:
    given, out = many(crop, tmp_path / "in"), tmp_path / "out"
    process = running(given, out)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stdout + stderr
    assert stderr.rstrip().endswith("pnp-irib: interrupted")
    names = files(out)
    assert 2 <= len(names) < 400
    assert not [name for name in names if name.startswith(".")]
    assert {size(out / name) for name in names} == {(256, 256)}


def test_killed_leaves_no_half_file_under_a_final_name(crop: Crop, tmp_path: Path) -> None:
    given, out = many(crop, tmp_path / "in"), tmp_path / "out"
    process = running(given, out)
    process.kill()
    process.communicate(timeout=60)
    names = [name for name in files(out) if not name.startswith(".")]
    assert 2 <= len(names) < 400
    assert {size(out / name) for name in names} == {(256, 256)}


def test_a_reader_that_goes_away_is_no_error_message(crop: Crop, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [COMMAND, "restore", str(crop(tmp_path / "a.png")), "-o", str(tmp_path / "out"), "--json", *FAST],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.wait(60)
    assert "Traceback" not in said
    assert "BrokenPipe" not in said


def test_what_cannot_be_written_is_one_line_and_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(path)
    (tmp_path / "file").write_text("")
    for command in ("restore", "degrade"):
        model = ["--restorer", "realesr-animevideov3"] if command == "restore" else []
        done = pnp(command, path, "-o", tmp_path / "file" / "b.png", *model)
        assert done.returncode == 1
        assert "a.png: failed: " in done.stderr
        assert "cannot be written: " in done.stderr
        assert "Errno" not in done.stderr
        # Its own folder: the input would be written over.
        done = pnp(command, path, "-o", tmp_path, "--overwrite", *model)
        assert done.returncode == 1
        assert "never written over" in done.stderr


# --- models -----------------------------------------------------------------------------------------------------------


def test_the_table_of_models_fits_80_columns() -> None:
    done = pnp("models")
    assert done.returncode == 0
    table, _, origins = done.stdout.partition("\n\n")
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["name", "scale", "prompts", "weights", "commercial", "size", "here"]
    assert [line.split()[0] for line in lines[1:]] == OURS
    assert lines[1 + OURS.index("realesrgan-x4plus")].split()[1:] == ["x4", "none", "BSD-3-Clause", "yes", "33", "MB", "yes"]
    assert lines[1 + OURS.index("supir")].split()[-4:] == ["no", "5.3", "GB", "no"]
    assert "realesrgan-x4plus: Real-ESRGAN x4plus (photographs); code Apache-2.0\n  weights here: package sr-" in origins
    assert origins.count("weights from https://github.com/cswry/SeeSR\n") == 2  # of the files of one place, once for each


def test_models_as_json() -> None:
    listed = json.loads(pnp("models", "--json").stdout)
    assert [spec["name"] for spec in listed] == OURS
    assert all(spec["here"] and spec["weights"][0]["size"] for spec in listed if spec["name"].startswith("realesr"))
    assert not any(spec["here"] for spec in listed if spec["name"].startswith("osediff"))


def test_a_broken_plugin_is_told_and_the_table_is_still_there(tmp_path: Path) -> None:
    info = tmp_path / "bad_sr-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-sr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pnp_irib.restorers]\nbad = no_such_module:SPEC\nvague = vague_sr:SPEC\n")
    (tmp_path / "vague_sr.py").write_text(
        "from pnp_irib.spec import Licence, RestorerSpec, WeightsFile\n"
        "MIT = Licence(name='MIT', commercial=True)\n"
        "FILE = WeightsFile(name='a', places=('hf-hub:owner/repo',))\n"  # no file is named
        "SPEC = RestorerSpec(name='vague', title='V', code_licence=MIT, weights_licence=MIT, weights=(FILE,))\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    for options in ((), ("--json",)):
        done = subprocess.run([COMMAND, "models", *options], capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0
        assert "broken: restorer 'bad' of bad-sr cannot be loaded" in done.stderr
        assert "broken: restorer 'vague' of bad-sr cannot be loaded" in done.stderr
        assert "realesrgan-x4plus" in done.stdout


def test_a_restorer_that_lists_no_weights_has_no_size(tmp_path: Path) -> None:
    info = tmp_path / "bare_sr-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bare-sr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pnp_irib.restorers]\nbare = bare_sr:SPEC\n")
    (tmp_path / "bare_sr.py").write_text(
        "from pnp_irib.spec import Licence, RestorerSpec\n"
        "MIT = Licence(name='MIT', commercial=True)\n"
        "SPEC = RestorerSpec(name='bare', title='B', factory='bare_sr:load', scale=2, code_licence=MIT, weights_licence=MIT)\n"
    )
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([COMMAND, "models"], capture_output=True, text=True, check=False, env=environment)
    assert done.stdout.splitlines()[1].split() == ["bare", "x2", "none", "MIT", "yes", "-", "-"]


def test_a_restorer_of_another_package_needs_no_options(tmp_path: Path) -> None:
    info = tmp_path / "plain_sr-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plain-sr\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pnp_irib.restorers]\nplain = plain_sr:SPEC\n")
    (tmp_path / "plain_sr.py").write_text(
        "from pnp_irib.spec import Licence, RestorerSpec\n"
        "MIT = Licence(name='MIT', commercial=True)\n"
        "BOTH = {'code_licence': MIT, 'weights_licence': MIT}\n"
        "SPEC = RestorerSpec(name='plain', title='P', factory='plain_sr:load', scale=2, **BOTH)\n"
        "class Plain:\n"
        "    spec = SPEC\n"
        "    def to(self, device=None, dtype=None): return self\n"
        "    def restore(self, lq, *, scale=None, prompts=None, noise=None):\n"
        "        return lq.repeat_interleave(2, 2).repeat_interleave(2, 3)\n"
        "def load(): return Plain()\n"
    )
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    environment = ENVIRONMENT | {"PYTHONPATH": str(tmp_path)}
    command = [str(COMMAND), "restore", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--restorer", "plain"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (10, 8)


def test_options_are_read_as_yaml() -> None:
    given = {
        "steps=10": 10,
        "memory=0.5": 0.5,
        "tiled=true": True,
        "start=null": None,
        "guidance={scale: 0.05, loss: mse}": {"scale": 0.05, "loss": "mse"},
        "words=": "",  # no words are not the usual ones
        "words=a cat: black": "a cat: black",
        "words={cat": "{cat",
        "tags=[a, b]": "[a, b]",
    }
    for text, expected in given.items():
        assert restorer_options([text]) == {text.partition("=")[0]: expected}


def test_colours_are_matched_on_request(crop: Crop, tmp_path: Path) -> None:
    picture = crop(tmp_path / "in.png")
    told = [
        json.loads(restore(picture, "-o", tmp_path / f"{n}.png", "--json", *options).stdout)["used"]["color"]
        for n, options in enumerate([(), ("--color", "adain"), ("--color", "wavelet", "--color-reference", "elq")])
    ]
    assert told == [None, "adain to lq", "wavelet to elq"]
    assert len({(tmp_path / f"{n}.png").read_bytes() for n in range(3)}) == 3
    done = restore(picture, "-o", tmp_path / "bad.png", "--color", "sepia")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "adain, wavelet" in done.stderr
