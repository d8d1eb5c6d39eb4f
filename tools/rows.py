"""This module is what tools/bench's measurements have in common: where they work, and the lines of the table that they give."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, what imagefs and its peer gave, their ratio, and what is wanted of it."""

    what: str
    unit: str
    imagefs: float
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement needs: a directory of its own, and how much is wanted."""

    directory: Path
    quick: bool

    def place(self, name: str) -> Path:
        """Return a new directory."""
        path = self.directory / name
        path.mkdir()
        return path
