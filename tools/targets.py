"""This module is the table of what imagefs is to reach: each row's number, what it is about, what it must reach, and what it aims at."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping
from typing import Final

from tools.rows import Row


class Verdict(enum.StrEnum):
    """How a figure stands to its target."""

    AIMED = "aim met"
    MET = "met"
    MISSED = "NOT MET"
    UNKNOWN = "not measured"


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """What is wanted of one figure: a bound that it must keep and one that it aims at, both upper bounds or both lower bounds."""

    words: str
    must: float
    aim: float
    is_lower_bound: bool = False
    unit: str = ""

    def judge(self, figure: float | None) -> Verdict:
        """Return how a figure stands."""
        if figure is None:
            return Verdict.UNKNOWN
        if self._keeps(figure, self.aim):
            return Verdict.AIMED
        return Verdict.MET if self._keeps(figure, self.must) else Verdict.MISSED

    def bounds(self) -> tuple[str, str]:
        """Return both bounds in words."""
        return self._bound(self.must), self._bound(self.aim)

    def worst(self, figures: Iterable[float]) -> float | None:
        """Return the figure that is hardest to be content with, None if there is none."""
        known = list(figures)
        if not known:
            return None
        return min(known) if self.is_lower_bound else max(known)

    def _keeps(self, figure: float, bound: float) -> bool:
        return figure >= bound if self.is_lower_bound else figure <= bound

    def _bound(self, bound: float) -> str:
        return f"{'>=' if self.is_lower_bound else '<='} {bound:g}{' ' if self.unit.isalpha() else ''}{self.unit}"


TARGETS: Final[Mapping[int, Target]] = {
    1: Target("cold boot without a profile: share of what a full copy costs more than a local disk", 0.25, 0.12),
    2: Target("cold boot with a profile: the same share", 0.08, 0.04),
    3: Target("boot from a warm cache, daemon restarted, page cache dropped, to boot of a local disk", 1.10, 1.03),
    4: Target("cold boot with a profile to boot of a local disk", 1.15, 1.05),
    5: Target("bytes fetched to the bytes of the boot set, no profile", 3.6, 2.6),
    6: Target("the same with a profile", 1.6, 1.35),
    7: Target("bytes fetched until userspace to the size of the disk", 4, 2, unit="%"),
    8: Target("share of the next boot that a profile covers", 97, 99, is_lower_bound=True, unit="%"),
    9: Target("cold sequential read to parallel ranged GETs by the same client", 0.80, 0.92, is_lower_bound=True),
    10: Target("warm sequential read, kernel's cache of the mount dropped, to the native file", 0.30, 0.45, is_lower_bound=True),
    11: Target("second read of an open image to the native file", 0.80, 0.95, is_lower_bound=True),
    12: Target("cached 4 KiB random reads of vda, depth 1, to a bare pyfuse3 loop", 0.70, 0.85, is_lower_bound=True),
    13: Target("the same to qemu-storage-daemon's FUSE export, depth 1", 0.80, 1.10, is_lower_bound=True),
    14: Target("4 KiB random writes of vda, depth 1, to the native file", 0.40, 0.60, is_lower_bound=True),
    15: Target("requests to the store by writes to absent blocks", 0, 0),
    16: Target("guest's fsyncs a second to the native file", 0.5, 0.8, is_lower_bound=True),
    17: Target("first 4 KiB of a cold image to one plain GET", 1.5, 1.15),
    18: Target("time of a boot to the best of the peers that do not copy first", 1.0, 0.5),
    19: Target("bytes of a boot to the least that such a peer fetches", 1.0, 0.5),
    20: Target("bytes that 8 instances of an image fetch to those of one", 1.05, 1.01),
    21: Target("peak memory of the daemon, 8 cold sequential streams", 400, 250, unit="MiB"),
    22: Target("boot with 1 % of the GETs stalled for 10 s to boot without", 1.3, 1.1),
    23: Target("errors of a boot whose store is away for 20 s", 0, 0),
    24: Target("bytes fetched again after the daemon was killed, of those cached", 2, 0.5, unit="%"),
    25: Target("bytes of the cache on disk to its limit, at every sample", 1.0, 1.0),
}
"""By number. Where one number has several rows (a raw image and a qcow2 one, depths 1 and 16), they are judged each for itself."""

ALSO: Final[Mapping[str, Target]] = {
    "13.16": Target("cached 4 KiB random reads of vda, depth 16, to qemu-storage-daemon's FUSE export", 0.45, 0.65, is_lower_bound=True),
    "8.waste": Target("share of a profile that the next boot does not read", 5, 2, unit="%"),
    "uncached": Target("4 KiB random reads of what is on the disk and not in memory, depth 16, to the native file", 0.25, 0.40, is_lower_bound=True),
    "23.hits": Target("longest read of what is cached while the store is away", 1.0, 0.1, unit="s"),
}
"""The second figure of rows that have two. A row names it in `also`."""


def target_of(row: Row) -> Target | None:
    """Return the target that a row is measured by, None if it has none in the table."""
    if row.also:
        return ALSO[row.also]
    return TARGETS[row.number] if row.number is not None else None


def verdict_of(row: Row) -> str:
    """Return what to say of a row: nothing where nothing is wanted."""
    target = target_of(row)
    if target is not None:
        return target.judge(row.figure()).value
    if row.met is None:
        return row.note and "not measured" if row.imagefs is None else ""
    return (Verdict.MET if row.met else Verdict.MISSED).value


def unmeasured(rows: Iterable[Row]) -> list[int]:
    """Return the numbers of the table that no row has a figure for."""
    found = {row.number for row in rows if row.figure() is not None}
    return [number for number in TARGETS if number not in found]
