"""This module finds an image in the configured store itself, for the commands that need no mount."""

from concurrent.futures import ThreadPoolExecutor

from imagefs.cli.image import as_image_id, only_one
from imagefs.errors import ImageRefused, NotFound
from imagefs.store.protocol import ImageStore, Listed
from imagefs.store.record import ImageRecord

_READERS = 16
"""Records read at once: a store far away answers each in tens of milliseconds."""


def find_stored(store: ImageStore, wanted: str) -> ImageRecord:
    """Return the image that a user means by an id or a name. Raises NotFound, InvalidInput if several have the name, StoreError."""
    image_id = as_image_id(wanted)
    if image_id is not None:
        try:
            return store.find(image_id).record
        except NotFound:
            pass  # an image may be named like an id

    def named(listed: Listed) -> ImageRecord | None:
        try:
            record = store.record(listed).record
        except (NotFound, ImageRefused):  # deleted meanwhile, or damaged: nothing that a name could mean
            return None
        return record if record.name == wanted else None

    with ThreadPoolExecutor(_READERS) as readers:
        found = {record.id: record for record in readers.map(named, store.list()) if record is not None}
    return found[only_one(sorted(found), wanted)]
