"""This module measures what needs no data of images: making instances, extended attributes, and lists of many images."""

import contextlib
import ctypes
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from imagefs.store.record import ImageRecord, encode_record
from tools.instruments import bare_loop, mounted
from tools.node import Failed, Node, run
from tools.rows import Bench, Row

MIB: Final = 1024 * 1024
GIB: Final = 1024 * MIB
_LIBC: Final = ctypes.CDLL(None)  # os.listxattr asks twice: first with a buffer that is too small
_ROOM: Final = ctypes.create_string_buffer(64 * 1024)


def creation(bench: Bench) -> Iterator[Row]:
    """Time mkdir, the flavor and the image of an instance, for a small and a large image in turn."""
    place = bench.place("creation")
    store = place / "store"
    store.mkdir()
    sizes = {"small": GIB, "large": 100 * GIB}
    for name, size in sizes.items():
        with (store / name).open("wb") as file:
            file.truncate(size)
    settings = f'[store]\nurl = "{store.as_uri()}"\nlayout = "flat"\n[flavors.bench]\nvcpus = 1\nram = 512\ndisk = 0'
    times: dict[str, list[float]] = {name: [] for name in sizes}
    with mounted(Node(place / "node", settings)) as node:
        for turn in range(10 if bench.quick else 50):
            for name, taken in times.items():
                taken.append(create_and_remove(node.mountpoint / "instances" / f"{name}-{turn}", name))
    small, large = (statistics.median(times[name]) * 1000 for name in sizes)
    yield Row("creating an instance of a 100 GiB image", "ms", large, "of a 1 GiB image", small, large / small, "< 20 ms, ratio ~1", large < 20)


def create_and_remove(instance: Path, image: str) -> float:
    """Return the seconds that making an instance takes; its removal is not among them."""
    started = time.perf_counter()
    instance.mkdir()
    os.setxattr(instance, "user.flavor", b"bench")
    os.setxattr(instance, "user.image", image.encode())
    taken = time.perf_counter() - started
    instance.rmdir()
    return taken


def attributes(bench: Bench) -> Iterator[Row]:
    """Compare getxattr and listxattr of an image with a bare FUSE loop, and list a store of many images.

    On a virtual machine most of a call's time goes into waking the other CPU; with all on one CPU it goes into the code.
    """
    place = bench.place("attributes")
    count = 1000 if bench.quick else 10_000
    some_id = fill_store(place / "store", count)
    (place / "file").write_bytes(b"x")
    allowed = os.sched_getaffinity(0)
    for where, cpus in (("", allowed), (", all on one CPU", {min(allowed)})):
        os.sched_setaffinity(0, cpus)  # the servers inherit it
        try:
            found, seconds = attribute_rates(place, some_id, 3 if bench.quick else 15)
        finally:
            os.sched_setaffinity(0, allowed)
        for name in ("getxattr", "listxattr"):
            own, bare = found[name, "imagefs"], found[name, "bare"]
            yield Row(f"{name} of an image, one client{where}", "calls/s", own, "bare pyfuse3 loop", bare, own / bare, ">= 8,000/s", own >= 8000)
        yield Row(f"ls -l of {count} images, warm{where}", "s", seconds, target="< 2 s", met=seconds < 2)


def attribute_rates(place: Path, some_id: str, rounds: int) -> tuple[dict[tuple[str, str], float], float]:
    """Return calls per second by call and server, and the seconds that `ls -l` takes: medians of rounds in which each has its turn."""
    found: dict[tuple[str, str], list[float]] = {}
    listings: list[float] = []
    with tempfile.TemporaryDirectory(dir=place) as own, contextlib.ExitStack() as cleanup:
        node = cleanup.enter_context(mounted(Node(Path(own) / "node", f'[store]\nurl = "{(place / "store").as_uri()}"')))
        bare = cleanup.enter_context(bare_loop(place / "file", Path(own) / "bare"))
        servers = {"imagefs": os.fsencode(node.mountpoint / "images" / some_id), "bare": os.fsencode(bare)}
        run(["ls", "-l", str(node.mountpoint / "images")])
        for _ in range(rounds):
            for server, path in servers.items():
                get = functools.partial(_LIBC.getxattr, path, b"user.property_7", _ROOM, len(_ROOM))
                found.setdefault(("getxattr", server), []).append(rate(get))
                found.setdefault(("listxattr", server), []).append(rate(functools.partial(_LIBC.listxattr, path, _ROOM, len(_ROOM))))
            started = time.monotonic()
            run(["ls", "-l", str(node.mountpoint / "images")])
            listings.append(time.monotonic() - started)
    return {key: statistics.median(rates) for key, rates in found.items()}, statistics.median(listings)


def fill_store(directory: Path, count: int) -> str:
    """Make a store of `count` small images with 30 properties each, and return the id of one of them."""
    body, image_id = b"x" * 512, ""
    for number in range(count):
        image_id = f"{number:08x}-0000-4000-8000-000000000000"
        record = ImageRecord(
            id=image_id,
            created_at="2026-01-01T00:00:00Z",
            updated_at="2026-01-01T00:00:00Z",
            name=f"image-{number}",
            status="active",
            visibility="public",
            disk_format="raw",
            container_format="bare",
            size=len(body),
            virtual_size=len(body),
            properties={f"property_{key}": "value" for key in range(30)},
        )
        (directory / image_id).mkdir(parents=True)
        (directory / image_id / "data").write_bytes(body)
        (directory / image_id / "image.json").write_bytes(encode_record(record))
    return image_id


def rate(call: Callable[[], int]) -> float:
    """Return how often a second a call that returns a length succeeds, one after another."""
    done, started = 0, time.monotonic()
    while time.monotonic() < started + 0.4:
        if call() <= 0:
            raise Failed("a call for attributes failed: its rate would say nothing")
        done += 1
    return done / (time.monotonic() - started)
