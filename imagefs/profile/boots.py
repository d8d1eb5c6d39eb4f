"""This module sees to the boots of a mount: it brings what a boot reads ahead of the guest, and learns from what the guest has read.

    expected:  its profile is asked for while the image is opened; then its units are fetched, or without a profile what warm-up guesses
    recorded:  a Recorder notes what the guest reads; what comes out is compared with the profile, and taken into it

Nothing here fails an opening or holds up a read.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Final

import trio

from imagefs.catalog import CatalogImage
from imagefs.counters import COUNTERS
from imagefs.errors import ImagefsError
from imagefs.profile.merge import fetches, rubbish, score
from imagefs.profile.record import KEPT_BOOTS, Boot
from imagefs.profile.recorder import Recorder
from imagefs.profile.replay import Cached, Each, bring, is_cached
from imagefs.profile.shelf import Known, ProfileShelf
from imagefs.source import Source
from imagefs.units import MIB, UNIT, unit_count

log = logging.getLogger(__name__)

PROFILE_SECONDS: Final = 3.0
"""How long a boot waits for the store's profile, once the image is open, before it is helped without."""
WARM_BUDGET: Final = 256 * MIB
"""Bytes that are fetched on a guess where there is no profile, at most: guesses at Linux guests take 70 to 170 MB, other disks' a few."""
MOST_RECORDINGS: Final = 64
"""Boots recorded at once: 150 KiB of memory each as a rule, 1 MiB at most."""
SAVING_SECONDS: Final = 3.0
"""How long the end of a mount waits for what was recorded to be written."""

Key = tuple[str, str]
Guess = Callable[[Source, int], AsyncGenerator[tuple[int, int], None]]
"""Yields (offset, length) of what a boot of a disk probably reads, within a budget in bytes; see imagefs.profile.warmup."""


