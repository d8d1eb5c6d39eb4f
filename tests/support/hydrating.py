"""Images that are hydrated over a scripted store, and the times at which something was fetched."""

import hashlib
from collections.abc import Callable, Mapping

import trio

from imagefs.cache.cache import UnitCache
from imagefs.cache.filler import Deliver, UnitFiller
from imagefs.extents import Extents
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.stored import StoredObject
from imagefs.fetch.traffic import Turn
from imagefs.hydration.hydrator import Hydrator, Mode
from imagefs.hydration.image import HydratedImage
from imagefs.hydration.verdict import JudgedFiller
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.store import tree
from imagefs.store.record import ImageRecord
from imagefs.units import GIB, MIB
from imagefs.urgency import Urgency
from tests.support.caching import IMAGE, Caches
from tests.support.fetched import ScriptedObject, hash_tree


class TimedFiller:
    """A UnitFiller that notes what is asked of another one: trio's time, first unit, count, urgency."""

    def __init__(self, filler: UnitFiller) -> None:
        self._filler = filler
        self.size = filler.size
        self.fills: list[tuple[float, int, int, Urgency]] = []
        self.before: Callable[[int], object] = lambda first_unit: None
        """Called with the first unit of each fill; may raise."""

    def plan(self, unit: int) -> tuple[int, int]:
        return self._filler.plan(unit)

    async def extents(self, offset: int, length: int) -> Extents:
        return await self._filler.extents(offset, length)

    async def turn(self, urgency: Urgency) -> Turn:
        return await self._filler.turn(urgency)

    async def fill(self, first_unit: int, count: int, deliver: Deliver, urgency: Urgency = Urgency.DEMAND) -> None:
        self.fills.append((trio.current_time(), first_unit, count, urgency))
        self.before(first_unit)
        await self._filler.fill(first_unit, count, deliver, urgency)

    def idle(self) -> list[tuple[float, int, int, Urgency]]:
        """Return the fills of hydration."""
        return [fill for fill in self.fills if fill[3] is Urgency.IDLE]


class Picture:
    """An open image over a scripted store. Whoever holds it holds its caches."""

    def __init__(self, image: HydratedImage, source: ScriptedObject, filler: TimedFiller) -> None:
        self.image = image
        self.source = source
        self.filler = filler

    @property
    def disk(self) -> UnitCache:
        return self.image.disk

    def is_marked(self) -> bool:
        """Tell whether the disk's cache is marked as complete."""
        file = self.disk.shelf.file
        return file is not None and file.mark is not None


def hydrator_of(caches: Caches, mode: Mode = "idle", *, limit: int = GIB, rate: int = 100 * MIB) -> Hydrator:
    """Return a hydrator of these caches that draws no jitter."""
    return Hydrator(mode, limit, rate, caches.budget, caches.root.demand, chance=lambda: 0.0)


async def until(condition: Callable[[], bool], seconds: float = 100_000.0) -> None:
    """Return when a condition holds, looked at each second of a clock that jumps; fails when so many have passed."""
    end = trio.current_time() + seconds
    while not condition():
        assert trio.current_time() < end, "it never came to that"
        await trio.sleep(1)


def record_of(
    content: bytes,
    fields: Mapping[str, str | None] | None = None,
    *,
    image_id: str = IMAGE,
    digests: bool = False,
    wrong: bool = False,
    disk_format: str = "raw",
) -> ImageRecord:
    """Return the record of an image with SHA-512 and MD5, of other bytes if `wrong`; `fields` replace what is so found."""
    hashed = content + b"!" if wrong else content
    found: dict[str, str | None] = {
        "os_hash_algo": "sha512",
        "os_hash_value": hashlib.sha512(hashed).hexdigest(),
        "checksum": hashlib.md5(hashed).hexdigest(),
        "disk_format": disk_format,
    }
    hashes = hash_tree(content)[0] if digests else None
    times = {"created_at": "2026-11-22T00:00:00Z", "updated_at": "2026-11-22T00:00:00Z"}
    return ImageRecord(id=image_id, status="active", size=len(content), tree=hashes, **times, **(found | dict(fields or {})))  # type: ignore[arg-type]


def stored_object(source: ScriptedObject, record: ImageRecord, content: bytes) -> StoredObject:
    """Return the object in the store; what fails is not tried for long. Digests are those of `content`."""
    digests = None
    if record.tree is not None:
        body = hash_tree(content)[1]

        def page(number: int) -> bytes:
            offset, length = tree.page_range(len(content), number)
            return body[offset : offset + length]

        digests = UnitDigests(record.tree, len(content), page, "debian")
    return StoredObject(source, digests, RetryPolicy(deadline=0.0), name="debian")


async def picture(caches: Caches, hydrator: Hydrator, content: bytes, record: ImageRecord | None = None) -> Picture:
    """Return an open image of the stored bytes `content`, as `record` (by default one with hashes) says it is."""
    record = record_of(content) if record is None else record
    source = ScriptedObject(content)
    stored = stored_object(source, record, content)
    version = record.os_hash_value or record.checksum or "v1"
    verdict = hydrator.verdict((record.id, version))
    filler = TimedFiller(JudgedFiller(ObjectFiller(stored), verdict))
    bytes_as_stored = await caches.root.open(record.id, "stored", version, filler, caches.nursery, name="debian")
    disk = bytes_as_stored
    if record.disk_format == "qcow2":
        filler = TimedFiller(JudgedFiller(Qcow2Filler(await open_image(bytes_as_stored, "debian"), stored), verdict))
        disk = await caches.root.open(record.id, "guest", version, filler, caches.nursery, name="debian")
    return Picture(HydratedImage(record, version, stored, bytes_as_stored, disk, verdict), source, filler)
