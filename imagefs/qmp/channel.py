"""This module exchanges JSON objects, one a line, with a peer that may send anything, or nothing."""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import trio

from imagefs.errors import ImagefsError
from imagefs.units import KIB, MIB

LINE_LIMIT: Final = MIB
"""Bytes of one line: a machine with hundreds of disks stays below. What is made of it in memory may be 20 times as much, and nobody is served
while it is made."""
SEND_SECONDS: Final = 5.0
_RECEIVE: Final = 64 * KIB


class Channel:
    """A connection on which lines go both ways. All failures are ImagefsErrors that begin with its `name`.

    Cancelling `receive` loses nothing. Sending goes on under cancellation for SEND_SECONDS at most, so that no line is cut.
    """

    def __init__(self, stream: trio.abc.Stream, name: str) -> None:
        """Take over a connection; `aclose` closes it."""
        self._stream = stream
        self.name = name
        self._buffer = bytearray()

    async def send(self, message: Mapping[str, Any], prefix: bytes = b"") -> None:
        """Send an object, behind `prefix`. Raises ImagefsError if the peer is gone or does not read."""
        line = prefix + msgspec.json.encode(message) + b"\n"
        with trio.CancelScope(deadline=trio.current_time() + SEND_SECONDS, shield=True):
            try:
                await self._stream.send_all(line)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise ImagefsError(f"{self.name}: was closed: has the guest ended?") from None
            return
        raise ImagefsError(f"{self.name}: does not read what is sent: look whether the process there is stopped")

    async def receive(self) -> dict[str, Any]:
        """Return the next object; lines without anything are skipped. Raises ImagefsError for an end, or a line that is no object or too long."""
        while True:
            line = (await self._until(b"\n")).strip()
            if line:
                break
        try:
            message = msgspec.json.decode(line)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise ImagefsError(f"{self.name}: sent what is not JSON ({error}): is this the right socket?") from None
        if not isinstance(message, dict):
            raise ImagefsError(f"{self.name}: sent JSON that is not an object: is this the right socket?")
        return message

    async def skip_to(self, delimiter: bytes) -> None:
        """Drop everything up to and with a byte. Raises ImagefsError for an end, or if it does not come within LINE_LIMIT bytes."""
        await self._until(delimiter)

    async def aclose(self) -> None:
        """Close the connection, without waiting for anything."""
        await trio.aclose_forcefully(self._stream)

    async def _until(self, delimiter: bytes) -> bytes:
        """Return what comes before a byte, and take both out of the buffer."""
        searched = 0
        while (end := self._buffer.find(delimiter, searched)) < 0:
            searched = len(self._buffer)
            if searched > LINE_LIMIT:
                raise ImagefsError(f"{self.name}: sent more than {LINE_LIMIT} bytes in one line: is this the right socket?")
            try:
                chunk = await self._stream.receive_some(_RECEIVE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                chunk = b""
            if not chunk:
                raise ImagefsError(f"{self.name}: was closed: has the guest ended?")
            self._buffer += chunk
        found = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return found
