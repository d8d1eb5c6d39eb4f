"""This module decides what boots say together: what a guest will probably read, in which pieces to fetch that, and what is no boot at all.

It does no I/O. Units are 64 KiB of a disk.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Final

from imagefs.profile.record import BOOT_UNITS, KEPT_BOOTS, Boot, runs_of
from imagefs.units import MIB, UNIT, format_size

FETCH_UNITS: Final = MIB // UNIT
"""Units of one fetch at most. Of 16 fetches at once, 30 ms away at 1 Gb/s, those of 1 MiB bring a boot set of 85 MB in 0.79 s, those of 512 KiB
in 0.88 s, those of 256 KiB in 1.1 s (computed from the trace of a Debian server)."""

LEAST_UNITS: Final = 32
"""A recording of less than 2 MiB is no boot: somebody looked at the partition table, or the pages were in the kernel."""
SWEEP_UNITS: Final = 512
"""A recording of more than 32 MiB may be that of a copy."""
SWEEP_SHARE: Final = 0.95
"""The share of first touches close to the one before from which on it is one; in boots of Linux guests it is 0.8."""
SWEEP_STEP: Final = 32
"""Units that "close" means: copies read a few MiB at once, and their requests overtake each other."""
WHOLE_SHARE: Final = 0.9
"""The share of a disk from which on all of it was read: that is known without a profile."""


@dataclasses.dataclass(frozen=True, slots=True)
class Score:
    """How well what was fetched ahead fits a boot, in units: what the boot read of it, what it read besides, what it left."""

    covered: int
    missed: int
    wasted: int


def merged(boots: Iterable[Boot]) -> tuple[Boot, ...]:
    """Return the newest KEPT_BOOTS of several profiles' boots, each once, the oldest first."""
    each = {boot.uuid: boot for boot in boots}
    return tuple(sorted(each.values(), key=lambda boot: (boot.recorded_at, boot.uuid)))[-KEPT_BOOTS:]


def boot_set(boots: Sequence[Boot]) -> tuple[int, ...]:
    """Return the units that the next boot will probably read: those of two boots at least, or of the only one.

    They come in the order in which the newest boot first touched them, and then what only older ones have, in theirs. At most BOOT_UNITS.
    """
    votes = Counter(unit for boot in boots for unit in boot.units)
    needed = min(2, len(boots))
    in_order = dict.fromkeys(unit for boot in reversed(boots) for unit in boot.units if votes[unit] >= needed)
    return tuple(in_order)[:BOOT_UNITS]


def fetches(units: Sequence[int], disk_size: int) -> list[tuple[int, int]]:
    """Return (offset, length) in bytes of what to fetch for `units`, in order of first touch; each 1 MiB at most, none past the disk's end.

    Neighbours are fetched together, when the first of them is due. Gaps are not bridged: the neighbours of a boot make runs of 7 units, so
    bridging gaps of up to 128 KiB saves 6 to 15 % of the requests, which does not show in the time, for 1 to 4 % more bytes.
    """
    rank = {unit: position for position, unit in enumerate(units)}
    found: list[tuple[int, int, int]] = []
    for first, count in runs_of(sorted(rank)):
        for start in range(first, first + count, FETCH_UNITS):
            stop = min(start + FETCH_UNITS, first + count)
            found.append((min(rank[unit] for unit in range(start, stop)), start * UNIT, min(stop * UNIT, disk_size) - start * UNIT))
    return [(offset, length) for _, offset, length in sorted(found)]


def score(read: Collection[int], ahead: Collection[int]) -> Score:
    """Compare what a boot has read with what was fetched ahead of it."""
    covered = len(set(read) & set(ahead))
    return Score(covered, len(read) - covered, len(ahead) - covered)


def is_known(read: Collection[int], boots: Sequence[Boot]) -> bool:
    """Tell whether a boot adds nothing to a profile that is full: it need not be written again for each of a thousand instances."""
    if len(boots) < KEPT_BOOTS:
        return False
    found = score(read, boot_set(boots))
    return found.missed <= len(read) * 0.005 and found.wasted <= len(read) * 0.01


def rubbish(units: Sequence[int], disk_units: int) -> str | None:
    """Return why a recording is not that of a boot, or None if it may be one. `units` are in order of first touch."""
    count = len(units)
    if count < LEAST_UNITS:
        return f"only {format_size(count * UNIT)} were read"
    if count >= SWEEP_UNITS:
        if count >= disk_units * WHOLE_SHARE:
            return "the whole disk was read"
        close = sum(-SWEEP_STEP <= unit - before <= SWEEP_STEP for before, unit in itertools.pairwise(units))
        if close >= count * SWEEP_SHARE:
            return f"{format_size(count * UNIT)} were read from one end to the other, as a copy does"
    return None
