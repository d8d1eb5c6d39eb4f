"""This module finds an image in the configured store itself, for the commands that need no mount."""

from concurrent.futures import ThreadPoolExecutor

from imagefs.cli.listing import as_image_id, only_one
from imagefs.cli.rights import Rights
from imagefs.errors import ImageRefused, NotFound
from imagefs.store.protocol import ImageStore, Listed
from imagefs.store.record import ImageRecord

_READERS = 16
"""Records read at once: a store far away answers each in tens of milliseconds."""


def find_stored(store: ImageStore, wanted: str, rights: Rights) -> ImageRecord:
    """Return the image that a user means by an id or a name, among those that it sees; those in its lists come before others of that name.

    Raises NotFound, InvalidInput if several have the name, StoreError.
    """
    image_id = as_image_id(wanted)
    if image_id is not None:
        try:
            record = store.find(image_id).record
        except NotFound:
            pass  # an image may be named like an id
        else:
            if rights.sees(record):
                return record

    def named(listed: Listed) -> ImageRecord | None:
        try:
            record = store.record(listed).record
        except (NotFound, ImageRefused):  # deleted meanwhile, or damaged: nothing that a name could mean
            return None
        return record if record.name == wanted and rights.sees(record) else None

    with ThreadPoolExecutor(_READERS) as readers:
        found = {record.id: record for record in readers.map(named, store.list()) if record is not None}
    listed = [image_id for image_id, record in found.items() if rights.lists(record)]
    return found[only_one(sorted(listed or found), wanted)]
