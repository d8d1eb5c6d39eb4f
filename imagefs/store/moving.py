"""This module is the bytes of an upload on their way into s3transfer, which takes some errors for others."""

from typing import BinaryIO

from imagefs.store.protocol import Progress


class Moving:
    """A source that s3transfer reads in a thread of its own, and what it tells, in others, of the bytes that it has sent. `error` is the first
    that either raised.

    Of what reading raises s3transfer waits for ever for anything that is no Exception (KeyboardInterrupt, for one): so it gets an Exception in
    any case. What `progress` raises it would take for a broken connection, and try again: so that ends the reading instead.
    """

    def __init__(self, source: BinaryIO, progress: Progress) -> None:
        self._source = source
        self._progress = progress
        self.error: BaseException | None = None

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes. Raises RuntimeError once the upload is broken off."""
        if self.error is None:
            try:
                return self._source.read(size)
            except BaseException as error:
                self.error = error
        raise RuntimeError("the upload was broken off") from self.error

    def moved(self, count: int) -> None:
        """Tell of bytes that were sent."""
        if self.error is None:
            try:
                self._progress(count)
            except BaseException as error:
                self.error = error
