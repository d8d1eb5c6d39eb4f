"""Tests of many small GETs at once, against a server on loopback that answers as a test wants it."""

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import pytest

from imagefs.store import bulk
from imagefs.store.bulk import Answer, Server, get_all

Reply = Callable[[str], bytes]


def whole(body: bytes, status: int = 200, more: str = "", etag: str = '"e"') -> bytes:
    """Return a plain answer."""
    return f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nETag: {etag}\r\n{more}\r\n".encode() + body


class Http:
    """A server that answers each request with what `reply` returns for its path, and closes after an empty answer."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.connections = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._open:
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        got = b""
        try:
            while True:
                while b"\r\n\r\n" not in got:
                    piece = connection.recv(65536)
                    if not piece:
                        return
                    got += piece
                head, _, got = got.partition(b"\r\n\r\n")
                answer = self._reply(head.split(b" ")[1].decode())
                if not answer:
                    connection.shutdown(socket.SHUT_RDWR)
                    return
                for start in range(0, len(answer), 1000):  # heads and bodies arrive in pieces
                    connection.sendall(answer[start : start + 1000])
        except OSError:
            return


def ask(server: Http, keys: list[str], connections: int = 8) -> dict[str, Answer]:
    """GET every key; each must be answered exactly once."""
    answers: list[Answer] = []
    get_all(Server("127.0.0.1", server.port, None), keys, lambda key: (f"/{key}", {"host": "x"}), answers.append, connections)
    assert sorted(answer.key for answer in answers) == sorted(keys)
    return {answer.key: answer for answer in answers}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a server that says nothing be given up at once."""
    monkeypatch.setattr(bulk, "TIMEOUT", 0.3)


def test_every_key_gets_its_own_answer() -> None:
    """Hundreds of bodies of all sizes over a few connections, none mixed up."""
    with Http(lambda path: whole(path.encode() * (1 + int(path[1:]) % 700), etag=f'"{path[1:]}"')) as server:
        found = ask(server, [str(number) for number in range(800)])
        assert server.connections <= 8
    for key, answer in found.items():
        assert (answer.status, answer.etag) == (200, key)
        assert answer.body == f"/{key}".encode() * (1 + int(key) % 700)


def test_statuses_and_versions_are_passed_on() -> None:
    """What the server says of a key is told; an ETag without quotes is one too, a weak one is none."""
    replies = {"/missing": whole(b"", 404), "/plain": whole(b"x", etag="abc"), "/weak": whole(b"x", etag='W/"abc"'), "/busy": whole(b"", 503)}
    with Http(replies.__getitem__) as server:
        found = ask(server, ["missing", "plain", "weak", "busy"])
    assert {key: (answer.status, answer.etag) for key, answer in found.items()} == {
        "missing": (404, "e"),
        "plain": (200, "abc"),
        "weak": (200, ""),
        "busy": (503, "e"),
    }


@pytest.mark.parametrize(
    "strange",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 X\r\nETag: e\r\n\r\nno length",
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 X\r\nContent-Length: 99999999\r\n\r\n",
        b"HTTP/1.1 200 X\r\n" + b"x: y\r\n" * 20_000 + b"\r\n",
        b"HTTP/1.1 200 X\r\nContent-Length: 10\r\n",
    ],
)
def test_an_answer_that_is_not_plain_is_a_failure(strange: bytes, quick: None) -> None:
    """Nothing, garbage, chunks, more than is wanted, or half a head: that key fails, and the others have their answers."""
    with Http(lambda path: strange if path == "/7" else whole(b"fine")) as server:
        found = ask(server, [str(number) for number in range(20)], 2)
    assert {key for key, answer in found.items() if answer.status == 0} == {"7"}


def test_an_answer_that_breaks_off_is_a_failure(quick: None) -> None:
    """A body that is shorter than it should be never counts, whether the connection ends or stays silent."""
    with Http(lambda path: whole(b"x" * 5000)[:3000] if path == "/3" else whole(b"fine")) as server:
        found = ask(server, [str(number) for number in range(10)], 2)
    assert found["3"].status == 0
    assert sum(answer.status == 200 for answer in found.values()) == 9


def test_what_comes_unasked_spoils_nothing(quick: None) -> None:
    """Bytes behind an answer end the connection: they are never taken for the next answer."""
    with Http(lambda path: whole(b"fine") + whole(b"false")) as server:
        found = ask(server, [str(number) for number in range(10)], 1)
    assert {answer.body for answer in found.values() if answer.status == 200} <= {b"fine"}


def test_connections_that_the_server_ends_are_made_anew() -> None:
    """A server that closes after each answer is asked over new connections."""
    with Http(lambda path: whole(b"fine", more="Connection: close\r\n")) as server:
        found = ask(server, [str(number) for number in range(30)], 4)
        assert server.connections >= 30
    assert {answer.status for answer in found.values()} == {200}


def test_a_server_that_is_not_there_fails_everything() -> None:
    """Thousands of keys are given up after a few attempts to connect."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    answers: list[Answer] = []
    get_all(Server("127.0.0.1", port, None), [str(number) for number in range(5000)], lambda key: (f"/{key}", {}), answers.append)
    assert len(answers) == 5000
    assert {answer.status for answer in answers} == {0}


def test_a_server_that_only_refuses_is_asked_no_more() -> None:
    """After a run of refusals what is left fails without being asked for: there is something to be explained."""
    asked: list[str] = []

    def refuse(path: str) -> bytes:
        asked.append(path)
        return whole(b"", 403)

    with Http(refuse) as server:
        found = ask(server, [str(number) for number in range(2000)])
    assert {answer.status for answer in found.values()} == {403, 0}
    assert len(asked) < 200


def test_what_the_caller_raises_comes_out() -> None:
    """An error of who takes the answers ends the batch at once, also while other connections wait."""
    released = threading.Event()

    def reply(path: str) -> bytes:
        if path != "/0":
            released.wait(20)
        return whole(b"x")

    def take(answer: Answer) -> None:
        raise KeyError(answer.key)

    with Http(reply) as server:
        with pytest.raises(KeyError, match="0"):
            get_all(Server("127.0.0.1", server.port, None), ["0", "1", "2"], lambda key: (f"/{key}", {}), take, 3)
        released.set()
