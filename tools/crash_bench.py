"""This module measures what lasts: what a killed daemon fetches again, and how much disk a cache takes whose limit is too small."""

import contextlib
import os
import random
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tools.disks import small_boot
from tools.fault_bench import wait_for
from tools.node import Node
from tools.nodes import MIB, Store, limited, make_instance, store
from tools.reading import reader
from tools.rows import Bench, Row

Ranges = list[tuple[int, int]]
SAMPLE_SECONDS: Final = 0.05
BLOCK: Final = 4096


def restart(bench: Bench) -> Iterator[Row]:
    """Kill the daemon in the midst of a boot, mount again, boot again; count what is fetched that had been fetched (row 24)."""
    place = bench.place("restart")
    trace, disk = small_boot(bench, place)
    trace_file = place / "trace"
    shares, had = [], 0
    with store(place) as images:
        image_id = images.put(disk)
        for _ in range(bench.rounds):
            before, after = kill_and_boot(images, image_id, trace_file, trace.unique // 2)
            had = sum(end - start for start, end in before)
            shares.append(overlap(before, after) / had * 100)
    yield Row(f"daemon killed in the midst of a boot: fetched again, of {had / 1e6:.1f} MB", "%", max(shares), number=24)


def kill_and_boot(images: Store, image_id: str, trace: Path, after: int) -> tuple[Ranges, Ranges]:
    """Return the ranges of the image that had come whole when the daemon was killed, after so many bytes, and those asked for by the next one."""
    images.forget_profile(image_id)
    images.link.ranges()
    with tempfile.TemporaryDirectory(dir=images.directory) as state:
        with images.node(state=Path(state)) as node, reader() as process:
            disk = make_instance(node, "bench", image_id)
            before = images.link.counts()
            process.begin_replay(disk, trace)
            wait_for(lambda: (images.link.counts() - before).received >= after, f"the boot has fetched {after} bytes")
            os.kill(node.daemon(), signal.SIGKILL)
            process.told(may_fail=True)
            clear(node)
        had = whole(images.link.ranges(), image_id)
        images.forget_profile(image_id)
        with images.node(state=Path(state)) as node, reader() as process:
            process.begin_replay(node.mountpoint / "instances" / "bench" / "vda", trace)
            process.told()
        return had, [(start, end) for path, start, end, _ in images.link.ranges() if image_id in path]


def clear(node: Node) -> None:
    """Take away the mount of a daemon that was killed."""
    subprocess.run(["umount", "--lazy", node.mountpoint], check=True, capture_output=True)


def whole(ranges: Iterable[tuple[str, int, int, bool]], image_id: str) -> Ranges:
    """Return those ranges of an image that came whole."""
    return [(start, end) for path, start, end, is_whole in ranges if is_whole and image_id in path]


def overlap(before: Ranges, after: Ranges) -> int:
    """Return how many bytes of `before` are in `after` again; what is in `before` or `after` twice counts once."""
    total, first, second = 0, union(before), union(after)
    for start, end in first:
        total += sum(max(0, min(end, other_end) - max(start, other)) for other, other_end in second)
    return total


def union(ranges: Ranges) -> Ranges:
    """Return sorted ranges that cover the same and do not touch."""
    merged: Ranges = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def churn(bench: Bench) -> Iterator[Row]:
    """Read far more than the cache may hold, at random and in sequence, and look at its disk usage all the time (row 25)."""
    limit, size = 32 * MIB, (64 if bench.quick else 256) * MIB
    with store(bench.place("churn")) as images:
        image_ids = [images.put_noise(size, f"noise-{number}") for number in range(2)]
        with images.node(limited(limit)) as node, Sampler(node.directory / "state" / "cache") as sampler:
            for number, image_id in enumerate(image_ids):
                read_all_over(node.mountpoint / "raw" / image_id, size, number)
    ratio = sampler.most / limit
    yield Row(f"most that the cache took on disk in {sampler.samples} samples", "MiB", sampler.most / MIB, "its limit", limit / MIB, ratio, number=25)


def read_all_over(path: Path, size: int, seed: int) -> None:
    """Read a file from its start in chunks, and as many blocks anywhere in it."""
    chance = random.Random(seed)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for offset in range(0, size, MIB):
            os.pread(descriptor, MIB, offset)
            os.pread(descriptor, BLOCK, chance.randrange(0, size, BLOCK))
    finally:
        os.close(descriptor)


class Sampler:
    """A thread that adds up, again and again, what the files of a directory take on disk."""

    def __init__(self, directory: Path) -> None:
        self.most = 0
        """The most bytes of all samples."""
        self.samples = 0
        self._directory = directory
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._ending.wait(SAMPLE_SECONDS):
            self.most = max(self.most, usage(self._directory))
            self.samples += 1


def usage(directory: Path) -> int:
    """Return the bytes that the files below a directory take on disk, as du counts them; files that go meanwhile do not count."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.lstat()
            total += status.st_blocks * 512
    return total
