"""This module is the pure part of the link simulator: how fast bytes may pass, and which requests go wrong in which way."""

import dataclasses
import enum
from typing import Final

BURST: Final = 0.005
"""Seconds that the link may be ahead: a program that wakes up a little late may make up for it, else the rate would never be reached."""


@dataclasses.dataclass(slots=True)
class Pace:
    """A link's bandwidth in bytes/s, in whatever time its caller counts: seconds that only ever grow."""

    rate: float
    free_at: float = 0.0

    def is_free(self, now: float) -> bool:
        """Tell whether more bytes may pass."""
        return now >= self.free_at

    def wait(self, now: float) -> float:
        """Return the seconds until more bytes may pass."""
        return max(0.0, self.free_at - now)

    def pass_on(self, length: int, now: float) -> None:
        """Take the time that `length` bytes need."""
        self.free_at = max(self.free_at, now - BURST) + length / self.rate


class Kind(enum.StrEnum):
    """What may happen to an answer."""

    STALL = "stall"
    """Its first byte comes that many seconds later."""
    SLOW_DOWN = "slow_down"
    """It is 503 SlowDown, at once."""
    TRUNCATE = "truncate"
    """The connection ends in order after `after` bytes."""
    RESET = "reset"
    """The connection breaks after `after` bytes."""
    DRIP = "drip"
    """It comes at `drip_rate` bytes/s."""


@dataclasses.dataclass(frozen=True, slots=True)
class Faults:
    """Which share of the GETs (0 to 1) goes wrong in which way."""

    stall: float = 0.0
    stall_seconds: float = 10.0
    slow_down: float = 0.0
    truncate: float = 0.0
    reset: float = 0.0
    drip: float = 0.0
    drip_rate: float = 16_384.0
    after: int = 32_768


class Lot:
    """Says of each GET what goes wrong with it. There is no chance in it: a share of 0.01 is each hundredth request, and the first is the 50th."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._shares: dict[Kind, float] = {kind: getattr(faults, kind.value) for kind in Kind}
        self._due = dict.fromkeys(Kind, 0.5)

    def draw(self) -> Kind | None:
        """Return what goes wrong with the next request; where two things would, the later of Kind waits for the next one."""
        drawn: Kind | None = None
        for kind, share in self._shares.items():
            self._due[kind] += share
            if drawn is None and share > 0 and self._due[kind] >= 1 - 1e-9:
                self._due[kind] -= 1
                drawn = kind
        return drawn


@dataclasses.dataclass(slots=True)
class Counts:
    """What passed: bytes towards clients and from them, headers included, and the requests."""

    received: int = 0
    sent: int = 0
    requests: int = 0
    data_requests: int = 0
    """GETs of an image's data."""
    connections: int = 0
    faults: int = 0
    """Answers that were made to go wrong."""

    def __sub__(self, before: "Counts") -> "Counts":
        """Return what passed since `before`."""
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(before)
        return Counts(*(a - b for a, b in zip(mine, theirs, strict=True)))
