"""What was measured already: one line a picture, kept under the hash of what determines it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["Store"]


class Store:
    """Results on disk; a line that was cut off by a kill is dropped.

    Args:
        folder: where the files are; made when the first result comes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, dict[str, Any]] = {}

    def get(self, key: str, item: str) -> Any:
        """The result of an item under a key; None where there is none yet."""
        if key not in self._known:
            self._known[key] = self._read(key)
        return self._known[key].get(item)

    def put(self, key: str, item: str, result: Any) -> None:
        """Keep a result, which must be JSON."""
        line = json.dumps([item, result], allow_nan=False) + "\n"
        self.get(key, item)
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(key)
        torn = path.exists() and not path.read_bytes().endswith(b"\n")
        with path.open("a") as file:
            file.write(f"\n{line}" if torn else line)
        self._known[key][item] = result

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.jsonl"

    def _read(self, key: str) -> dict[str, Any]:
        path = self._path(key)
        known: dict[str, Any] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                item, result = json.loads(line)
            except ValueError:
                continue
            known[item] = result
        return known
