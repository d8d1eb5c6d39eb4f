"""Connecting to a socket of a caller's: whose it must be, and what else is refused."""

import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from imagefs.errors import ImagefsError, InvalidInput
from imagefs.qmp import unix
from imagefs.qmp.unix import connect
from tests.support.peer import Peer, as_user, listening
from tests.support.user import open_the_way

ALICE, MALLORY = 4001, 4002


async def hello(peer: Peer) -> None:
    await peer.send(b"hello")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that everybody may make sockets in."""
    open_the_way(tmp_path)
    tmp_path.chmod(0o1777)
    return tmp_path


@pytest.mark.parametrize("caller", [ALICE, 0])
async def test_the_callers_own_socket_is_connected_to(place: Path, caller: int) -> None:
    """A user gets to its own socket, and root to everybody's."""
    async with listening(place / "qmp", hello, uid=ALICE):
        stream = await connect(place / "qmp", caller, "QMP socket")
        assert await stream.receive_some(5) == b"hello"
        await stream.aclose()


async def test_a_socket_of_another_user_is_refused(place: Path) -> None:
    """Nobody talks to another's QEMU with the daemon's rights, nor to root's."""
    for uid in (ALICE, 0):
        async with listening(place / f"qmp{uid}", hello, uid=uid) as peers:
            with pytest.raises(InvalidInput, match="no socket of user 4002"):
                await connect(place / f"qmp{uid}", MALLORY, "QMP socket")
            assert peers == []


async def test_a_socket_that_another_user_listens_at_is_refused(place: Path) -> None:
    """Owning the file is not enough: who was given another's socket is not the one who listens there."""
    async with listening(place / "qmp", hello, uid=ALICE):
        os.chown(place / "qmp", MALLORY, MALLORY)
        with pytest.raises(InvalidInput, match="user 4001 listens there, not user 4002"):
            await connect(place / "qmp", MALLORY, "QMP socket")
        with pytest.raises(InvalidInput, match="user 4001 listens there, not user 0"):
            await connect(place / "qmp", 0, "QMP socket")


async def test_symlinks_are_not_followed(place: Path) -> None:
    """A symlink of the caller's own to a socket of its own is refused like any other file."""
    async with listening(place / "qmp", hello, uid=ALICE):
        with as_user(ALICE):
            (place / "link").symlink_to("qmp")
        with pytest.raises(InvalidInput, match="no socket of user 4001"):
            await connect(place / "link", ALICE, "QMP socket")


async def test_what_a_caller_may_not_know_is_not_told(place: Path) -> None:
    """A missing file, a file and another's socket give a user the same answer; root hears the reason."""
    (place / "file").touch()
    os.mkfifo(place / "pipe")
    for name in ("missing", "file", "pipe", "", "nul\0byte", "x" * 300):
        with pytest.raises(InvalidInput, match="there is no socket of user 4001"):
            await connect(place / name, ALICE, "QMP socket")
    with pytest.raises(InvalidInput, match="No such file"):
        await connect(place / "missing", 0, "QMP socket")
    with pytest.raises(InvalidInput, match="not a socket"):
        await connect(place / "file", 0, "QMP socket")


async def test_relative_paths_are_refused() -> None:
    """The daemon is in another directory than its caller."""
    with pytest.raises(InvalidInput, match="not an absolute path"):
        await connect(Path("qmp"), ALICE, "QMP socket")


async def test_a_socket_where_nobody_listens_is_an_error(place: Path) -> None:
    """What a QEMU that was killed leaves behind refuses the connection."""
    with as_user(ALICE), socket.socket(socket.AF_UNIX) as left:
        left.bind(str(place / "qmp"))
    with pytest.raises(ImagefsError, match="refused: is QEMU running"):
        await connect(place / "qmp", ALICE, "QMP socket")


async def test_a_full_queue_is_waited_for_but_not_for_ever(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that listens and never accepts holds the request for the time allowed."""
    monkeypatch.setattr(unix, "CONNECT_SECONDS", 0.3)
    with as_user(ALICE):
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(place / "qmp"))
        listener.listen(0)
    with listener, socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(place / "qmp"))
        with pytest.raises(ImagefsError, match="nobody took the connection"):
            await connect(place / "qmp", ALICE, "QMP socket")


async def test_no_descriptor_is_left_open(place: Path) -> None:
    """Neither refused nor accepted connections leave anything behind."""
    async with listening(place / "qmp", hello, hello, uid=ALICE):
        await (await connect(place / "qmp", ALICE, "QMP socket")).aclose()
        await trio.testing.wait_all_tasks_blocked()
        before = len(os.listdir("/proc/self/fd"))
        await (await connect(place / "qmp", ALICE, "QMP socket")).aclose()
        for caller in (ALICE, MALLORY):
            with pytest.raises(InvalidInput):
                await connect(place / ("missing" if caller == ALICE else "qmp"), caller, "QMP socket")
        await trio.testing.wait_all_tasks_blocked()
        assert len(os.listdir("/proc/self/fd")) == before
