"""The link simulator as the measuring instrument that it is: what it counts, and each thing that it can do to an answer."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tools.faults import Faults
from tools.link import Link

HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


class Origin:
    """A server that answers each request for /NUMBER/data with as many bytes."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self.threads = [threading.Thread(target=self.accept, daemon=True)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.threads.append(threading.Thread(target=self.serve, args=(client,), daemon=True))
            self.threads[-1].start()

    def serve(self, client: socket.socket) -> None:
        with client:
            held = b""
            while True:
                try:
                    body = client.recv(65536)
                except OSError:
                    return
                if not body:
                    return
                held += body
                while b"\r\n\r\n" in held:
                    head, _, held = held.partition(b"\r\n\r\n")
                    self.requests.append(head)
                    size = int(head.split(b" ")[1].split(b"/")[1])
                    try:
                        client.sendall(HEAD % size + bytes(size))
                    except OSError:
                        return

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)


@pytest.fixture
def origin() -> Iterator[Origin]:
    """A server."""
    server = Origin()
    yield server
    server.close()


@pytest.fixture
def link(origin: Origin) -> Iterator[Link]:
    """A link to it that takes no time, and is as fast as it can be."""
    with Link(origin.url, delay=0.0, rate=1e10) as running:
        yield running


@pytest.fixture
def client(link: Link) -> Iterator[http.client.HTTPConnection]:
    """A connection over the link."""
    connection = http.client.HTTPConnection("127.0.0.1", int(link.endpoint_url.rpartition(":")[2]), timeout=30)
    yield connection
    connection.close()


def get(client: http.client.HTTPConnection, size: int, **headers: str) -> tuple[int, int]:
    """Return an answer's status and the length of its body."""
    client.request("GET", f"/{size}/data", headers=headers)
    answer = client.getresponse()
    return answer.status, len(answer.read())


def test_bytes_and_requests_are_counted_exactly(link: Link, client: http.client.HTTPConnection) -> None:
    """Heads and bodies, on one connection; only GETs of data are requests for data."""
    assert get(client, 1_000_000) == (200, 1_000_000)
    client.request("GET", "/10/list")
    assert len(client.getresponse().read()) == 10
    counts = link.counts()
    assert counts.received == 1_000_010 + len(HEAD % 1_000_000) + len(HEAD % 10)
    assert (counts.requests, counts.data_requests, counts.connections) == (2, 1, 1)


def test_each_request_waits_for_the_delay(origin: Origin) -> None:
    """Three requests one after another take three delays at least."""
    with Link(origin.url, delay=0.05, rate=1e10) as link:
        client = http.client.HTTPConnection("127.0.0.1", int(link.endpoint_url.rpartition(":")[2]), timeout=30)
        started = time.monotonic()
        for _ in range(3):
            get(client, 10)
        assert time.monotonic() - started >= 0.15
        client.close()


def test_all_connections_share_the_rate(origin: Origin) -> None:
    """Two answers of 1 MB at once over a link of 4 MB/s take half a second at least, but for a burst."""
    with Link(origin.url, delay=0.0, rate=4e6) as link:
        clients = [http.client.HTTPConnection("127.0.0.1", int(link.endpoint_url.rpartition(":")[2]), timeout=30) for _ in range(2)]
        started = time.monotonic()
        for client in clients:
            client.request("GET", "/1000000/data")
        assert [len(client.getresponse().read()) for client in clients] == [1_000_000] * 2
        assert time.monotonic() - started >= 0.4
        for client in clients:
            client.close()


def test_slow_down_is_answered_without_the_server(link: Link, origin: Origin, client: http.client.HTTPConnection) -> None:
    """503 for the share, on a connection that lives on; the server never sees the request."""
    link.faults(Faults(slow_down=0.5))
    assert [get(client, 10)[0] for _ in range(4)] == [503, 200, 503, 200]
    assert len(origin.requests) == 2
    assert link.counts().faults == 2
    assert link.counts().connections == 1


