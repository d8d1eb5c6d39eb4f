"""Disks that boots are replayed on, a store that keeps profiles, and boots to put into them."""

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence

import trio

from imagefs.catalog import CatalogImage
from imagefs.errors import Conflict, ImagefsError
from imagefs.extents import Extents
from imagefs.profile.record import Boot, Profile, encode, version_digest
from imagefs.store.record import ImageRecord
from imagefs.units import GIB, UNIT, unit_count
from imagefs.urgency import Urgency
from tests.support.access import IMAGE_ID, image
from tests.support.overlay import pattern

DISK = 4 * GIB
IMAGE = CatalogImage(image(os_hash_value="v1", size=DISK, name="debian"), "record-1")
OTHER_BYTES = CatalogImage(image(os_hash_value="v2", size=DISK, name="debian"), "record-2")


def boot(units: Sequence[int], recorded_at: int = 1000) -> Boot:
    """Return a boot with a name of its own."""
    return Boot(uuid.uuid4(), recorded_at, units)


def scattered(count: int, step: int = 37) -> list[int]:
    """Return units that no copy would touch in this order: a boot of `count` units."""
    units = unit_count(DISK)
    return [(number * step * 1009) % units for number in range(count)]


def profile_of(*boots: Boot, image: CatalogImage = IMAGE, disk_size: int = DISK) -> Profile:
    """Return the profile of an image."""
    return Profile(image.record.id, version_digest(image.data_version), disk_size, boots)


class BootDisk:
    """A cached disk: what is prefetched is here. `before(offset)` runs ahead of each prefetch: it may wait and raise."""

    def __init__(self, size: int = DISK) -> None:
        self.size = size
        self.here: set[int] = set()
        self.on_disk: set[int] = set()
        """Units that are on the disk, and were not proved yet."""
        self.prefetched: list[tuple[int, int]] = []
        self.urgencies: set[Urgency] = set()
        self.kept: list[tuple[int, int]] = []
        self.reads: list[tuple[int, int]] = []
        self.foreseeing = 0
        self.at_once = 0
        self.most_at_once = 0
        self.gate = trio.Event()
        self.gate.set()
        self.failure: ImagefsError | None = None
        self.data: Extents = [(0, size)]

    def read_nowait(self, offset: int, length: int) -> bytes | bytearray | None:
        return pattern(offset, length) if self.is_here(offset, length) else None

    async def read(self, offset: int, length: int) -> bytes | bytearray:
        self.reads.append((offset, length))
        await self.gate.wait()
        return pattern(offset, length)

    async def extents(self, offset: int, length: int) -> Extents:
        return [(max(start, offset), min(stop, offset + length)) for start, stop in self.data if start < offset + length and stop > offset]

    async def prefetch(self, offset: int, length: int, urgency: Urgency = Urgency.AHEAD) -> None:
        self.urgencies.add(urgency)
        self.prefetched.append((offset, length))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await self.gate.wait()
            await trio.lowlevel.checkpoint()
            if self.failure is not None:
                raise self.failure
        finally:
            self.at_once -= 1
        self.here.update(self._units(offset, length))

    def is_here(self, offset: int, length: int) -> bool:
        return self.here.issuperset(self._units(offset, length))

    async def missing_extents(self, offset: int, length: int) -> Extents:
        missing = [unit for unit in self._units(offset, length) if unit not in self.here | self.on_disk]
        return [(unit * UNIT, (unit + 1) * UNIT) for unit in missing]

    def keep(self, offset: int, length: int) -> None:
        self.kept.append((offset, length))

    @contextlib.contextmanager
    def foreseen(self) -> Iterator[None]:
        self.foreseeing += 1
        yield
        self.foreseeing -= 1

    def _units(self, offset: int, length: int) -> range:
        return range(offset // UNIT, -(-(offset + length) // UNIT))


class ProfileStore:
    """A store that keeps profiles, and nothing else. `before(verb)` runs ahead of each call, in its thread: it may wait and raise."""

    url = "mem://store"

    def __init__(self) -> None:
        self.bodies: dict[str, tuple[bytes, str]] = {}
        self.before: Callable[[str], object] = lambda verb: None
        self.calls: list[str] = []

    def keep(self, profile: Profile) -> None:
        """Keep a profile as another node would."""
        self.bodies[profile.image_id] = (encode(profile), uuid.uuid4().hex)

    def profile(self, record: ImageRecord) -> tuple[bytes, str] | None:
        self.calls.append("profile")
        self.before("profile")
        return self.bodies.get(record.id)

    def put_profile(self, record: ImageRecord, body: bytes, expected: str | None) -> None:
        self.calls.append("put_profile")
        self.before("put_profile")
        present = self.bodies.get(record.id)
        if (present[1] if present is not None else None) != expected:
            raise Conflict("another writer was there first")
        self.bodies[record.id] = (body, uuid.uuid4().hex)


__all__ = ["DISK", "IMAGE", "IMAGE_ID", "OTHER_BYTES", "BootDisk", "ProfileStore", "boot", "profile_of", "scattered"]
