"""This module gives commands to a QEMU through its QMP monitor."""

from pathlib import Path
from typing import Any, Final, Self

import trio

from imagefs.errors import ImagefsError
from imagefs.qmp.channel import Channel
from imagefs.qmp.unix import connect

ANSWER_SECONDS: Final = 30.0
"""How long a command may take; those that wait for the guest's I/O take longest."""
SKIPPED_LIMIT: Final = 10_000
"""Messages that may come before an answer: events, and answers to commands that were given up."""


class Monitor:
    """A QMP session in command mode. One command at a time. Events are skipped.

    A command that was cancelled leaves an answer behind, which is known by its number and skipped.
    """

    def __init__(self, channel: Channel) -> None:
        """Take over a connection that nothing was received from yet; `greet` before the first command."""
        self._channel = channel
        self._number = 0

    @classmethod
    async def connect(cls, path: Path, caller_uid: int) -> Self:
        """Return a session with the QEMU at a socket of the caller's. Raises InvalidInput for a socket that is not, ImagefsError."""
        channel = Channel(await connect(path, caller_uid, "QMP socket"), f"QMP socket {path}")
        monitor = cls(channel)
        try:
            await monitor.greet()
        except BaseException:
            await channel.aclose()
            raise
        return monitor

    async def greet(self, seconds: float = ANSWER_SECONDS) -> None:
        """Wait for QEMU's greeting and enter command mode. Raises ImagefsError."""
        try:
            with trio.fail_after(seconds):
                greeting = await self._channel.receive()
        except trio.TooSlowError:
            raise ImagefsError(
                f"{self._channel.name}: QEMU sent no greeting within {seconds:.0f} s: it talks to one client at a time: is another one connected?"
            ) from None
        if not isinstance(greeting.get("QMP"), dict):
            raise ImagefsError(f"{self._channel.name}: the greeting is not QMP's: is this the right socket?")
        await self.execute("qmp_capabilities")

    async def execute(self, command: str, arguments: dict[str, Any] | None = None, seconds: float = ANSWER_SECONDS) -> object:
        """Give a command and return what it returns. Raises ImagefsError with QEMU's reason if it fails, or if there is no answer in time.

        When this is cancelled the command was given, and may still be carried out.
        """
        self._number += 1
        try:
            with trio.fail_after(seconds):
                await self._channel.send({"execute": command, "arguments": arguments or {}, "id": self._number})
                answer = await self._answer(command)
        except trio.TooSlowError:
            raise ImagefsError(f"{self._channel.name}: {command} was not answered within {seconds:.0f} s: look whether QEMU hangs") from None
        if "error" in answer:
            raise ImagefsError(f"{self._channel.name}: {command} failed: {reason_of(answer['error'])}")
        found: object = answer["return"]
        return found

    async def aclose(self) -> None:
        """End the session, without waiting for anything."""
        await self._channel.aclose()

    async def _answer(self, command: str) -> dict[str, Any]:
        for _ in range(SKIPPED_LIMIT):
            message = await self._channel.receive()
            if "error" not in message and "return" not in message:
                if "event" not in message:
                    break
            elif message.get("id") == self._number:
                return message
            elif "id" not in message:  # an answer to what QEMU could not even read
                return message if "error" in message else {"error": {"desc": "an answer came without a number"}}
        raise ImagefsError(f"{self._channel.name}: instead of an answer to {command} came what is none: is this the right socket?")


def reason_of(error: object) -> str:
    """Return the words of an `error` member, cut to what fits a message; it may be anything."""
    words = error.get("desc") if isinstance(error, dict) else None
    return " ".join(words.split())[:300] if isinstance(words, str) and words else "no reason was given"
