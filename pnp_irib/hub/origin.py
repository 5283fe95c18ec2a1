"""Where something came from: recorded in what is saved, and in every result."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Origin", "SourceFile"]


class SourceFile(BaseModel):
    """A file that something came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sha256: str


class Origin(BaseModel):
    """A place that files were loaded from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: str = Field(description="name as it was asked for, such as hf-hub:owner/repo@revision")
    commit: str | None = Field(default=None, description="that the name stood for, of what came from the Hub")
    files: tuple[SourceFile, ...] = Field(default=(), description="that were read")

    def hash_of(self, name: str) -> str | None:
        """The sha256 of one of the files."""
        return next((file.sha256 for file in self.files if file.name == name), None)

    def __str__(self) -> str:
        if self.commit is None:
            return self.place
        return f"{self.place.partition('@')[0]}@{self.commit}"