class Boots:
    """The boots that are expected and recorded. Used on the event loop."""

    def __init__(
        self, shelf: ProfileShelf, guess: Guess, nursery: trio.Nursery, room: int, *, enabled: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        """Take where profiles lie, what guesses without one, where tasks run, and how many bytes the cache may take.

        Of those a half is the most that is fetched ahead: more would drive out what it has just brought. Unless `enabled` nothing is recorded,
        and nothing brought but what somebody asks for. `clock` gives Unix seconds.
        """
        self._enabled = enabled
        self.room = room
        self._shelf = shelf
        self._guess = guess
        self._nursery = nursery
        self._clock = clock
        self._replays: dict[Key, trio.CancelScope] = {}
        self._recorders: dict[Recorder, Key] = {}
        self._saved = trio.Event()

    @property
    def busy(self) -> bool:
        """Whether anything is being brought, recorded or written."""
        return bool(self._replays or self._recorders)

    # -- ahead of the guest ---------------------------------------------------------------------

    def ask(self, image: CatalogImage) -> None:
        """Begin to read the image's profile, so that it is here when the image is open. Never raises."""
        if self._enabled:
            self._shelf.ask(image)

    def expect(self, image: CatalogImage, opening: Callable[[], Awaitable[Source | None]]) -> None:
        """Begin to bring what a boot of the image reads, unless that is under way; returns at once and never raises.

        `opening` opens the image and returns its disk, if it has one; it may raise what opening raises.
        """
        key = _key(image)
        if key in self._replays or not self._enabled:
            return
        scope = self._replays[key] = trio.CancelScope()
        try:
            self._nursery.start_soon(self._expect, image, opening, scope)
        except RuntimeError:  # the nursery is closed: imagefs is ending
            del self._replays[key]

    async def _expect(self, image: CatalogImage, opening: Callable[[], Awaitable[Source | None]], scope: trio.CancelScope) -> None:
        try:
            with scope:
                known = self._shelf.ask(image)
                disk = await opening()
                if is_cached(disk):
                    await self._bring(image, disk, known, lambda length: None)
        except ImagefsError as error:
            log.debug("nothing is brought ahead of a boot any more image=%s error=%s", image.record.id, error)
        except Exception:
            log.exception("a boot could not be prepared image=%s", image.record.id)
        finally:
            if self._replays.get(_key(image)) is scope:
                del self._replays[_key(image)]

    async def bring(self, image: CatalogImage, disk: Cached, brought: Callable[[int, int], None]) -> None:
        """Bring what a boot reads because somebody asked for it; `brought` is called with the bytes that are here and those wanted.

        Raises StoreErrors, ImageRefused. Safe to cancel.
        """
        done = 0

        def count(length: int) -> None:
            nonlocal done
            done += length
            brought(done, max(done, wanted))

        known = self._shelf.ask(image)
        await known.settled.wait()
        wanted = sum(length for _, length in fetches(known.units(disk.size), disk.size))
        brought(0, wanted)
        await self._bring(image, disk, known, count)

    async def _bring(self, image: CatalogImage, disk: Cached, known: Known, brought: Callable[[int], None]) -> None:
        """Bring the profile; what the store knows of it may come later. Without one bring what is guessed. Raises ImagefsError."""
        with trio.move_on_after(PROFILE_SECONDS):
            await known.settled.wait()
        units = known.units(disk.size)
        if units:
            await self._replay(image, disk, units, brought)
        else:
            async with contextlib.aclosing(self._guess(disk, min(WARM_BUDGET, self.room // 2))) as guessed:
                await bring(disk.prefetch, guessed, brought)
        await known.settled.wait()
        begun = set(units)
        if late := [unit for unit in known.units(disk.size) if unit not in begun]:
            await self._replay(image, disk, late, brought)

    async def _replay(self, image: CatalogImage, disk: Cached, units: Sequence[int], brought: Callable[[int], None]) -> None:
        ranges = fetches(units[: self.room // 2 // UNIT], disk.size)
        for offset, length in ranges:
            disk.keep(offset, length)
        absent = [extent for extent in ranges if not disk.is_here(*extent)]
        brought(sum(length for _, length in ranges) - sum(length for _, length in absent))
        fetched = 0

        async def fetch(offset: int, length: int) -> None:
            nonlocal fetched
            missing = await disk.missing_extents(offset, length)
            if not missing:
                # It is on the disk, or on its way. Read, so that it is proved, and in the host's memory, before the guest asks.
                await disk.read(offset, length)
                return
            COUNTERS.profile_replays += not fetched
            fetched += sum(stop - start for start, stop in missing)
            COUNTERS.profile_bytes += sum(stop - start for start, stop in missing)
            await disk.prefetch(offset, length)

        with disk.foreseen():
            await bring(fetch, Each(absent), brought)
        log.debug("what a boot reads is here image=%s units=%d fetched=%d", image.record.id, len(units), fetched)

    # -- behind the guest -----------------------------------------------------------------------

    def recorded(self, image: CatalogImage, disk: Source, ended: Callable[[], object]) -> Recorder | None:
        """Return what a guest is to read a disk through, so that its boot is recorded; None if that is of no use.

        `ended` is called once when it has stepped out of the way (see Recorder).
        """
        if not (self._enabled and is_cached(disk)) or len(self._recorders) >= MOST_RECORDINGS:
            return None
        if list(self._recorders.values()).count(_key(image)) >= KEPT_BOOTS:
            return None  # a profile keeps no more

        def begun(recorder: Recorder) -> None:
            self._recorders[recorder] = _key(image)
            try:
                self._nursery.start_soon(self._record, image, recorder)
            except RuntimeError:  # the nursery is closed: imagefs is ending
                del self._recorders[recorder]
                recorder.end()

        return Recorder(disk, begun, ended)

    async def _record(self, image: CatalogImage, recorder: Recorder) -> None:
        """Wait for a recording to end, and learn from it."""
        try:
            known = self._shelf.ask(image)
            await known.settled.wait()
            ahead = known.units(recorder.size)  # of now: when the boot has ended others may have added theirs
            await recorder.finished()
            await self._learn(image, recorder, ahead)
        except Exception:
            log.exception("a boot could not be recorded image=%s", image.record.id)
        finally:
            recorder.end()
            del self._recorders[recorder]
            self._saved.set()
            self._saved = trio.Event()

    async def _learn(self, image: CatalogImage, recorder: Recorder, ahead: Sequence[int]) -> None:
        units = recorder.units
        if (reason := rubbish(units, unit_count(recorder.size))) is not None:
            log.debug("a recording is no boot and is dropped image=%s reason=%s", image.record.id, reason)
            return
        if ahead:
            found = score(units, ahead)
            COUNTERS.profile_boot_units += len(units)
            COUNTERS.profile_covered_units += found.covered
            COUNTERS.profile_wasted_units += found.wasted
        await self._shelf.add(image, recorder.size, Boot(uuid.uuid4(), int(self._clock()), units))
        COUNTERS.profile_recorded += 1

    # -- the end --------------------------------------------------------------------------------

    def forget(self, image: CatalogImage) -> None:
        """Break off what is done for an image that is gone, or has other bytes by now."""
        self._shelf.forget(image)
        if (scope := self._replays.pop(_key(image), None)) is not None:
            scope.cancel()

    async def close(self) -> None:
        """End all recordings, and give what came out of them a moment to be written. Never raises."""
        for recorder in list(self._recorders):
            recorder.end()
        with trio.move_on_after(SAVING_SECONDS):
            while self._recorders:
                await self._saved.wait()


def _key(image: CatalogImage) -> Key:
    return image.record.id, image.data_version
