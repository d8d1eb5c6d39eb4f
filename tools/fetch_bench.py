"""This module measures fetching: one cold stream, the first byte, many instances of one image, and the memory of many cold streams."""

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import urllib3

from tools.disks import small_boot
from tools.instruments import RATE, fio, peak_memory, stream_all
from tools.node import Failed, ended
from tools.nodes import MIB, Store, make_instance, store
from tools.reading import reader
from tools.rows import Bench, Row

PART: Final = 8 * MIB
STREAMS: Final = 8
"""What imagefs fetches a sequential stream with: parts of 8 MiB, 64 MiB ahead."""
BLOCK: Final = 4096
INSTANCES: Final = 8


def sequential(bench: Bench) -> Iterator[Row]:
    """Read a cold image from its start through the mount, and by plain ranged GETs, in turn (row 9)."""
    size = (64 if bench.quick else 512) * MIB
    own, plain = [], []
    with store(bench.place("sequential")) as images:
        image_id = images.put_noise(size)
        for _ in range(bench.rounds):
            own.append(stream_through_mount(images, image_id, size))
            plain.append(stream_by_gets(images.url(image_id), size))
    ratio = statistics.median(b / a for a, b in zip(own, plain, strict=True))
    rates = [size / statistics.median(taken) / 1e6 for taken in (own, plain)]
    peer = f"{STREAMS} ranged GETs of {PART // MIB} MiB at a time, urllib3"
    yield Row("cold sequential read of a raw image", "MB/s", rates[0], peer, rates[1], ratio, number=9)


def stream_through_mount(images: Store, image_id: str, size: int) -> float:
    """Return the seconds that a new node takes to give a whole image."""
    images.forget_profile(image_id)
    with images.node() as node, reader() as process:
        path = node.mountpoint / "raw" / image_id
        started = time.monotonic()
        process.begin_sequential(path, size)
        return process.told().done - started


def stream_by_gets(url: str, size: int) -> float:
    """Return the seconds that ranged GETs take. Raises Failed."""
    words = [sys.executable, "-m", "tools.ranged", url, str(size), str(PART), str(STREAMS)]
    with ended(subprocess.Popen(words, cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)) as process:
        out, _ = process.communicate("\n", timeout=600)
    if process.returncode != 0:
        raise Failed("reading by ranged GETs failed; what it said is above")
    return float(out.split()[-1])


