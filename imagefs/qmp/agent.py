"""This module has the agent in a guest freeze the guest's filesystems, and see to it that they are thawed again."""

import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Final, Self, TypeVar

import trio

from imagefs.errors import ImagefsError
from imagefs.qmp.channel import Channel
from imagefs.qmp.monitor import reason_of
from imagefs.qmp.unix import connect

log = logging.getLogger(__name__)

T = TypeVar("T")

THAW_SECONDS: Final = 20.0
"""How long thawing may take in all, with a second try over a new connection. The guest's writers stand still meanwhile."""
_DELIMITER: Final = b"\xff"
"""No JSON has this byte: to the agent it ends what came before, and from the agent it comes before the answer to a synchronisation."""
_SYNC_ATTEMPTS: Final = 100


class Agent:
    """A session with a guest agent. Answers carry no number, so that after a command was given up the session must be synchronised."""

    def __init__(self, channel: Channel) -> None:
        """Take over a connection."""
        self._channel = channel

    @classmethod
    async def connect(cls, path: Path, caller_uid: int) -> Self:
        """Return a session over a socket of the caller's. Raises InvalidInput for a socket that is not, ImagefsError."""
        return cls(Channel(await connect(path, caller_uid, "guest agent socket"), f"guest agent socket {path}"))

    async def synchronise(self) -> None:
        """Drop what is left of earlier commands, of this or another client. No deadline: an agent that is not running says nothing."""
        number = secrets.randbelow(2**31)
        await self._channel.send({"execute": "guest-sync-delimited", "arguments": {"id": number}}, prefix=_DELIMITER)
        for _ in range(_SYNC_ATTEMPTS):
            await self._channel.skip_to(_DELIMITER)
            if (await self._channel.receive()).get("return") == number:
                return
        raise ImagefsError(f"{self._channel.name}: cannot be synchronised: is another client connected?")

    async def execute(self, command: str) -> object:
        """Give a command and return what it returns. No deadline. Raises ImagefsError with the agent's reason if it fails."""
        await self._channel.send({"execute": command})
        answer = await self._channel.receive()
        if "return" not in answer:
            raise ImagefsError(f"{self._channel.name}: {command} failed: {reason_of(answer.get('error'))}")
        return answer["return"]

    async def aclose(self) -> None:
        """End the session, without waiting for anything."""
        await self._channel.aclose()


@contextlib.asynccontextmanager
async def frozen(path: Path, caller_uid: int, seconds: float) -> AsyncIterator[int]:
    """Freeze the guest's filesystems for the body of `async with`, and thaw them always, under cancellation too; gives how many are frozen.

    Freezing may take `seconds` in all. Raises InvalidInput for a socket that is not the caller's, ImagefsError if the guest cannot be frozen;
    a guest that cannot be thawed is logged as an error.
    """
    agent = await Agent.connect(path, caller_uid)
    try:
        await _within(seconds, path, "answer", agent.synchronise())
        try:
            count = await _within(seconds, path, "freeze its filesystems", agent.execute("guest-fsfreeze-freeze"))
            if not isinstance(count, int) or isinstance(count, bool):
                raise ImagefsError(f"guest agent socket {path}: guest-fsfreeze-freeze returned no number: is this the right socket?")
            yield count
        finally:
            with trio.CancelScope(shield=True):
                await _thaw(agent, path, caller_uid)
    finally:
        await agent.aclose()


async def _within(seconds: float, path: Path, what: str, answer: Awaitable[T]) -> T:
    try:
        with trio.fail_after(seconds):
            return await answer
    except trio.TooSlowError:
        raise ImagefsError(f"guest agent socket {path}: the guest did not {what} within {seconds:.0f} s: is its agent running?") from None


async def _thaw(agent: Agent, path: Path, caller_uid: int) -> None:
    """Thaw the guest, over a new connection if the old one does not serve, and log it if it stays frozen. Never raises an Exception."""
    reason = f"no answer within {THAW_SECONDS:.0f} s"
    with trio.move_on_after(THAW_SECONDS):
        try:
            with trio.fail_after(THAW_SECONDS / 2):
                await _thaw_over(agent)
                return
        except (ImagefsError, trio.TooSlowError) as error:
            reason = str(error) or reason
        await agent.aclose()  # an agent talks to one client at a time
        try:
            again = await Agent.connect(path, caller_uid)
            try:
                await _thaw_over(again)
                return
            finally:
                await again.aclose()
        except ImagefsError as error:
            reason = str(error)
    log.error("a guest's filesystems may still be frozen; run 'fsfreeze --unfreeze' in the guest, or reset it agent=%s reason=%s", path, reason)


async def _thaw_over(agent: Agent) -> None:
    await agent.synchronise()
    await agent.execute("guest-fsfreeze-thaw")
    if (status := await agent.execute("guest-fsfreeze-status")) != "thawed":
        raise ImagefsError(f"the guest agent says that its filesystems are {str(status)[:40]!r} after thawing")
