"""This module is what tools/bench's measurements have in common: where they work, and the lines of the tables that they give."""

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, what imagefs and its peer gave, their ratio, and what is wanted of it.

    With a `number` it belongs to the row of that number in `targets.TARGETS`, which says what is wanted: of `judged` if that is given, else of
    the ratio, or of imagefs's own figure where there is no peer. Without a number `target` and `met` say it, if anything is wanted at all.
    A figure that could not be had is None, and `note` says why.
    """

    what: str
    unit: str
    imagefs: float | None
    peer: str = ""
    peer_value: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None
    number: int | None = None
    also: str = ""
    """The name of a target in `targets.ALSO`, for the second figure of a row of targets."""
    judged: float | None = None
    note: str = ""

    def figure(self) -> float | None:
        """Return the figure that the row of targets is about."""
        if self.judged is not None:
            return self.judged
        return self.ratio if self.ratio is not None else self.imagefs


@dataclasses.dataclass(frozen=True, slots=True)
class PeerFigures:
    """What one of several peers gave in a scenario, medians over its rounds: seconds, bytes and requests at the link, bytes/s.

    Figures that could not be had are None; `why_not` says why a peer has none at all.
    """

    scenario: str
    """What was done, with which form of the image: the peers of one scenario are compared."""
    peer: str
    seconds: float | None = None
    fetched: float | None = None
    requests: float | None = None
    first_byte: float | None = None
    sequential: float | None = None
    why_not: str = ""
    is_own: bool = False
    """Whether the peer is imagefs itself."""


Finding = Row | PeerFigures
"""What a measurement yields."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bench:
    """What a measurement needs: a directory of its own, how much is wanted, and how often what has peers is done."""

    directory: Path
    quick: bool
    rounds: int = 3

    def place(self, name: str) -> Path:
        """Return a new directory."""
        path = self.directory / name
        path.mkdir()
        return path