def first_byte(bench: Bench) -> Iterator[Row]:
    """Open cold images and read 4 KiB in their midst, in turn with one GET of as much (row 17)."""
    count, size = (3 if bench.quick else 9), 16 * MIB
    with store(bench.place("firstbyte")) as images:
        ids = {form: [images.put_noise(size, f"noise-{form}-{number}", form) for number in range(count)] for form in ("raw", "qcow2")}
        pool = urllib3.PoolManager(retries=False)
        with images.node() as node:
            for form, image_ids in ids.items():
                own, plain = [], []
                for image_id in image_ids:
                    own.append(read_first(node.mountpoint / "raw" / image_id, size // 2))
                    plain.append(get_first(pool, images.url(image_id), size // 2))
                ratio = statistics.median(a / b for a, b in zip(own, plain, strict=True))
                own_ms, plain_ms = (statistics.median(taken) * 1000 for taken in (own, plain))
                yield Row(f"open and first 4 KiB of a cold {form} image", "ms", own_ms, "one GET of 4 KiB", plain_ms, ratio, number=17)


def read_first(path: Path, offset: int) -> float:
    """Return the seconds of open and one read."""
    started = time.monotonic()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if len(os.pread(descriptor, BLOCK, offset)) != BLOCK:
            raise Failed(f"{path} gave less than {BLOCK} bytes at {offset}")
        return time.monotonic() - started
    finally:
        os.close(descriptor)


def get_first(pool: urllib3.PoolManager, url: str, offset: int) -> float:
    """Return the seconds of one ranged GET over a connection that is open. Raises Failed."""
    started = time.monotonic()
    answer = pool.request("GET", url, headers={"Range": f"bytes={offset}-{offset + BLOCK - 1}"})
    taken = time.monotonic() - started
    if answer.status != 206 or len(answer.data) != BLOCK:
        raise Failed(f"a GET of {BLOCK} bytes was answered by status {answer.status} and {len(answer.data)} bytes")
    return taken


def writes(bench: Bench) -> Iterator[Row]:
    """Count what the store is asked while whole blocks are written that nobody has read (row 15)."""
    count = 256
    with store(bench.place("writes")) as images:
        image_id = images.put_noise(64 * MIB)
        with images.node() as node:
            vda = make_instance(node, "bench", image_id)
            with vda.open("rb"):  # what opening an image costs is not what a write costs
                time.sleep(2)  # nor what is fetched ahead of a boot
                before = images.link.data_requests
                fio(vda, "--rw=randwrite", f"--number_ios={count}", "--end_fsync=1", "--offset=48M", "--size=16M")
                asked = images.link.data_requests - before
                fio(vda, "--rw=randread", "--readonly", "--number_ios=16", "--offset=48M", "--size=16M", "--randrepeat=0")
                if images.link.data_requests == before + asked:
                    raise Failed("reading absent blocks made no request for data either: the count of requests is wrong")
    yield Row(f"requests for data by {count} writes to absent blocks", "requests", asked, number=15)


def crowd(bench: Bench) -> Iterator[Row]:
    """Boot one instance of an image, then several at once on another node: what they fetch (row 20) and what they wait."""
    place = bench.place("crowd")
    _, disk = small_boot(bench, place)
    found: dict[int, list[tuple[int, float]]] = {1: [], INSTANCES: []}
    with store(place) as images:
        image_id = images.put(disk)
        for _ in range(bench.rounds):
            for instances, runs in found.items():
                images.forget_profile(image_id)
                runs.append(boot_together(images, image_id, instances, place / "trace"))
    fetched = {instances: statistics.median(fetched for fetched, _ in runs) for instances, runs in found.items()}
    seconds = {instances: statistics.median(seconds for _, seconds in runs) for instances, runs in found.items()}
    what = f"{INSTANCES} instances of one image booted at once"
    yield Row(f"{what}: fetched", "MB", fetched[INSTANCES] / 1e6, "by one instance", fetched[1] / 1e6, fetched[INSTANCES] / fetched[1], number=20)
    yield Row(f"{what}: the last is done", "s", seconds[INSTANCES], "one instance", seconds[1], seconds[INSTANCES] / seconds[1])


def boot_together(images: Store, image_id: str, instances: int, trace: Path) -> tuple[int, float]:
    """Return the bytes that a new node fetches for so many instances, and the seconds until the last is done."""
    with contextlib.ExitStack() as cleanup:
        node = cleanup.enter_context(images.node())
        readers = [cleanup.enter_context(reader()) for _ in range(instances)]
        before, started = images.link.counts(), time.monotonic()
        disks = [make_instance(node, f"vm{number}", image_id) for number in range(instances)]
        for process, disk in zip(readers, disks, strict=True):
            process.begin_replay(disk, trace)
        done = max(process.told().done for process in readers)
        return (images.link.counts() - before).received, done - started


def memory(bench: Bench) -> Iterator[Row]:
    """Stream several cold images at once, and see how large the daemon got (row 21)."""
    readers, size = 8, (32 if bench.quick else 128) * MIB
    with store(bench.place("memory")) as images:
        image_ids = [images.put_noise(size, f"noise-{number}") for number in range(readers)]
        with images.node() as node:
            before, started = images.link.counts(), time.monotonic()
            stream_all([node.mountpoint / "raw" / image_id for image_id in image_ids])
            rate = readers * size / (time.monotonic() - started) / 1e6
            fetched = (images.link.counts() - before).received / (readers * size)
            peak = peak_memory(node.daemon()) / MIB
    yield Row(f"peak memory of the daemon, {readers} cold sequential streams", "MiB", peak, number=21)
    yield Row(f"throughput of {readers} cold sequential streams", "MB/s", rate, "the link", RATE / 1e6, rate * 1e6 / RATE)
    yield Row("bytes fetched for each byte read by them", "", fetched)
