"""Freezing a guest's filesystems: they are thawed again, whatever happens."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.qmp import agent
from imagefs.qmp.agent import frozen
from tests.support.peer import Peer, Script, listening
from tests.support.user import open_the_way


class Guest:
    """What an agent knows: how often it froze and thawed. A failing command gets what `failures` has for it, None being silence."""

    def __init__(self, failures: dict[str, dict[str, Any] | bytes | None] | None = None) -> None:
        self.failures = failures or {}
        self.commands: list[str] = []
        self.is_frozen = False

    async def serve(self, peer: Peer) -> None:
        while True:
            request = await peer.request()
            command = request["execute"].removeprefix("guest-").removeprefix("fsfreeze-")
            self.commands.append(command)
            if command == "sync-delimited":
                if self.failures.get("sync-delimited", 0) == 0:
                    await peer.send(b'{"error": {"desc": "Invalid JSON"}}\n\xff', {"return": request["arguments"]["id"]})
                continue
            if command in {"freeze", "thaw"}:
                self.is_frozen = command == "freeze"
            if command not in self.failures:
                await peer.send({"return": {"freeze": 2, "thaw": 2, "status": "frozen" if self.is_frozen else "thawed"}[command]})
            elif (failure := self.failures[command]) is not None:
                await peer.send(failure)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what is waited for in vain be given up soon."""
    monkeypatch.setattr(agent, "THAW_SECONDS", 0.4)


def serving(tmp_path: Path, guest: Guest, connections: int = 1) -> Any:
    return listening(tmp_path / "agent", *[guest.serve] * connections)


async def test_a_guest_is_frozen_for_the_body_alone(tmp_path: Path) -> None:
    """It is frozen before the body, and thawed after it, with the proof that it is."""
    guest = Guest()
    async with serving(tmp_path, guest), frozen(tmp_path / "agent", 0, 5) as count:
        assert count == 2
        assert guest.commands == ["sync-delimited", "freeze"]
    assert guest.commands == ["sync-delimited", "freeze", "sync-delimited", "thaw", "status"]


async def test_a_guest_is_thawed_after_an_error(tmp_path: Path) -> None:
    """The error comes out as it is."""
    guest = Guest()
    async with serving(tmp_path, guest):
        with pytest.raises(ZeroDivisionError):
            async with frozen(tmp_path / "agent", 0, 5):
                raise ZeroDivisionError
    assert not guest.is_frozen
    assert guest.commands[-2:] == ["thaw", "status"]


async def test_a_guest_is_thawed_under_cancellation(tmp_path: Path) -> None:
    """A daemon that ends does not leave a guest behind that cannot write."""
    guest = Guest()
    async with serving(tmp_path, guest):
        with trio.CancelScope() as scope:
            async with frozen(tmp_path / "agent", 0, 5):
                assert guest.is_frozen
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert not guest.is_frozen


@pytest.mark.parametrize(
    ("failure", "reason"),
    [
        ({"error": {"class": "CommandNotFound", "desc": "Command guest-fsfreeze-freeze has been disabled"}}, "has been disabled"),
        ({"return": "all"}, "returned no number"),
        ({"return": True}, "returned no number"),
        ({}, "no reason was given"),
        (b"nonsense\n", "not JSON"),
        (None, "did not freeze its filesystems within 0 s"),
    ],
)
async def test_a_freeze_that_fails_is_thawed_too(tmp_path: Path, failure: dict[str, Any] | bytes | None, reason: str) -> None:
    """The guest may have frozen after all, so it is thawed; the body does not run."""
    guest = Guest({"freeze": failure})
    async with serving(tmp_path, guest):
        with pytest.raises(ImagefsError, match=reason):
            async with frozen(tmp_path / "agent", 0, 0.3):
                pytest.fail("the body ran")
    assert not guest.is_frozen
    assert guest.commands[-2:] == ["thaw", "status"]


async def test_an_agent_that_is_not_running_is_told(tmp_path: Path) -> None:
    """QEMU takes the connection, but nobody answers: nothing was frozen, and nothing is thawed."""
    guest = Guest({"sync-delimited": None})
    async with serving(tmp_path, guest):
        with pytest.raises(ImagefsError, match="did not answer within 0 s: is its agent running"):
            async with frozen(tmp_path / "agent", 0, 0.2):
                pytest.fail("the body ran")
    assert guest.commands == ["sync-delimited"]


async def test_a_socket_of_another_is_refused(tmp_path: Path) -> None:
    """Nobody freezes another's guest."""
    open_the_way(tmp_path)
    guest = Guest()
    async with serving(tmp_path, guest):
        with pytest.raises(InvalidInput, match="no socket of user 4001"):
            async with frozen(tmp_path / "agent", 4001, 5):
                pytest.fail("the body ran")
    assert guest.commands == []


async def gone(peer: Peer) -> None:
    """Freeze, and end the connection."""
    await peer.synchronise()
    await peer.answer(1)


async def test_a_broken_connection_is_made_again_to_thaw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The guest is thawed over a second connection when the first one breaks."""
    guest = Guest()
    async with listening(tmp_path / "agent", gone, guest.serve), frozen(tmp_path / "agent", 0, 5) as count:
        assert count == 1
    assert guest.commands == ["sync-delimited", "thaw", "status"]
    assert not caplog.records


async def lost(peer: Peer) -> None:
    """Freeze, and answer nothing any more."""
    await gone(peer)
    await trio.sleep_forever()


async def refuse(peer: Peer) -> None:
    """Refuse to thaw."""
    await peer.synchronise()
    await peer.request()
    await peer.send({"error": {"desc": "thaw hook failed"}})


async def still(peer: Peer) -> None:
    """Pretend to thaw."""
    await peer.synchronise()
    await peer.answer(1)
    await peer.answer("frozen")


@pytest.mark.parametrize(
    ("scripts", "reason"),
    [
        ((gone, refuse), "thaw hook failed"),
        ((gone, still), "'frozen' after thawing"),
        ((lost,), "no answer within"),
        ((gone,), "was closed"),
    ],
)
async def test_a_thaw_that_fails_is_logged_with_what_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, scripts: tuple[Script, ...], reason: str
) -> None:
    """The body's work is not lost for it, but an operator must look."""
    ran: list[str] = []
    run: Callable[[str], None] = ran.append
    async with listening(tmp_path / "agent", *scripts), frozen(tmp_path / "agent", 0, 5):
        run("body")
    assert ran == ["body"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "fsfreeze --unfreeze" in record.message
    assert reason in record.message
