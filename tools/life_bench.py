"""This module measures the life of instances: every kind of disk made and removed, snapshots under a writing guest, and many instances."""

import json
import mmap
import os
import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tools.instruments import mounted, store_noise
from tools.node import Failed, Node
from tools.rows import Bench, Row

MIB: Final = 1024 * 1024
BLOCK: Final = 4096
FLAVORS: Final = """
[flavors.plain]
vcpus = 1
ram = 64
disk = 1024
[flavors.full]
vcpus = 1
ram = 64
disk = 1024
ephemeral = 100
swap = 1024
"""
KINDS: Final[dict[str, dict[str, str]]] = {
    "vda of 1 TiB": {"flavor": "plain"},
    "vda of 1 TiB, encrypted": {"flavor": "plain", "encrypted": "true"},
    "a direct disk of 1 TiB": {"flavor": "plain", "disk_format": "qcow2"},
    "vda, vdb of 100 GiB and swap": {"flavor": "full"},
    "the same with ext4 on vdb": {"flavor": "full", "ephemeral_format": "ext4"},
}


def life(bench: Bench) -> Iterator[Row]:
    """Measure all of it on one mount over a directory."""
    place = bench.place("life")
    (place / "store").mkdir()
    node = Node(place / "node", f'[store]\nurl = "{(place / "store").as_uri()}"\n{FLAVORS}')
    with mounted(node):
        image_id = store_noise(node, "noise", place / "image.raw", 64 * MIB)
        yield from kinds(node, image_id, 5 if bench.quick else 25)
        yield from snapshots(node, image_id, 3 if bench.quick else 10)
        yield from direct(node, image_id, place, 3 if bench.quick else 7)
        many = 100 if bench.quick else 1000
        yield from crowd(node, image_id, many)
    started = time.perf_counter()
    with mounted(node):
        seconds = time.perf_counter() - started
        yield Row(f"mount with {many} instances", "s", seconds, target="< 3 s", met=seconds < 3)


def make(node: Node, name: str, image_id: str, choices: dict[str, str]) -> Path:
    """Make an instance by plain file operations."""
    path = node.mountpoint / "instances" / name
    path.mkdir()
    for key, value in choices.items():
        os.setxattr(path, f"user.{key}", value.encode())
    os.setxattr(path, "user.image", image_id.encode())
    return path


def kinds(node: Node, image_id: str, rounds: int) -> Iterator[Row]:
    """Time making and removing instances with each kind of disk, in turn."""
    made: dict[str, list[float]] = {kind: [] for kind in KINDS}
    removed: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for turn in range(rounds):
        for number, (kind, choices) in enumerate(KINDS.items()):
            started = time.perf_counter()
            path = make(node, f"k{number}-{turn}", image_id, choices)
            between = time.perf_counter()
            path.rmdir()
            made[kind].append(between - started)
            removed[kind].append(time.perf_counter() - between)
    first = next(iter(KINDS))
    for kind in KINDS:
        own, gone, plain = (statistics.median(taken) * 1000 for taken in (made[kind], removed[kind], made[first]))
        yield Row(f"making {kind}", "ms", own, f"making {first}", plain, own / plain, "< 20 ms", own < 20)
        yield Row(f"removing {kind}", "ms", gone, target="< 20 ms", met=gone < 20)


def snapshots(node: Node, image_id: str, rounds: int) -> Iterator[Row]:
    """Take snapshots of a disk that is written to all the time; time the requests, the guest's longest write, and the storing."""
    path = make(node, "snap", image_id, {"flavor": "plain"})
    with Writer(path / "vda") as writer:
        time.sleep(2)
        idle = writer.longest()
        requests, stored = [], []
        for number in range(rounds):
            started = time.perf_counter()
            os.setxattr(path, "user.imagefs.snapshot", json.dumps({"name": f"shot{number}"}).encode())
            requests.append(time.perf_counter() - started)
            wait_until_stored(path)
            stored.append(time.perf_counter() - started)
        busy = writer.longest()
    taken = statistics.median(requests) * 1000
    yield Row("a snapshot's request, disk of 1 TiB, guest writing", "ms", taken, target="< 100 ms", met=taken < 100)
    yield Row(
        "longest guest write while snapshots are taken, stored and merged",
        "ms",
        busy * 1000,
        "idle",
        idle * 1000,
        busy / idle,
        "< 100 ms",
        busy < 0.1,
    )
    yield Row("a snapshot stored, 64 MiB of data in 1 TiB", "s", statistics.median(stored))


