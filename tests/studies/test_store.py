"""Results on disk."""

from __future__ import annotations

from pathlib import Path

from pnp_irib.studies.store import Store


def test_results_stay_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    assert store.get("key", "a") is None
    store.put("key", "a", {"psnr": 1.5})
    store.put("key", "b", {"psnr": 2.5})
    assert Store(tmp_path / "results").get("other", "a") is None
    path = tmp_path / "results" / "key.jsonl"
    path.write_bytes(path.read_bytes()[:-4])  # killed while it wrote
    again = Store(tmp_path / "results")
    assert (again.get("key", "a"), again.get("key", "b")) == ({"psnr": 1.5}, None)
    again.put("key", "c", {"psnr": 3.5})
    assert Store(tmp_path / "results").get("key", "c") == {"psnr": 3.5}
    assert Store(tmp_path / "results").get("key", "a") == {"psnr": 1.5}
