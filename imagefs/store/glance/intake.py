"""This module is an image's bytes on their way into Glance."""

from collections.abc import Iterator
from typing import Final

from imagefs.errors import WrongBytes
from imagefs.store.intake import Intake
from imagefs.store.protocol import Progress
from imagefs.store.record import ImageRecord
from imagefs.units import KIB

_PIECE: Final = 256 * KIB


class UploadBody:
    """Iterates once over the bytes of `intake`; its length makes the client send Content-Length, without which some servers buffer."""

    def __init__(self, intake: Intake, size: int, progress: Progress) -> None:
        self._intake = intake
        self._size = size
        self._progress = progress
        self.sent = 0
        """Bytes that were taken."""

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while self.sent < self._size:
            piece = self._intake.read(_PIECE)
            # First: a Glance that had all of the bytes when `progress` broke the upload off would store them while the image is being deleted.
            self._progress(len(piece))
            self.sent += len(piece)
            yield piece


def check_arrived(record: ImageRecord, intake: Intake, size: int) -> None:
    """Return if Glance's record is of exactly the bytes that were sent. Raises WrongBytes."""
    if record.status != "active" or record.size != size:
        raise WrongBytes(f"storing image {record.id}: Glance has it as {record.status} with {record.size} bytes, not as active with {size}")
    sums = ((record.os_hash_value, intake.sha512) if record.os_hash_algo == "sha512" else (None, ""), (record.checksum, intake.md5))
    if any(found is not None and found != right for found, right in sums):
        raise WrongBytes(f"storing image {record.id}: Glance's hash is not that of the bytes that were sent: try again")