def test_a_stalled_answer_comes_late_and_whole(link: Link, client: http.client.HTTPConnection) -> None:
    """Not before its seconds have passed."""
    link.faults(Faults(stall=1.0, stall_seconds=0.3))
    started = time.monotonic()
    assert get(client, 100_000) == (200, 100_000)
    assert time.monotonic() - started >= 0.3


def test_a_truncated_answer_ends_in_order(link: Link, client: http.client.HTTPConnection) -> None:
    """After exactly as many bytes as were said, heads included."""
    link.faults(Faults(truncate=1.0, after=5000))
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(client, 100_000)
    assert len(caught.value.partial) == 5000 - len(HEAD % 100_000)


def test_a_reset_answer_breaks_the_connection(link: Link, client: http.client.HTTPConnection) -> None:
    """The client is told of an error, not of an end."""
    link.faults(Faults(reset=1.0, after=5000))
    with pytest.raises(ConnectionResetError):
        get(client, 100_000)


def test_a_dripping_answer_takes_its_time(link: Link, client: http.client.HTTPConnection) -> None:
    """10,000 bytes at 20,000 bytes/s come in drops of 2,000, the first of them at once."""
    link.faults(Faults(drip=1.0, drip_rate=20_000))
    started = time.monotonic()
    assert get(client, 10_000) == (200, 10_000)
    assert time.monotonic() - started >= 0.4


def test_a_link_that_is_down_refuses_and_breaks(link: Link, client: http.client.HTTPConnection) -> None:
    """Open connections break, new ones are refused, and then it works again at the same address."""
    assert get(client, 10) == (200, 10)
    link.down(1.0)
    with pytest.raises(OSError, match=r"refused|reset|closed"):
        get(client, 10)
    client.close()
    with pytest.raises(ConnectionRefusedError):
        get(client, 10)
    client.close()
    link.down(0.0)
    end = time.monotonic() + 30
    while True:
        try:
            assert get(client, 10) == (200, 10)
        except OSError:
            client.close()
            assert time.monotonic() < end, "the link did not come up again"
            time.sleep(0.01)
        else:
            break


def test_nobody_takes_the_port_of_a_link_that_is_down(origin: Origin, link: Link, client: http.client.HTTPConnection) -> None:
    """Another link that starts meanwhile goes elsewhere."""
    assert get(client, 10) == (200, 10)
    link.down(60.0)
    with Link(origin.url, delay=0.0, rate=1e9) as other:
        assert other.endpoint_url != link.endpoint_url
        link.down(0.0)
        assert other.counts().requests == 0


def test_ranges_are_told_with_whether_they_came_whole(link: Link, client: http.client.HTTPConnection) -> None:
    """Each once; one that was cut off is not whole."""
    get(client, 100, Range="bytes=0-99")
    link.faults(Faults(truncate=1.0, after=60))
    with pytest.raises(http.client.IncompleteRead):
        get(client, 100, Range="bytes=100-199")
    assert link.ranges() == [("/100/data", 0, 100, True), ("/100/data", 100, 200, False)]
    assert link.ranges() == []


def test_a_client_that_goes_away_takes_nobody_with_it(link: Link, client: http.client.HTTPConnection) -> None:
    """In the midst of an answer, before it, and with half a request."""
    port = int(link.endpoint_url.rpartition(":")[2])
    for body, taken in ((b"GET /50000000/data HTTP/1.1\r\n\r\n", 100), (b"GET /10/data HTTP/1.1\r\n\r\n", 0), (b"GET /1", 0)):
        with socket.create_connection(("127.0.0.1", port)) as sloppy:
            sloppy.sendall(body)
            if taken:
                sloppy.recv(taken)
    assert get(client, 100_000) == (200, 100_000)


def test_a_server_that_is_not_there_ends_connections(unused_port: int) -> None:
    """The client sees its connection end, and the link lives on."""
    with Link(f"http://127.0.0.1:{unused_port}", delay=0.0, rate=1e9) as link:
        client = http.client.HTTPConnection("127.0.0.1", int(link.endpoint_url.rpartition(":")[2]), timeout=30)
        with pytest.raises((http.client.RemoteDisconnected, ConnectionError)):
            get(client, 10)
        client.close()
        assert link.counts().connections >= 1


@pytest.fixture
def unused_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
