"""This module finds units that are in the cache twice, in two images or in both faces of one, and lets them share their blocks on the disk.

It works after the fact and in its own time, where the filesystem has reflinks (imagefs.reflinks); elsewhere nothing of it runs. Candidates are
units whose CRC-32C is the same, which is at hand from storing them; whether their bytes are, the kernel sees for itself.
What is shared still counts in full towards the budget, as `du` counts it: it is the filesystem's free space that grows.
"""

import contextlib
import dataclasses
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Final

from imagefs import threads
from imagefs.cache.directory import CacheDirectory
from imagefs.cache.file import UnitFile
from imagefs.counters import COUNTERS
from imagefs.reflinks import NOT_SHAREABLE, share
from imagefs.threads import Lane
from imagefs.units import UNIT

log = logging.getLogger(__name__)

KNOWN: Final = 131_072
"""Units whose checksums are remembered: 8 GiB of them, in 15 MB of memory. Those that were not met for longest are forgotten."""
BATCH: Final = 32
"""Units for one thread hop: 2 MiB are compared meanwhile."""
REMEMBERED: Final = 4096
"""Units of a cache that is closed before anybody has looked at them, of which the checksums are taken all the same."""
ROUND: Final = 1024
"""Units looked at in one round: so that the disk is there for others, too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Twin:
    """Two units that may be equal, each with the descriptor of its cache's units."""

    source: int
    source_unit: int
    target: int
    target_unit: int


class Sharing:
    """What is known of units that could share. Used on the event loop only, by one task."""

    def __init__(self, directory: CacheDirectory) -> None:
        """Take where the caches lie, on a filesystem that can share."""
        self._directory = directory
        self._known: OrderedDict[int, tuple[str, int]] = OrderedDict()
        self._seeded = False
        self._usable = True

    async def work(self, opened: Sequence[tuple[str, UnitFile]], closed: Sequence[str]) -> None:
        """Look at what was stored in open caches since the last call, or at a part of it if it is much.

        The caller holds the files open; `closed` are the names of the other caches, those first that were used last. Never raises; safe to
        cancel between two batches.
        """
        if not self._seeded:
            self._seeded = True
            waiting = {name: {unit for unit, _ in file.stored or ()} for name, file in opened}
            await threads.run(Lane.DISK, self._seed, [*closed, *waiting], waiting)
        with contextlib.ExitStack() as borrowed:
            descriptors = {name: file.units for name, file in opened}

            def descriptor_of(name: str) -> int | None:
                if name not in descriptors and (found := self._directory.open_units(name, borrowed)) is not None:
                    descriptors[name] = found
                return descriptors.get(name)

            left = ROUND
            for name, file in opened:
                while file.stored and left > 0 and self._usable:
                    count = min(BATCH, left, len(file.stored))
                    twins = self._match(name, file.units, [file.stored.popleft() for _ in range(count)], descriptor_of)
                    left -= count
                    if twins:
                        self._count(await threads.run(Lane.DISK, _share, twins))

    def remember(self, name: str, file: UnitFile) -> None:
        """Take what was stored last in a cache that is being closed, so that what comes later can share with it. Never waits."""
        if file.stored is not None and self._usable:
            for unit, checksum in itertools.islice(file.stored, REMEMBERED):
                self._known.setdefault(checksum, (name, unit))
            while len(self._known) > KNOWN:
                self._known.popitem(last=False)

    def _count(self, shared: int | None) -> None:
        if shared is None:
            self._usable = False
        COUNTERS.cache_shared_bytes += shared or 0

    def _seed(self, names: Iterable[str], waiting: Mapping[str, Container[int]]) -> None:
        """Take what is in caches that were there before, but for units that wait to be looked at. Blocks."""
        for name in names:
            passed_over = waiting.get(name, ())
            for unit, checksum in self._directory.checksums(name, KNOWN - len(self._known)):
                if unit not in passed_over:
                    self._known.setdefault(checksum, (name, unit))
            if len(self._known) >= KNOWN:
                return

    def _match(self, name: str, descriptor: int, units: Iterable[tuple[int, int]], descriptor_of: Callable[[str], int | None]) -> list[Twin]:
        """Return the pairs that may be equal, and remember the units."""
        twins = []
        for unit, checksum in units:
            other = self._known.get(checksum)
            source = descriptor_of(other[0]) if other is not None and other != (name, unit) else None
            if other is not None and source is not None:
                twins.append(Twin(source, other[1], descriptor, unit))
                self._known.move_to_end(checksum)
            else:
                self._known[checksum] = name, unit
                if len(self._known) > KNOWN:
                    self._known.popitem(last=False)
        return twins


def _share(twins: list[Twin]) -> int | None:
    """Let pairs share, in a thread; return how many bytes do, None if the filesystem cannot do it after all. Never raises."""
    shared = 0
    for twin in twins:
        try:
            shared += share(twin.source, twin.source_unit * UNIT, twin.target, twin.target_unit * UNIT, UNIT)
        except OSError as error:
            if error.errno in NOT_SHAREABLE:
                log.warning("units cannot share their blocks on this filesystem: %s", error)
                return None
            log.debug("a unit cannot share its blocks error=%s", error)
    return shared
