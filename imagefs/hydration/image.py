"""This module is an image as hydration sees it: its record, the object in the store, and the cache that its disk is read from."""

import dataclasses

from imagefs.cache.cache import UnitCache
from imagefs.fetch.stored import StoredObject
from imagefs.hydration.verdict import Verdict
from imagefs.store.record import ImageRecord

Key = tuple[str, str]
"""An image's id, and what names its bytes."""


@dataclasses.dataclass(frozen=True, eq=False)
class HydratedImage:
    """An open image whose bytes come from the store through the cache. `stored` is the cache of its stored bytes, `disk` that of its disk:
    the same one unless the image is decoded.
    """

    record: ImageRecord
    data_version: str
    object: StoredObject
    stored: UnitCache
    disk: UnitCache
    verdict: Verdict

    @property
    def key(self) -> Key:
        """What tells it from other images and other versions."""
        return self.record.id, self.data_version

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.object.name

    @property
    def is_decoded(self) -> bool:
        """Whether the disk is made from the stored bytes, and not the same."""
        return self.disk is not self.stored
