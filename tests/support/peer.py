"""This module stands in for the other end of a QMP or guest agent socket: it does what a script says, byte for byte."""

import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

Script = Callable[["Peer"], Awaitable[None]]
GREETING: dict[str, Any] = {"QMP": {"version": {}, "capabilities": []}}


class Peer:
    """One accepted connection, seen from the server's side; `received` are all requests on it."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self.received: list[dict[str, Any]] = []

    async def request(self) -> dict[str, Any]:
        """Return the next request; the agent's delimiter before it is dropped. Ends the script at the end of the connection."""
        while b"\n" not in self._buffer:
            chunk = await self._stream.receive_some(65536)
            if not chunk:
                raise trio.BrokenResourceError
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        found: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        self.received.append(found)
        return found

    async def send(self, *messages: dict[str, Any] | bytes) -> None:
        """Send objects as lines, and bytes as they are."""
        for message in messages:
            await self._stream.send_all(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    async def answer(self, value: object) -> dict[str, Any]:
        """Answer the next request with a value, and return the request."""
        request = await self.request()
        await self.send({"return": value, **({"id": request["id"]} if "id" in request else {})})
        return request

    async def greet(self) -> None:
        """Do what QEMU does at the start of a session."""
        await self.send(GREETING)
        await self.answer({})

    async def synchronise(self) -> None:
        """Answer the next request as an agent does that is asked to synchronise, with an old answer before it."""
        request = await self.request()
        assert request["execute"] == "guest-sync-delimited"
        await self.send(b'{"return": "of somebody else"}\n\xff', {"return": request["arguments"]["id"]})


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    """Be another user for what is made meanwhile: files and the credentials of sockets that listen."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


@contextlib.asynccontextmanager
async def listening(path: Path, *scripts: Script, uid: int = 0) -> AsyncIterator[list[Peer]]:
    """Listen at `path` as `uid`; the first connection gets the first script, and so on, one at a time. Gives the connections so far."""
    peers: list[Peer] = []
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with as_user(uid):
        await listener.bind(str(path))
        listener.listen(8)

    async def serve() -> None:
        for script in scripts:
            connection, _ = await listener.accept()
            async with trio.SocketStream(connection) as stream:
                peers.append(Peer(stream))
                with contextlib.suppress(trio.BrokenResourceError):
                    await script(peers[-1])

    failure: Exception | None = None
    with listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield peers
            except Exception as error:  # to come out as it is, not in a group of one
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
