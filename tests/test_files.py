"""Files that are whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pnp_irib.files import atomic_file


def test_the_name_appears_only_when_the_file_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with atomic_file(target) as file:
        file.write(b"half")
        file.flush()
        assert not target.exists()
        assert len(list(tmp_path.iterdir())) == 1
        file.write(b" and half")
    assert target.read_bytes() == b"half and half"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_the_block_leaves_no_trace(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")

    def write() -> None:
        with atomic_file(target) as file:
            file.write(b"new")
            raise error

    with pytest.raises(error):
        write()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_that_cannot_be_renamed_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"), atomic_file(tmp_path / ("x" * 300)) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == []


def test_long_names_of_wide_letters(tmp_path: Path) -> None:
    target = tmp_path / ("\N{GRINNING FACE}" * 62)  # 248 of 255 bytes
    with atomic_file(target) as file:
        file.write(b"new")
    assert list(tmp_path.iterdir()) == [target]


def test_folders_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name in ("folder", "pipe", "link"):
        with pytest.raises(FileExistsError, match="in its place"), atomic_file(tmp_path / name) as file:
            file.write(b"new")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 3
