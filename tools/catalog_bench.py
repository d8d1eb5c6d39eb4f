"""This module measures a catalog of 100,000 images in S3: mounting it for the first time, cold and warm, its memory, and lists of it."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from tools.fleet_server import PREFIX, image_id
from tools.instruments import BUCKET, DELAY, MIB, RATE, mounted, peak_memory
from tools.link import Link
from tools.node import Failed, Node, ended, run
from tools.rows import Bench, Row

KEYS: Final = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}


def catalog(bench: Bench) -> Iterator[Row]:
    """Mount a fleet three times: on a node that knows nothing, on another one after that, and again on that one."""
    place = bench.place("catalog")
    count = 2000 if bench.quick else 100_000
    with fleet(count) as server, Link(server, delay=DELAY, rate=RATE) as link:
        first = node_on(link, place / "first")
        before = link.requests
        with timed_mount(first) as seconds:
            sent = link.counts().sent
            yield Row(f"first mount of {count} images", "s", seconds, target="< 60 s", met=seconds < 60)
            yield Row("requests of it, for each image", "", (link.requests - before) / count)
            wait_for_bundle(link, sent, count)
            yield Row("peak memory of it", "MiB", (peak := peak_memory(first.daemon()) / MIB), target="< 256 MiB", met=peak < 256)
        second = node_on(link, place / "second")
        before = link.requests
        with timed_mount(second) as seconds:
            yield Row("cold mount after it, on another node", "s", seconds, target="< 60 s", met=seconds < 60)
            yield Row("requests of it", "requests", link.requests - before)
        with timed_mount(second) as seconds:
            yield Row("warm mount", "s", seconds, target="< 5 s", met=seconds < 5)
            yield from lists(second, count)
            peak = peak_memory(second.daemon()) / MIB
            yield Row("peak memory of it, lists included", "MiB", peak, target="< 256 MiB", met=peak < 256)


def lists(node: Node, count: int) -> Iterator[Row]:
    """Time lists of the fleet, and how long they hold up somebody who reads what is cached."""
    images = node.mountpoint / "images"
    reader = Reader(images / image_id(0))
    with reader:
        time.sleep(2)
        idle = reader.longest()
        doings: list[tuple[str, Callable[[], object]]] = [
            ("ls images/, the first time", lambda: run(["ls", str(images)])),
            ("ls names/, the first time", lambda: run(["ls", str(node.mountpoint / "names")])),
            ("image list, the first time", lambda: node.imagefs("image", "list", "-f", "value", "-c", "id")),
            ("ls -l images/", lambda: run(["ls", "-l", str(images)])),
        ]
        for what, do in doings:
            started = time.perf_counter()
            do()
            yield Row(f"{what}, {count} images", "s", time.perf_counter() - started)
            longest = reader.longest() * 1000
            yield Row("longest cached read meanwhile", "ms", longest, "idle", idle * 1000, longest / (idle * 1000), "< 50 ms", longest < 50)


class Reader:
    """Somebody who reads a cached file past the kernel's cache, two hundred times a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ending = threading.Event()
        self._took: list[float] = []
        self._thread = threading.Thread(target=self._read)

    def longest(self) -> float:
        """Return the seconds of the longest read since this was last asked."""
        took, self._took = self._took, []
        return max(took) if took else 0.0

    def __enter__(self) -> "Reader":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _read(self) -> None:
        descriptor = os.open(self._path, os.O_RDONLY)
        try:
            while not self._ending.wait(0.005):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                started = time.perf_counter()
                os.pread(descriptor, 512, 0)
                self._took.append(time.perf_counter() - started)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def fleet(count: int) -> Iterator[str]:
    """Hold the URL of a server with so many images."""
    words = [sys.executable, "-m", "tools.fleet_server", str(count)]
    with ended(subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as server:
        if server.stdout is None or not (port := server.stdout.readline().strip()):
            raise Failed("the server of the fleet did not start; what it said is above")
        yield f"http://127.0.0.1:{int(port)}"


def node_on(link: Link, directory: Path) -> Node:
    """Return a node that knows nothing yet."""
    settings = f'[store]\nurl = "s3://{BUCKET}/{PREFIX.strip("/")}"\n[store.s3]\nendpoint_url = "{link.endpoint_url}"'
    return Node(directory, settings, KEYS)


@contextlib.contextmanager
def timed_mount(node: Node) -> Iterator[float]:
    """Mount a node, and hold the seconds that it took."""
    started = time.perf_counter()
    with mounted(node):
        yield time.perf_counter() - started


def wait_for_bundle(link: Link, sent: int, count: int) -> None:
    """Return when a node has written down what it has read, with a hundred bytes for each image, since `sent` bytes went to the server."""
    end = time.monotonic() + 300
    while link.counts().sent - sent < 100 * count:
        if time.monotonic() > end:
            raise Failed("the first node did not keep its records in the store")
        time.sleep(0.5)
    time.sleep(2)
