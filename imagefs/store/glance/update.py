"""This module writes a change to an image of a Glance, and sees to it that it stays.

Glance's own write is no transaction: it reads the image, changes it and writes all of it back, properties that it did not read
removed. Of two writers at once one is undone, without an error. So a write is followed by a pause that is longer than Glance takes for a
write, and by a look; what is lost is written again. Of 50 properties that two writers set at once without this, 28 were there in
the end (Glance 33.0.0 over SQLite, 2026-11-22).
"""

import dataclasses
import random
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from imagefs.errors import Conflict, NotFound, NotPermitted, StoreUnavailable
from imagefs.store.glance.change import Difference, difference, member_requests
from imagefs.store.glance.connection import JSON_PATCH, Connection
from imagefs.store.glance.record import decode_image
from imagefs.store.protocol import StoredRecord
from imagefs.store.record import ImageRecord

TRIES: Final = 24
UNAVAILABLE_TRIES: Final = 5
QUIET_LOOKS: Final = 4
"""Looks after a write at most, as long as each shows that somebody else is writing too."""
LEAST_PAUSE: Final = 0.1
"""Seconds; a write took 0.04 s on an idle machine with two cores."""
LONGEST_PAUSE: Final = 5.0
LONGEST_DELAY: Final = 1.0
"""Seconds between tries of a write that lost, with full jitter."""
_LOCKS: Final = 64

Find = Callable[[str], StoredRecord]
"""Reads an image as it is now. Raises NotFound, StoreError."""


class Clock(Protocol):
    """What `time` has of time."""

    def monotonic(self) -> float:
        """Return seconds."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Wait."""
        ...


class Updates:
    """Writes changes of images. Thread-safe; those of one image are written one after another."""

    def __init__(self, connection: Connection, find: Find, clock: Clock = time, chance: Callable[[], float] = random.random) -> None:
        self._connection = connection
        self._find = find
        self._clock = clock
        self._chance = chance
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._slowest = 0.0  # seconds that a write took, of late

    def update(self, image_id: str, change: Callable[[ImageRecord], ImageRecord]) -> StoredRecord:
        """Apply `change` to the image as it is now, write what it touches, and return the image once that has stayed.

        Raises NotFound, what `change` raises, InvalidInput, NotPermitted and QuotaExceeded as Glance says, and Conflict after TRIES
        writes that others undid.
        """
        with self._locks[hash(image_id) % _LOCKS]:
            before = self._find(image_id)
            touched = difference(before.record, change(before.record))
            return self._write_until_it_stays(touched, before) if touched else before

    def _write_until_it_stays(self, touched: Difference, current: StoredRecord) -> StoredRecord:
        unavailable, said = 0, ""
        for attempt in range(TRIES):
            if attempt:
                self._clock.sleep(self._chance() * min(0.02 * 2**attempt, LONGEST_DELAY))
            answered: ImageRecord | None = None
            try:
                answered = self._write(touched, current.record)
            except StoreUnavailable:
                # It may have been written all the same: the look decides.
                unavailable += 1
                if unavailable == UNAVAILABLE_TRIES:
                    raise
            except (Conflict, NotFound) as error:
                # It was written on the ground of a state that is no more: the look says what is left to do.
                said = f" (Glance's last word: {error})"
            current = self._look(touched, answered)
            touched = touched.lost(current.record)
            if not touched:
                return current
        raise Conflict(f"image {touched.image_id}: {touched.described()} cannot be set: others change the image all the time: try again{said}")

    def _write(self, touched: Difference, current: ImageRecord) -> ImageRecord | None:
        """Send what brings `current` to the wanted state, and return what Glance made of the image itself, if that was changed.

        Raises StoreError, NotFound, NotPermitted, InvalidInput, QuotaExceeded.
        """
        started = self._clock.monotonic()
        doing = f"changing image {touched.image_id}"
        path = f"/v2/images/{touched.image_id}"
        answered: ImageRecord | None = None
        try:
            if operations := touched.patch(current):
                answer = self._connection.send(doing, "PATCH", path, json=operations, content_type=JSON_PATCH)
                answered = decode_image(answer, self._connection.endpoint)
                _check_kept(touched, answered, doing)
            for project, touch in touched.members.items():
                for method, below, body in member_requests(project, touch):
                    self._connection.send(f"{doing}: member {project}", method, path + below, json=body)
            if touched.action is not None:
                self._connection.send(f"{doing}: {touched.action}", "POST", f"{path}/actions/{touched.action}")
        finally:
            # An old slow write must not make all later ones slow for ever.
            self._slowest = max(self._clock.monotonic() - started, self._slowest * 0.8)
        return answered

    def _look(self, touched: Difference, answered: ImageRecord | None) -> StoredRecord:
        """Read the image again when the writes of others that were under way are over; until two looks agree, if there are such writes."""
        if not touched.shared_write:
            return self._find(touched.image_id)
        expected = None if answered is None else _comparable(answered)
        for _ in range(QUIET_LOOKS):
            self._clock.sleep(min(max(LEAST_PAUSE, 2 * self._slowest), LONGEST_PAUSE))
            current = self._find(touched.image_id)
            seen = _comparable(current.record)
            if expected == seen or touched.lost(current.record):
                break
            expected = seen
        return current


def _comparable(record: ImageRecord) -> ImageRecord:
    """Return what a PATCH and a later GET show alike, if nobody wrote between them."""
    return msgspec.structs.replace(record, updated_at="", members=(), status="")


def _check_kept(touched: Difference, answered: ImageRecord, doing: str) -> None:
    """Raise NotPermitted if Glance answered "done" and its own answer does not show it: some names mean something inside Glance."""
    ignored = dataclasses.replace(touched, members={}, action=None).lost(answered)
    if ignored:
        raise NotPermitted(f"{doing}: Glance reports success but does not keep {ignored.described()}: choose another name")
