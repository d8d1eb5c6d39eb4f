"""This module is where boot profiles lie: STATE/profiles/<image-id> on each node, and beside the image in the store for all of them.

Nothing here fails a boot: a profile that cannot be read is none, one that cannot be written is written after the next boot.
"""

import collections
import contextlib
import dataclasses
import logging
import os
import random
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

import trio

from imagefs.catalog import CatalogImage
from imagefs.errors import Conflict, NotFound, NotPermitted, ReadOnly, StateDamaged, StoreRefused, Unsupported
from imagefs.profile.merge import boot_set, is_known, merged
from imagefs.profile.record import LARGEST, Boot, Profile, decode, encode, version_digest
from imagefs.sealed import write_durably
from imagefs.store.protocol import ImageStore
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

REMEMBERED: Final = 64
"""Images whose profiles are remembered: 40 KiB each as a rule, 330 KiB at most."""
FOUND_SECONDS: Final = 300.0
"""How long a profile that was read counts as the newest: nodes that boot the same image learn of each other's boots that late at most."""
ABSENT_SECONDS: Final = 30.0
"""How long it is remembered that there is none."""
STORE_SECONDS: Final = 20.0
"""How long the store may take to give or take a profile."""
WRITE_TRIES: Final = 4
"""Tries of a conditional write: several nodes end their boots at once. Who loses them all has its boot in its own file."""
ABANDONED_SECONDS: Final = 30 * 86400.0
"""A local profile of an image that is not in the catalog is removed once nobody has written it for so long: some stores do not list all."""
TIDY_SECONDS: Final = 86400.0


class Known:
    """What is known of the boots from one image. `settled` is set when all has been asked that can tell."""

    def __init__(self) -> None:
        self.settled = trio.Event()
        self.boots: tuple[Boot, ...] = ()
        self.disk_size = 0
        self.until = float("inf")

    def units(self, disk_size: int) -> tuple[int, ...]:
        """Return what the next boot will probably read of a disk of so many bytes; nothing if the boots were from another one."""
        return boot_set(self.boots) if self.disk_size == disk_size else ()


@dataclasses.dataclass
class _Writing:
    """One image's boots on their way to the files: whoever writes takes all that wait."""

    lock: trio.Lock = dataclasses.field(default_factory=trio.Lock)
    waiting: list[Boot] = dataclasses.field(default_factory=list)


