from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pnp_irib.errors import ConfigError, WeightsError
from pnp_irib.projectors import PixelProjector
from pnp_irib.projectors.loading import bundled_projectors, load_projector
from pnp_irib.projectors.pixel import PixelArchitecture

SMALL = PixelArchitecture(widths=(8, 16), encoder_blocks=(1,), middle_blocks=1, decoder_blocks=(1,), condition_width=8)


def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    projector = PixelProjector(SMALL)
    projector.save_pretrained(tmp_path / "mine")
    loaded = load_projector(f"local-dir:{tmp_path}/mine")
    assert torch.equal(loaded.state_dict()["stem.weight"], projector.stem.weight)
    with pytest.raises(WeightsError, match="is not a projector folder"):
        load_projector(f"local-dir:{tmp_path}/absent")


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no bundled projector named 'nothing-like-it'\. Bundled: "):
        load_projector("nothing-like-it")
    for name, folder in bundled_projectors().items():
        assert load_projector(name).provenance.name == name
        assert (folder / "README.md").is_file()
