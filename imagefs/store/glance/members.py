"""This module keeps the members of shared images, for which Glance must be asked image by image."""

import collections
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from imagefs.errors import NotFound
from imagefs.store.glance.connection import Connection
from imagefs.store.glance.record import decode_members
from imagefs.store.glance.refusal import AccessDenied
from imagefs.store.record import Member

READERS: Final = 8
"""Requests at once."""
REFRESHED: Final = 512
"""Images whose members one listing asks for again: all of them in most clouds, and a bounded load in those with more shared images."""


class Memberships:
    """The members of images as last read. Thread-safe."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._known: collections.OrderedDict[str, tuple[Member, ...]] = collections.OrderedDict()  # the one read longest ago first

    def read(self, image_id: str) -> tuple[Member, ...]:
        """Return an image's members as they are now; none if the account may not see them. Raises StoreUnavailable."""
        try:
            members = decode_members(self._connection.get(f"reading the members of image {image_id}", f"/v2/images/{image_id}/members"))
        except (NotFound, AccessDenied):
            members = ()
        with self._lock:
            self._known[image_id] = members
            self._known.move_to_end(image_id)
        return members

    def read_all(self, image_ids: Iterable[str]) -> dict[str, tuple[Member, ...]]:
        """Return the members of each image; those of REFRESHED images, and of all that were never read, are read now."""
        wanted = frozenset(image_ids)
        with self._lock:
            for gone in self._known.keys() - wanted:
                del self._known[gone]
            oldest = [image_id for image_id, _ in zip(self._known, range(REFRESHED), strict=False)]
            asked = [*oldest, *sorted(wanted - self._known.keys())]
        with ThreadPoolExecutor(READERS, thread_name_prefix="members") as readers:
            found = dict(zip(asked, readers.map(self.read, asked), strict=True))
        with self._lock:
            return {image_id: found.get(image_id, self._known.get(image_id, ())) for image_id in wanted}
