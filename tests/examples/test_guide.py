"""The guide to writing an adapter, run block by block as it stands."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

from tests.examples.conftest import Stranger

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "adapters.md"
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_the_guide_works_as_it_is_written(stranger: Stranger, tmp_path: Path) -> None:
    Image.effect_mandelbrot((20, 16), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(tmp_path / "old.png")
    folder, said = tmp_path, ""
    blocks = BLOCK.findall(GUIDE.read_text())
    assert len(blocks) > 7
    for language, title, text in blocks:
        if title:
            assert (folder / title).is_file(), f"{title} is not among what new-adapter writes"
            (folder / title).write_text(text)
        elif language == "bash":
            said += stranger.run(text, folder)
            if move := re.search(r"^cd (\S+)$", text, re.MULTILINE):
                folder /= move[1]
        elif language == "python":
            (tmp_path / "block.py").write_text(text)
            said += stranger.run(f"python {tmp_path / 'block.py'}", folder)
    assert "1 passed" in said
    assert re.search(r"^dat-light +x4 +none +Apache-2.0 +yes +46 MB +yes", said, re.MULTILINE)
    assert "WrappedRestorer(dat-light, x4)" in said
    with Image.open(tmp_path / "restored.png") as restored:
        assert restored.size == (80, 64)
