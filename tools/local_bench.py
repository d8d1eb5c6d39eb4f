"""This module measures what is on the node already: reads and writes of vda and of images against the native file and against other ways to FUSE.

Peers: the file itself; the least that pyfuse3 can do (`bare_loop`), inline pread and pwrite; and QEMU's own FUSE server in C, which shows a
qcow2 overlay. Each has a copy of the same bytes, all written; each has its turn in each round, and ratios are medians over the rounds.
"""

import contextlib
import dataclasses
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from tools.instruments import bare_loop, fio, mounted, new_instance, s3_node, store_noise
from tools.node import Failed, Node, run
from tools.peers import storage_daemon
from tools.peers.peer import Unavailable, mounted_child, program
from tools.rows import Bench, Row

MIB: Final = 1024 * 1024
NATIVE: Final = "native file"
BARE: Final = "bare pyfuse3 loop"
QEMU: Final = "qemu-storage-daemon's FUSE export"


@dataclasses.dataclass(frozen=True, slots=True)
class Way:
    """One way to the same bytes: the path to read and write, and the file of the host that they lie in."""

    path: Path
    backing: Path


Ways = Mapping[str, Way]
"""By name; imagefs's own is "imagefs"."""


def local(bench: Bench) -> Iterator[Row]:
    """Measure all of it: first what instances have written themselves, then what the cache holds of a store."""
    place = bench.place("local")
    size = (128 if bench.quick else 1024) * MIB
    with contextlib.ExitStack() as cleanup:
        node = cleanup.enter_context(mounted(Node(place / "node", f'[store]\nurl = "{directory(place / "store").as_uri()}"')))
        image_id = store_noise(node, "noise", place / "image.raw", size)
        ways = four_ways(node, image_id, place, size, cleanup)
        yield from cached_reads(ways, bench)
        yield from uncached(ways, bench, "blocks of vda")
        yield from writes(ways, bench)
        yield from streams(node.mountpoint / "raw" / image_id, place / "image.raw", bench)
    yield from units(place / "units", bench, size)


def directory(path: Path) -> Path:
    """Make a directory and return its path."""
    path.mkdir(parents=True)
    return path


def four_ways(node: Node, image_id: str, place: Path, size: int, cleanup: ExitStack) -> dict[str, Way]:
    """Return the ways to the bytes of one image after every block was written."""
    image = place / "image.raw"
    native, bare = place / "native.raw", place / "bare.raw"
    for path in (native, bare):
        shutil.copyfile(image, path)
    vda = new_instance(node, image_id)
    (backing,) = (node.directory / "state").glob("**/vda.data")
    ways = {
        "imagefs": Way(vda, backing),
        NATIVE: Way(native, native),
        BARE: Way(cleanup.enter_context(bare_loop(bare, place / "bare")), bare),
    }
    with contextlib.suppress(Unavailable):  # the rows on it are then left out
        ways[QEMU] = exported_overlay(image, directory(place / "export"), cleanup)
    for way in (ways["imagefs"], ways.get(QEMU)):
        if way is not None:
            rewrite(way.path, size)
    return ways


def exported_overlay(base: Path, place: Path, cleanup: ExitStack) -> Way:
    """Return a qcow2 overlay over a raw file, as qemu-storage-daemon shows it by FUSE. Raises Unavailable, Failed."""
    overlay, shown = place / "overlay.qcow2", place / "disk"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(overlay)])
    shown.touch()
    words = [program(storage_daemon.NAME), "--blockdev", f"driver=file,node-name=file,filename={overlay}"]
    words += ["--blockdev", "driver=qcow2,node-name=disk,file=file"]
    words += ["--export", f"type=fuse,id=export,node-name=disk,mountpoint={shown},writable=on,growable=off"]
    mounted_child(cleanup, words, shown, place / "log")
    return Way(shown, overlay)


def rewrite(path: Path, size: int) -> None:
    """Write every block of a disk, and make it durable."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        for offset in range(0, size, MIB):
            os.pwrite(descriptor, random.randbytes(MIB), offset)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget(path: Path) -> None:
    """Take a file out of the host's page cache, or what the kernel keeps of a file of a mount."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def remember(path: Path) -> None:
    """Bring a file into the host's page cache."""
    with path.open("rb", buffering=0) as file:
        room = bytearray(MIB)
        while file.readinto(room):
            pass


Measured = Mapping[str, list[float]]


