"""This module is the pins (imagefs-state(5)): the images whose caches are evicted last, also after a restart."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from imagefs import threads
from imagefs.errors import NoSpace, QuotaExceeded, StateDamaged
from imagefs.sealed import HEADER_SIZE, seal, unseal, write_durably
from imagefs.store.record import is_image_id
from imagefs.threads import Lane

log = logging.getLogger(__name__)

MAGIC: Final = b"IMFSPINS"
VERSION: Final = 1
LIMIT: Final = 16384
"""Images that can be pinned at once."""
_BYTES: Final = HEADER_SIZE + LIMIT * 40
"""The largest record: an id takes 39 bytes."""


class Pins:
    """The pinned images of a state directory. Used on the event loop only.

    Invariant: `ids` are what the file says, or what it said when somebody last tried to change it.
    """

    def __init__(self, path: Path) -> None:
        """Take the record's path; nothing is pinned until `load`."""
        self._path = path
        self._changing = trio.Lock()
        self.ids: frozenset[str] = frozenset()

    async def load(self) -> None:
        """Read the record. Never raises: one that cannot be read pins nothing, is left as it is until somebody pins again, and the log says so."""
        try:
            self.ids = await threads.run(Lane.DISK, _read, self._path)
        except (OSError, StateDamaged) as error:
            log.error("pins cannot be read, so that no image is pinned path=%s error=%s", self._path, error)

    async def change(self, image_id: str, pinned: bool, exists: Callable[[str], bool]) -> None:
        """Pin or unpin an image, durably, and drop pins of images that do not exist any more.

        Raises NoSpace, with all as before, if it cannot be written down; QuotaExceeded if too many are pinned. Cancellation waits for the disk.
        """
        async with self._changing:  # or the older of two states might be the one that stays
            others = self.ids - {image_id}
            wanted = frozenset(filter(exists, others)) | ({image_id} if pinned else frozenset())
            if wanted == self.ids:
                return
            if len(wanted) > LIMIT:
                raise QuotaExceeded(f"image {image_id}: {LIMIT} images are pinned already: unpin one of them")
            body = seal(MAGIC, VERSION, msgspec.json.encode(sorted(wanted)))
            try:
                with trio.CancelScope(shield=True):
                    await threads.run(Lane.DISK, write_durably, self._path, body)
            except OSError as error:
                what = "pinned" if pinned else "unpinned"
                raise NoSpace(f"image {image_id}: not {what}: {self._path} cannot be written: {error.strerror}: see to the disk") from error
            self.ids = wanted


def _read(path: Path) -> frozenset[str]:
    """Return the ids in the record; none if there is no record. Blocks. Raises OSError, StateDamaged."""
    try:
        with path.open("rb") as file:
            payload = unseal(MAGIC, VERSION, file.read(_BYTES), str(path))
        ids = msgspec.json.decode(payload, type=list[str])
    except FileNotFoundError:
        return frozenset()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StateDamaged(f"{path}: not a list of images: {error}") from error
    if not all(map(is_image_id, ids)):
        raise StateDamaged(f"{path}: has what is no image id")
    return frozenset(ids)
