"""Lines of JSON: how they are put together, and which are refused."""

import pytest
import trio
import trio.testing

from imagefs.errors import ImagefsError
from imagefs.qmp import channel
from imagefs.qmp.channel import Channel


def pair() -> tuple[Channel, trio.abc.Stream]:
    """Return a channel and the other end of its connection."""
    ours, theirs = trio.testing.memory_stream_pair()
    return Channel(ours, "the socket"), theirs


async def test_lines_are_put_together() -> None:
    """Objects come whole however they are cut on their way, several at once or byte by byte, and empty lines do not count."""
    ours, theirs = pair()
    await theirs.send_all(b'{"a": 1}\r\n\n{"b": "')
    assert await ours.receive() == {"a": 1}
    for byte in b'\xc3\xa4"}\n':
        await theirs.send_all(bytes([byte]))
    assert await ours.receive() == {"b": "ä"}


async def test_lines_are_sent_whole() -> None:
    """An object is one line, whatever is in it."""
    ours, theirs = pair()
    await ours.send({"execute": "a\nb", "ä": "\ud83d".encode("utf-8", "replace").decode()}, prefix=b"\xff")
    assert await theirs.receive_some(1000) == b'\xff{"execute":"a\\nb","\xc3\xa4":"?"}\n'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello\n", "not JSON"),
        (b'{"a": 1\n', "not JSON"),
        (b'{"a": "\xff"}\n', "not JSON"),
        (b"\x00\n", "not JSON"),
        (b"[" * 100_000 + b"\n", "not JSON"),
        (b"[1]\n", "not an object"),
        (b'"text"\n', "not an object"),
        (b"null\n", "not an object"),
    ],
)
async def test_what_is_no_object_is_refused(line: bytes, reason: str) -> None:
    """Anything else than an object is told as what it is, with the socket's name."""
    ours, theirs = pair()
    await theirs.send_all(line)
    with pytest.raises(ImagefsError, match=f"the socket: .*{reason}"):
        await ours.receive()


async def test_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without an end is not gathered for ever; one at the limit is taken."""
    monkeypatch.setattr(channel, "LINE_LIMIT", 1000)
    ours, theirs = pair()
    await theirs.send_all(b" " * 998 + b"{}\n")
    assert await ours.receive() == {}
    await theirs.send_all(b" " * 70_000)
    with pytest.raises(ImagefsError, match="more than 1000 bytes"):
        await ours.receive()


async def test_an_end_is_an_error() -> None:
    """Also in the middle of a line, and for both directions."""
    ours, theirs = pair()
    await theirs.send_all(b'{"a"')
    await theirs.aclose()
    with pytest.raises(ImagefsError, match="was closed"):
        await ours.receive()
    with pytest.raises(ImagefsError, match="was closed"):
        await ours.send({})
    await ours.aclose()
    with pytest.raises(ImagefsError, match="was closed"):
        await ours.receive()


async def test_everything_before_a_delimiter_is_dropped() -> None:
    """What is left of earlier talk is not taken for an answer, and is bounded too."""
    ours, theirs = pair()
    await theirs.send_all(b'{"return": "old"}\nrub\x00bish\xff{"return": 1}\n')
    await ours.skip_to(b"\xff")
    assert await ours.receive() == {"return": 1}


async def test_cancelling_loses_no_line(autojump_clock: trio.testing.MockClock) -> None:
    """What had come before a wait was given up belongs to the next one."""
    ours, theirs = pair()
    await theirs.send_all(b'{"a": ')
    with trio.move_on_after(1) as scope:
        await ours.receive()
    assert scope.cancelled_caught
    await theirs.send_all(b"1}\n")
    assert await ours.receive() == {"a": 1}


async def test_a_peer_that_does_not_read_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    """Sending does not wait for ever, not even where cancellation cannot reach it."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    with trio.CancelScope(shield=True), pytest.raises(ImagefsError, match="does not read"):
        await Channel(ours, "the socket").send({})
    await theirs.aclose()


async def test_a_line_is_sent_whole_under_cancellation(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that reads slowly still gets all of a line when its sender is cancelled meanwhile."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    got = b""

    async def read() -> None:
        nonlocal got
        await trio.sleep(1)
        while not got.endswith(b"\n"):
            got += await theirs.receive_some(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        with trio.move_on_after(0.5):
            await Channel(ours, "the socket").send({"execute": "stop"})
    assert got == b'{"execute":"stop"}\n'