def in_turn(ways: Ways, rounds: int, prepare: Callable[[Way], None], measure: Callable[[Way], float]) -> Measured:
    """Return what each way gave in each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            prepare(ways[name])
            found[name].append(measure(ways[name]))
    return found


def ratio(found: Measured, peer: str) -> float:
    """Return the median over the rounds of what imagefs gave to what the peer gave."""
    return statistics.median(own / other for own, other in zip(found["imagefs"], found[peer], strict=True))


def row(what: str, unit: str, found: Measured, peer: str, number: int | None = None, also: str = "") -> Row:
    """Return the line of a table on one peer."""
    own, other = statistics.median(found["imagefs"]), statistics.median(found[peer])
    return Row(what, unit, own, peer, other, ratio(found, peer), number=number, also=also)


def load(kind: str, depth: int, seconds: float, *options: str) -> Callable[[Way], float]:
    """Return what measures random direct I/O of 4 KiB: its answer is operations per second."""
    words = (f"--rw={kind}", "--ioengine=libaio", f"--iodepth={depth}", "--time_based", f"--runtime={int(seconds * 1000)}ms", "--randrepeat=0")
    side = "write" if "write" in kind else "read"
    return lambda way: fio(way.path, *words, *options)[side]["iops"]


def pace(bench: Bench) -> tuple[int, float]:
    """Return how many rounds there are, and the seconds of one measurement."""
    return (3, 0.5) if bench.quick else (max(5, bench.rounds), 2.0)


def cached_reads(ways: Ways, bench: Bench) -> Iterator[Row]:
    """Random reads of what is in the host's page cache."""
    rounds, seconds = pace(bench)
    for depth in (1, 16):
        found = in_turn(ways, rounds, lambda way: remember(way.backing), load("randread", depth, seconds, "--readonly"))
        what = f"4 KiB random reads of vda, in memory, depth {depth}"
        yield row(what, "IOPS", found, BARE, 12 if depth == 1 else None)
        if QEMU in ways:
            yield row(what, "IOPS", found, QEMU, *((13, "") if depth == 1 else (None, "13.16")))


def uncached(ways: Ways, bench: Bench, of_what: str) -> Iterator[Row]:
    """Random reads of what is on the disk only."""
    rounds, seconds = pace(bench)
    for depth in (1, 16):
        found = in_turn(ways, rounds, lambda way: forget(way.backing), load("randread", depth, seconds, "--readonly"))
        what = f"4 KiB random reads of {of_what}, not in memory, depth {depth}"
        for peer in ways:
            if peer != "imagefs":
                yield row(what, "IOPS", found, peer, also="uncached" if depth == 16 and peer == NATIVE else "")


def writes(ways: Ways, bench: Bench) -> Iterator[Row]:
    """Random writes to blocks that are present, without and with a sync after each."""
    rounds, seconds = pace(bench)
    for depth in (1, 16):
        found = in_turn(ways, rounds, lambda way: forget(way.backing), load("randwrite", depth, seconds))
        for peer in ways:
            if peer != "imagefs":
                number = 14 if depth == 1 and peer == NATIVE else None
                yield row(f"4 KiB random writes of vda, depth {depth}", "IOPS", found, peer, number)
    found = in_turn(ways, rounds, lambda way: forget(way.backing), load("randwrite", 1, seconds, "--fdatasync=1"))
    for peer in ways:
        if peer != "imagefs":
            yield row("4 KiB writes of vda, each with a sync", "IOPS", found, peer, 16 if peer == NATIVE else None)


def streams(shown: Path, native: Path, bench: Bench) -> Iterator[Row]:
    """Sequential reads of an image: from the host's page cache, and again while it is open, from what the kernel keeps of the mount."""
    rounds, _ = pace(bench)
    first: dict[str, list[float]] = {"imagefs": [], NATIVE: []}
    second: dict[str, list[float]] = {"imagefs": [], NATIVE: []}
    remember(native)
    remember(shown)  # once, since what is read in place is proved when it is touched first
    for _ in range(rounds):
        for name, path in (("imagefs", shown), (NATIVE, native)):
            if name == "imagefs":
                forget(path)
            with path.open("rb", buffering=0) as file:
                first[name].append(stream(file.fileno()))
                second[name].append(stream(file.fileno()))
    yield row("sequential read of an image, in memory", "MB/s", first, NATIVE, 10)
    yield row("second read of an image that is open", "MB/s", second, NATIVE, 11)


def stream(descriptor: int) -> float:
    """Read an open file from its start to its end; return MB/s."""
    room, done, started = bytearray(MIB), 0, time.perf_counter()
    while got := os.preadv(descriptor, [room], done):
        done += got
    if not done:
        raise Failed("a file that should be streamed is empty")
    return done / (time.perf_counter() - started) / 1e6


def units(place: Path, bench: Bench, size: int) -> Iterator[Row]:
    """Random reads of an image that the cache holds, on the disk only."""
    directory(place)
    with s3_node(place) as (node, _):
        shown = node.mountpoint / "raw" / store_noise(node, "noise", place / "image.raw", size // 4)
        remember(shown)  # brings all of it into the cache
        (backing,) = (path for path in (node.directory / "state" / "cache").glob("**/units") if path.stat().st_size >= size // 4)
        ways = {"imagefs": Way(shown, backing), NATIVE: Way(place / "image.raw", place / "image.raw")}
        yield from uncached(ways, bench, "units of the cache")
