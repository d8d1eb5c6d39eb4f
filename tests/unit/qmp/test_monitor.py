"""QMP sessions: greeting, commands, events, and answers that are none."""

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from imagefs.errors import ImagefsError
from imagefs.qmp.channel import Channel
from imagefs.qmp.monitor import SKIPPED_LIMIT, Monitor, reason_of
from tests.support.peer import GREETING, Peer, Script, listening

EVENT = {"event": "RESUME", "timestamp": {}}


async def session(tmp_path: Path, script: Script) -> Any:
    """Return what the command `query-status` returns in a session with a peer that does as the script says after the greeting."""

    async def whole(peer: Peer) -> None:
        await peer.greet()
        await script(peer)

    async with listening(tmp_path / "qmp", whole):
        monitor = await Monitor.connect(tmp_path / "qmp", 0)
        try:
            return await monitor.execute("query-status", {"x": 1})
        finally:
            await monitor.aclose()


async def test_a_command_returns_its_value(tmp_path: Path) -> None:
    """Events and answers to commands that were given up are skipped on the way."""

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert (request["execute"], request["arguments"]) == ("query-status", {"x": 1})
        await peer.send(EVENT, {"return": "late", "id": request["id"] - 1}, EVENT, {"return": {"running": True}, "id": request["id"]})

    assert await session(tmp_path, script) == {"running": True}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"error": {"class": "GenericError", "desc": "Device 'x'\nnot found"}, "id": 2}, "query-status failed: Device 'x' not found$"),
        ({"error": {"class": "CommandNotFound"}, "id": 2}, "no reason was given"),
        ({"error": "text", "id": 2}, "no reason was given"),
        ({"error": {"class": "GenericError", "desc": "JSON parse error"}}, "query-status failed: JSON parse error"),
        ({"return": {}}, "without a number"),
        ({}, "came what is none"),
        ({"QMP": {}}, "came what is none"),
        (b"Segmentation fault\n", "not JSON"),
        (b"", "was closed"),
    ],
)
async def test_answers_that_are_none_are_errors(tmp_path: Path, answer: dict[str, Any] | bytes, reason: str) -> None:
    """QEMU's own reason is told, and what is malformed as such."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(answer)

    with pytest.raises(ImagefsError, match=reason):
        await session(tmp_path, script)


async def test_a_flood_of_events_ends(tmp_path: Path) -> None:
    """A peer cannot keep a command waiting by talking."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b'{"event": "X"}\n' * (SKIPPED_LIMIT + 1))

    with pytest.raises(ImagefsError, match="came what is none"):
        await session(tmp_path, script)


@pytest.mark.parametrize("greeting", [{"return": {}}, {"QMP": 5}, {}])
async def test_a_greeting_must_be_qmps(tmp_path: Path, greeting: dict[str, Any]) -> None:
    """Another protocol's socket is told from QMP's at once."""

    async def script(peer: Peer) -> None:
        await peer.send(greeting)
        await trio.sleep_forever()

    async with listening(tmp_path / "qmp", script):
        with pytest.raises(ImagefsError, match="greeting is not QMP's"):
            await Monitor.connect(tmp_path / "qmp", 0)


async def test_silence_is_not_waited_for_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """Neither for a greeting, which a QEMU with another client does not send, nor for an answer."""
    ours, theirs = trio.testing.memory_stream_pair()
    with pytest.raises(ImagefsError, match=r"no greeting within 30 s: .*one client at a time"):
        await Monitor(Channel(ours, "the socket")).greet()
    await theirs.send_all(b'{"QMP": {}}\n{"return": {}, "id": 1}\n')
    monitor = Monitor(Channel(ours, "the socket"))
    await monitor.greet()
    with pytest.raises(ImagefsError, match="stop was not answered within 30 s"):
        await monitor.execute("stop")


async def test_the_session_goes_on_after_a_cancelled_command(autojump_clock: trio.testing.MockClock) -> None:
    """The answer to a command that was given up is not taken for that to the next."""
    ours, theirs = trio.testing.memory_stream_pair()
    monitor = Monitor(Channel(ours, "the socket"))
    with trio.move_on_after(1):
        await monitor.execute("first")
    await theirs.send_all(b'{"return": "first", "id": 1}\n{"return": "second", "id": 2}\n')
    assert await monitor.execute("second") == "second"


def test_reasons_fit_a_message() -> None:
    """A peer's words come in one line, cut."""
    assert reason_of({"desc": "a\n\tb" + "c" * 1000}) == "a b" + "c" * 297
    assert reason_of(None) == reason_of({"desc": 5}) == reason_of({"desc": ""}) == "no reason was given"


def test_the_greeting_of_the_stand_in_is_one() -> None:
    """The stand-in for QEMU begins as QEMU does."""
    assert set(GREETING["QMP"]) == {"version", "capabilities"}