class ProfileShelf:
    """The boot profiles of one store's images. Used on the event loop."""

    def __init__(
        self,
        store: ImageStore,
        directory: Path,
        nursery: trio.Nursery,
        *,
        clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Take the store, the directory of the local files (made when the first is written) and where readings of the store run.

        `clock` gives Unix seconds; `chance` spaces out tries.
        """
        self._store = store
        self._directory = directory
        self._nursery = nursery
        self._clock = clock
        self._chance = chance
        self._known: collections.OrderedDict[tuple[str, str], Known] = collections.OrderedDict()
        self._writing: dict[str, _Writing] = {}
        self._told: set[str] = set()

    def ask(self, image: CatalogImage) -> Known:
        """Return what is known of an image's boots, asking its file and the store in the background if that is not fresh. Never raises."""
        key = (image.record.id, image.data_version)
        known = self._known.get(key)
        if known is None or known.until <= trio.current_time():
            fresh = Known()
            if known is not None:
                fresh.boots, fresh.disk_size = known.boots, known.disk_size
            known = self._known[key] = fresh
            try:
                self._nursery.start_soon(self._learn, image, known)
            except RuntimeError:  # the nursery is closed: imagefs is ending
                known.settled.set()
        self._known.move_to_end(key)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return known

    def forget(self, image: CatalogImage) -> None:
        """Forget what is known of an image that is gone from the catalog. Its file stays: it may only not be listed."""
        self._known.pop((image.record.id, image.data_version), None)

    async def add(self, image: CatalogImage, disk_size: int, boot: Boot) -> None:
        """Take a boot into the image's profile, here and in the store. Never raises but for cancellation; what fails is logged."""
        writing = self._writing.setdefault(image.record.id, _Writing())
        writing.waiting.append(boot)
        try:
            async with writing.lock:
                boots, writing.waiting = writing.waiting, []
                if boots:
                    await self._write(image, disk_size, boots)
        finally:
            if not writing.waiting and not writing.lock.locked():
                self._writing.pop(image.record.id, None)

    async def keep_tidy(self, known: Callable[[], Collection[str]]) -> None:
        """Remove local files of images that are not `known`, and that nobody has written for a month, each day until cancelled."""
        while True:
            await run(Lane.DISK, self._prune, frozenset(known()))
            await trio.sleep(TIDY_SECONDS)

    # -- reading --------------------------------------------------------------------------------

    async def _learn(self, image: CatalogImage, known: Known) -> None:
        """Ask the file and the store, and settle. Never raises but for cancellation."""
        try:
            local = await run(Lane.DISK, self._read_local, image)
            if local is not None:
                self._take(known, local)
            stored: Profile | None = None
            with trio.move_on_after(STORE_SECONDS):
                stored, _ = await run(Lane.STORE, self._read_stored, image)
            if stored is not None:
                self._take(known, stored)
        except Exception as error:  # whatever it is, the boot goes on
            self._tell(logging.WARNING, f"read {image.record.id}", "a boot profile cannot be read image=%s error=%s", image.record.id, error)
        finally:
            known.until = trio.current_time() + (FOUND_SECONDS if known.boots else ABSENT_SECONDS)
            known.settled.set()

    def _take(self, known: Known, profile: Profile) -> None:
        """Add a profile to what is known; of two that are of disks of different sizes the later one counts."""
        others = known.boots if known.disk_size == profile.disk_size else ()
        known.boots, known.disk_size = merged([*others, *profile.boots]), profile.disk_size

    def _read_local(self, image: CatalogImage) -> Profile | None:
        """Return the local profile, if there is one of these bytes. Blocks; never raises."""
        path = self._directory / image.record.id
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                body = file.read(LARGEST + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            self._tell(logging.WARNING, str(path), "a boot profile cannot be read path=%s error=%s", path, error)
            return None
        return self._fitting(body, image, str(path))

    def _read_stored(self, image: CatalogImage) -> tuple[Profile | None, str | None]:
        """Return the store's profile, if it has one of these bytes, and the version of whatever it has. Blocks. Raises ImagefsError."""
        try:
            found = self._store.profile(image.record)
        except NotFound:
            found = None
        if found is None:
            return None, None
        body, version = found
        return self._fitting(body, image, f"{self._store.url}: the boot profile of image {image.record.id}"), version

    def _fitting(self, body: bytes, image: CatalogImage, origin: str) -> Profile | None:
        """Return the profile in `body` if it is sound and of these bytes."""
        try:
            profile = decode(body, origin)
        except StateDamaged as error:
            self._tell(logging.WARNING, f"{origin} damaged", "a boot profile is not used: %s", error)
            return None
        if profile.image_id != image.record.id or profile.version not in map(version_digest, image.data_versions):
            self._tell(logging.INFO, f"{origin} other", "a boot profile is not used: %s: it is of other bytes than the image has now", origin)
            return None
        return profile

    # -- writing --------------------------------------------------------------------------------

    async def _write(self, image: CatalogImage, disk_size: int, boots: list[Boot]) -> None:
        known = self.ask(image)
        await known.settled.wait()
        others = known.boots if known.disk_size == disk_size else ()
        if all(is_known(boot.units, others) for boot in boots):
            return
        known.boots, known.disk_size = merged([*others, *boots]), disk_size
        known.until = trio.current_time() + FOUND_SECONDS
        profile = Profile(image.record.id, version_digest(image.data_version), disk_size, known.boots)
        await run(Lane.DISK, self._write_local, profile)
        try:
            with trio.move_on_after(STORE_SECONDS) as limit:
                known.boots = await self._write_stored(image, profile)
            if limit.cancelled_caught:
                log.debug("the store took too long to take a boot profile image=%s", image.record.id)
        except (NotPermitted, Unsupported, ReadOnly, StoreRefused) as error:
            self._tell(logging.INFO, "denied", "boot profiles stay on this node, because the store takes none error=%s", error)
        except NotFound:  # the image was deleted meanwhile
            await run(Lane.DISK, self._remove_local, image.record.id)
        except Exception as error:
            self._tell(logging.WARNING, "store", "a boot profile is on this node only image=%s error=%s", image.record.id, error)

    async def _write_stored(self, image: CatalogImage, profile: Profile) -> tuple[Boot, ...]:
        """Bring the boots into the store's profile, whatever others write meanwhile; return the boots that are in it then.

        A write that is cancelled may still arrive: it is whole, and conditional. Raises ImagefsError.
        """
        for attempt in range(WRITE_TRIES):
            stored, version = await run(Lane.STORE, self._read_stored, image)
            others = stored.boots if stored is not None and stored.disk_size == profile.disk_size else ()
            boots = merged([*others, *profile.boots])
            if boots == others:
                return boots
            try:
                await run(Lane.STORE, self._store.put_profile, image.record, encode(dataclasses.replace(profile, boots=boots)), version)
            except Conflict:
                await trio.sleep(self._chance() * 0.1 * 2**attempt)
            else:
                return boots
        log.debug("other nodes were always there first; a boot profile is on this node only image=%s", image.record.id)
        return profile.boots

    def _write_local(self, profile: Profile) -> None:
        """Write the local file, durably. Blocks; never raises."""
        path = self._directory / profile.image_id
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            write_durably(path, encode(profile))
        except OSError as error:
            self._tell(logging.WARNING, "disk", "a boot profile cannot be written here path=%s error=%s", path, error)

    def _remove_local(self, image_id: str) -> None:
        """Remove a local file. Blocks; never raises."""
        with contextlib.suppress(OSError):
            (self._directory / image_id).unlink(missing_ok=True)

    def _prune(self, known: Collection[str]) -> None:
        oldest = self._clock() - ABANDONED_SECONDS
        with contextlib.suppress(OSError):
            for path in self._directory.iterdir():
                # Of a write that was broken off there is a hidden file beside it.
                if path.name not in known and path.lstat().st_mtime < oldest:
                    path.unlink()

    def _tell(self, level: int, kind: str, message: str, *arguments: object) -> None:
        """Log a kind of trouble once: after that it is for who looks closely."""
        log.log(logging.DEBUG if kind in self._told else level, message, *arguments)
        if len(self._told) < 1024:
            self._told.add(kind)
