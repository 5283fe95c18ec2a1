from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pnp_irib.errors import ImageFileError, InputError
from pnp_irib.projectors import PixelProjector
from pnp_irib.restorer import Restorer
from pnp_irib.wrapper import wrap
from tests.wrapper.models import Doubler, Stated, counting, draw


def test_repr_is_worth_reading(compact: Restorer, projector: PixelProjector, photo: Tensor) -> None:
    robust = wrap(compact, projector=projector, lfo=1, extractor=counting())
    result = robust(photo[..., :16, :12])
    for text in (repr(robust), repr(result), repr(robust([photo[..., :8, :8]] * 2))):
        assert max(map(len, text.split("\n"))) <= 80
        assert "realesr-animevideov3" in text
    shown = repr(result)
    for part in ("12x16 -> 48x64", "float32 on cpu", "PixelProjector (given)", "word1", "look forward 1", "restore", "read"):
        assert part in shown
    assert "BSD-3-Clause" in repr(robust)
    long = robust(photo[..., :16, :12], prompt="a very long prompt " * 20, lfo=0)
    assert max(map(len, repr(long).split("\n"))) <= 80


def test_result_is_saved_and_shown(projector: PixelProjector, photo: Tensor, tmp_path: Path) -> None:
    result = wrap(Stated(), projector=projector)(photo[..., :16, :12])
    result.image.save(tmp_path / "by_pil.png")
    assert result.save(tmp_path / "by_us.png") == ()
    for name in ("by_pil.png", "by_us.png"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(image), (result.restored[0] * 255).round().permute(1, 2, 0).byte().numpy())
    assert result.lq_image.size == (12, 16)
    side_by_side = result.comparison()
    assert side_by_side.size == (3 * 24 + 2 * 8, 32)
    assert np.array_equal(np.asarray(side_by_side)[:, -24:], np.asarray(result.image))
    (tmp_path / "notebook.png").write_bytes(result._repr_png_())
    with Image.open(tmp_path / "notebook.png") as image:
        assert image.size == side_by_side.size
    large = replace(result, restored=torch.zeros(1, 3, 4096, 3072))
    assert large.comparison(consistency=True).size == (4 * 1536 + 3 * 8, 2048)
    (tmp_path / "notebook.png").write_bytes(large._repr_png_())
    with Image.open(tmp_path / "notebook.png") as image:
        assert image.size == (3 * 384 + 2 * 8, 512)
    assert set(result.seconds) == {"read", "project", "restore"}


def test_the_file_of_the_input_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(path)
    before = path.read_bytes()
    with pytest.raises(ImageFileError, match="never written over"):
        wrap(Stated(), projector=None)(path).save(path)
    assert path.read_bytes() == before


def test_values_that_are_not_finite_are_not_passed_on() -> None:
    with pytest.raises(InputError, match=r"not finite.*float32"):
        wrap(lambda lq: lq / 0, scale=1, projector=None)(torch.zeros(3, 4, 4))


def test_moving(projector: PixelProjector) -> None:
    model = Doubler()
    robust = wrap(model, scale=2, projector=projector).to("cpu", torch.float64)
    assert next(model.parameters()).dtype == torch.float64
    assert next(projector.parameters()).dtype == torch.float32
    assert robust(draw(5, 5)).restored.dtype == torch.float32


def test_several_results_show_themselves_too() -> None:
    robust = wrap(Stated(), projector=None)
    assert robust([draw(4, 4), draw(5, 4)])._repr_html_().count("data:image/png;base64,") == 2
    assert repr(robust([])) == "Restorations: none"
