"""Make the picture of the front page: the example, restored alone and with the projector.

python docs/picture.py
"""

from pathlib import Path

from pnp_irib import wrap
from pnp_irib.images.io import to_pil
from pnp_irib.result import comparison

HERE = Path(__file__).parent

robust = wrap("realesrgan-x4plus")
example = HERE.parent / "examples" / "images" / "colosseum.png"
alone, wrapped = (robust(example, strength=strength) for strength in (0, 1))
picture = to_pil(comparison([wrapped.picture.rgb, alone.restored, wrapped.restored]))
(HERE / "images").mkdir(exist_ok=True)
picture.save(HERE / "images" / "colosseum.webp", quality=85)