def wait_until_stored(path: Path) -> None:
    """Return when the snapshot is active. Raises Failed."""
    while (state := json.loads(os.getxattr(path, "user.imagefs.snapshot")))["status"] != "active":
        if state["status"] == "killed":
            raise Failed(f"a snapshot failed: {state['error']}")
        time.sleep(0.02)


class Writer:
    """A thread that writes blocks of a disk past the host's cache, as a guest with cache=none does, 200 a second."""

    def __init__(self, disk: Path) -> None:
        self._disk = disk
        self._ending = threading.Event()
        self._longest = 0.0
        self._thread = threading.Thread(target=self._write)

    def longest(self) -> float:
        """Return the seconds of the longest write since this was last asked."""
        longest, self._longest = self._longest, 0.0
        return longest

    def __enter__(self) -> "Writer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _write(self) -> None:
        page = mmap.mmap(-1, BLOCK)
        page[:] = random.randbytes(BLOCK)
        descriptor = os.open(self._disk, os.O_RDWR | os.O_DIRECT)
        try:
            while not self._ending.wait(0.005):
                started = time.perf_counter()
                os.pwrite(descriptor, page, random.randrange(64 * MIB // BLOCK) * BLOCK)
                self._longest = max(self._longest, time.perf_counter() - started)
        finally:
            os.close(descriptor)


def direct(node: Node, image_id: str, place: Path, rounds: int) -> Iterator[Row]:
    """Compare QEMU's own writes and reads of a direct disk with those of the same qcow2 over the same bytes outside of imagefs."""
    own = (make(node, "direct", image_id, {"flavor": "plain", "disk_format": "qcow2"}) / "vda").readlink()
    peer = place / "peer.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", place / "image.raw", peer, str(own_size(own))], check=True)
    for write in (True, False):
        rates: dict[Path, list[float]] = {own: [], peer: []}
        for _ in range(rounds):
            for disk, found in rates.items():
                found.append(qemu_bench(disk, write=write))
        ratio = statistics.median(a / b for a, b in zip(rates[own], rates[peer], strict=True))
        what = f"4 KiB {'writes' if write else 'reads'} of a direct disk, depth 16"
        yield Row(
            what, "IOPS", statistics.median(rates[own]), "the same qcow2, local", statistics.median(rates[peer]), ratio, ">= 0.95", ratio >= 0.95
        )


def own_size(disk: Path) -> int:
    """Return the bytes of the disk in a qcow2 file."""
    words = ["qemu-img", "info", "-f", "qcow2", "--output=json", str(disk)]
    return int(json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["virtual-size"])


def qemu_bench(disk: Path, *, write: bool) -> float:
    """Return how many requests of 4 KiB a second QEMU's block layer makes of a qcow2 file, past the host's cache."""
    count = 10_000
    words = ["qemu-img", "bench", "-f", "qcow2", "-t", "none", "-c", str(count), "-d", "16", "-s", "4096", *(["-w"] if write else []), str(disk)]
    started = time.perf_counter()
    subprocess.run(words, capture_output=True, check=True)
    return count / (time.perf_counter() - started)


def crowd(node: Node, image_id: str, count: int) -> Iterator[Row]:
    """Make many instances; compare the second half with the first, and the memory that they take."""
    before = resident(node)
    halves = []
    for start in (0, count // 2):
        started = time.perf_counter()
        for number in range(start, start + count // 2):
            make(node, f"n{number}", image_id, {"flavor": "plain"})
        halves.append((time.perf_counter() - started) / (count // 2) * 1000)
    yield Row(f"making one of {count} instances, the second half", "ms", halves[1], "the first half", halves[0], halves[1] / halves[0], "ratio ~1")
    yield Row(f"memory of {count} instances", "MiB", (resident(node) - before) / MIB)


def resident(node: Node) -> int:
    """Return the bytes of memory that the daemon has."""
    text = Path(f"/proc/{node.daemon()}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmRSS")).split()[1]) * 1024
