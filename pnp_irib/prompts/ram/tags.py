"""The labels of RAM and how sure it must be of each: two text files of the published model, one line a label."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pnp_irib.errors import WeightsError

__all__ = ["Labels"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels, in the order of the network's logits.

    Attributes:
        names: what each is called.
        thresholds: (labels,), float32, on the CPU: a label is there where its probability is greater. Where one is 1, as of
            ten of the published, it never is.
    """

    names: tuple[str, ...]
    thresholds: Tensor

    def __post_init__(self) -> None:
        if len(self.names) != len(self.thresholds):
            raise WeightsError(f"{len(self.names)} tags and {len(self.thresholds)} thresholds: expected as many of both.")

    @classmethod
    def read(cls, names: Path, thresholds: Path) -> Labels:
        """The two files.

        Raises:
            WeightsError: one cannot be read, a line is empty or no threshold in [0, 1], or they differ in length.
        """
        tags, numbers = _lines(names), _lines(thresholds)
        if len(tags) != len(numbers):
            raise WeightsError(
                f"{names} holds {len(tags)} tags, {thresholds} {len(numbers)} thresholds; expected as many of both, in the "
                f"same order. Are they of the same model?"
            )
        values = [_threshold(text, thresholds, number) for number, text in enumerate(numbers, 1)]
        return cls(tuple(tags), torch.tensor(values, dtype=torch.float32))


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as text: {error}.") from error
    lines = text.removesuffix("\n").split("\n")  # splitlines would also split at rarer characters within a tag
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise WeightsError(f"{path}: line {number} is empty; expected one entry a line. Is the download complete?")
    return [line.strip() for line in lines]


def _threshold(text: str, path: Path, number: int) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise WeightsError(f"{path}: line {number} is {text!r:.40}; expected a threshold in [0, 1].")
    return value
