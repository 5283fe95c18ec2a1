from __future__ import annotations

from pathlib import Path

import pytest

from pnp_irib.cli.files import Task, plan
from pnp_irib.errors import ConfigError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def targets(tasks: list[Task], output: Path) -> list[str]:
    return [str(task.target.relative_to(output)) for task in tasks]


def test_folders_keep_their_relative_paths(tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    touch(given / "b.png", given / "deep" / "er" / "a.JPG", given / "deep" / "a.png", given / "notes.txt", given / ".h.png")
    touch(given / ".hidden" / "a.png")
    tasks = plan([given], out, None)
    assert targets(tasks, out) == ["b.png", "deep/a.png", "deep/er/a.JPG"]
    assert all(task.problem is None for task in tasks)


def test_names_never_meet(tmp_path: Path) -> None:
    given, out = tmp_path / "in", tmp_path / "out"
    touch(*(given / name for name in ("a.jpg", "a.jpeg", "a.png", "a.gif", "a.webp", "a.PNG", "a.tga")))
    for ending in (None, "png", "jpg", ".TIF"):
        found = targets(plan([given], out, ending), out)
        assert len({name.lower() for name in found}) >= 6, found
        assert len(set(found)) == 7, found
    assert "a.gif.png" in targets(plan([given], out, None), out)
    found = targets(plan([given], out, "jpg"), out)
    assert {"a.jpg", "a.jpeg", "a.png.jpg"} <= set(found)


def test_two_inputs_for_one_output(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = tmp_path / "1" / "a.png", tmp_path / "2" / "a.png"
    touch(first, second)
    tasks = plan([first, second], out, None)
    assert tasks[0].problem is None
    assert tasks[1].problem is not None
    assert f"is already that of {first}" in tasks[1].problem
    # A name that an input has already and another one would get by its new ending.
    touch(tmp_path / "c" / "a.gif", tmp_path / "c" / "a.gif.png")
    assert sum(task.problem is not None for task in plan([tmp_path / "c"], out, None)) == 1


def test_the_same_file_twice_is_done_once(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.png"
    touch(path)
    assert len(plan([path, path], tmp_path / "out", None)) == 1
    assert len(plan([path.parent, path], tmp_path / "out", None)) == 1


def test_outputs_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "out" / "a.png")
    assert [task.source for task in plan([tmp_path], tmp_path / "out", None)] == [tmp_path / "a.png"]


def test_no_input_is_an_output(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    touch(path, tmp_path / "b.jpg")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "link.png").symlink_to(path)
    for inputs, output in (([path], tmp_path), ([path], path), ([path], tmp_path / "link"), ([path], tmp_path / "link.png")):
        (task,) = plan(inputs, output, None)
        assert task.problem is not None
        assert "never written over" in task.problem
    tasks = plan([tmp_path / "b.jpg", path], path.parent / "x" / "..", None)
    assert all(task.problem is not None for task in tasks)


def test_a_folder_named_as_its_own_output_is_told(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    tasks = plan([tmp_path], tmp_path, None)
    assert len(tasks) == 1
    assert tasks[0].problem is not None
    assert "never written over" in tasks[0].problem


def test_one_picture_may_name_its_output_file(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    (task,) = plan([tmp_path / "a.png"], tmp_path / "b.webp", None)
    assert task.target == tmp_path / "b.webp"
    (task,) = plan([tmp_path / "a.png"], tmp_path / "folder", None)
    assert task.target == tmp_path / "folder" / "a.png"


def test_an_output_file_of_no_known_format_is_no_folder(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"out\.jgp: pictures are written as \.png, .* For a folder of this name, make it"):
        plan([tmp_path / "a.png"], tmp_path / "out.jgp", None)
    (tmp_path / "out.v2").mkdir()
    (task,) = plan([tmp_path / "a.png"], tmp_path / "out.v2", None)
    assert task.target == tmp_path / "out.v2" / "a.png"


def test_several_pictures_need_a_folder(tmp_path: Path) -> None:
    touch(tmp_path / "a.png", tmp_path / "b.png", tmp_path / "file")
    for output in ("file", "out.png"):
        with pytest.raises(ConfigError, match="several pictures need a folder"):
            plan([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / output, None)


@pytest.mark.parametrize("format", ["gif", "", "exe", "../x"])
def test_wrong_formats(tmp_path: Path, format: str) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--format .*expected one of png, jpg"):
        plan([tmp_path / "a.png"], tmp_path / "out", format)


def test_an_output_file_whose_ending_contradicts_the_format(tmp_path: Path) -> None:
    touch(tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"--format jpg.*b\.png"):
        plan([tmp_path / "a.png"], tmp_path / "b.png", "jpg")
    (task,) = plan([tmp_path / "a.png"], tmp_path / "b.jpeg", "jpg")
    assert task.target == tmp_path / "b.jpeg"


def test_nothing_to_do_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no pictures under"):
        plan([tmp_path / "empty"], tmp_path / "out", None)
    touch(tmp_path / "file", tmp_path / "a.png", tmp_path / "b.png")
    with pytest.raises(ConfigError, match="is a file; several pictures need a folder"):
        plan([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "file", None)
