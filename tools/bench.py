"""This module measures imagefs against its peers in the same run, and prints a table.

Every figure is a median, and where there is a peer the two are measured in turn, so that a busy moment hits both. Whatever comes
from an S3 server comes over a link with 30 ms to the first byte and 1 Gb/s, which counts the bytes itself.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import functools
import json
import os
import platform
import shlex
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import rich.console
import rich.table

from imagefs.store.record import ImageRecord, encode_record
from tools.boot import boot
from tools.instruments import BUCKET, RATE, bare_loop, fio, mounted, new_instance, peak_memory, s3_node, store_noise, stream_all
from tools.life_bench import life
from tools.link import Link
from tools.node import Failed, Node, guest_image, image_info, run
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


def reads(bench: Bench) -> Iterator[Row]:
    """Compare random reads of vda, whose image is cached, with a bare FUSE loop and with the file itself."""
    place = bench.place("reads")
    (place / "store").mkdir()
    image, size = place / "image.raw", (128 if bench.quick else 512) * MIB
    with contextlib.ExitStack() as cleanup:
        node = cleanup.enter_context(mounted(Node(place / "node", f'[store]\nurl = "{(place / "store").as_uri()}"')))
        vda = new_instance(node, store_noise(node, "noise", image, size))
        bare = cleanup.enter_context(bare_loop(image, place / "bare"))
        targets = {"imagefs": vda, "bare": bare, "native": image}
        for path in targets.values():
            run(["dd", f"if={path}", "of=/dev/null", "bs=1M"])  # what both FUSE servers read is in the page cache, and verified
        seconds, rounds = (1, 3) if bench.quick else (3, 7)
        found: dict[str, list[float]] = {name: [] for name in targets}
        for _ in range(rounds):
            for name, path in targets.items():
                found[name].append(random_read_iops(path, seconds))
    own = statistics.median(found["imagefs"])
    ratios = {name: statistics.median(a / b for a, b in zip(found["imagefs"], found[name], strict=True)) for name in ("bare", "native")}
    what = "cached 4 KiB random reads of vda, O_DIRECT, depth 1"
    bare_ratio = ratios["bare"]
    yield Row(what, "IOPS", own, "bare pyfuse3 loop", statistics.median(found["bare"]), bare_ratio, ">= 0.7", bare_ratio >= 0.7)
    yield Row(what, "IOPS", own, "native file (from the disk)", statistics.median(found["native"]), ratios["native"])


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


def random_read_iops(path: Path, seconds: float) -> float:
    """Return what fio measures."""
    return fio(path, "--rw=randread", "--readonly", "--time_based", f"--runtime={seconds}")["read"]["iops"]


def writes(bench: Bench) -> Iterator[Row]:
    """Count what the store is asked while whole blocks are written that nobody has read."""
    place = bench.place("writes")
    count = 256
    with s3_node(place) as (node, link):
        vda = new_instance(node, store_noise(node, "noise", place / "image.raw", 64 * MIB))
        with vda.open("rb"):  # what opening an image costs is not what a write costs
            before = link.data_requests
            fio(vda, "--rw=randwrite", f"--number_ios={count}", "--end_fsync=1", "--size=64M")
            asked = link.data_requests - before
            fio(vda, "--rw=randread", "--readonly", "--number_ios=16", "--size=64M", "--randrepeat=0")  # other blocks than were written
            if link.data_requests == before:
                raise Failed("reading absent blocks made no request for data either: the count of requests is wrong")
    yield Row(f"requests for data by {count} writes to absent blocks", "requests", asked, target="0", met=asked == 0)


def memory(bench: Bench) -> Iterator[Row]:
    """Stream several cold images at once, and see how large the daemon got."""
    place = bench.place("memory")
    readers, size = 8, (32 if bench.quick else 128) * MIB
    with s3_node(place) as (node, link):
        image_ids = [store_noise(node, f"noise-{number}", place / "image.raw", size) for number in range(readers)]
        before, started = link.received, time.monotonic()
        stream_all([node.mountpoint / "raw" / image_id for image_id in image_ids])
        rate = readers * size / (time.monotonic() - started) / 1e6
        fetched = (link.received - before) / (readers * size)
        peak = peak_memory(node.daemon()) / MIB
    yield Row(f"peak memory of the daemon, {readers} readers of cold images", "MiB", peak, target="< 256 MiB", met=peak < 256)
    yield Row(f"throughput of {readers} readers of cold images", "MB/s", rate, "the link", RATE / 1e6, rate * 1e6 / RATE)
    yield Row("bytes fetched for each byte read", "", fetched)


def boots(bench: Bench) -> Iterator[Row]:
    """Boot the demo's guest from a cold cache, from a warm one, and after a full copy of its image."""
    place = bench.place("boots")
    guest = guest_image()
    size = image_info(guest)["virtual-size"]
    fetched, cold, warm, copied, local = [], [], [], [], []
    for turn in range(1 if bench.quick else 3):
        here = place / str(turn)
        here.mkdir()
        with s3_node(here) as (node, link):
            image_id = node.create_image("guest", guest, "--public")
            before = link.received
            cold.append(boot_instance(node, image_id, "cold"))
            fetched.append(link.received - before)
            warm.append(boot_instance(node, image_id, "warm"))
            copying, booting = boot_copy(node, link, image_id, here)
            copied.append(copying + booting)
            local.append(booting)
        shutil.rmtree(here)
    share, copy = statistics.median(fetched) / size, guest.stat().st_size / size
    yield Row("share of the disk fetched by a boot", "%", share * 100, "full copy", copy * 100, share / copy, "< 10 %", share < 0.1)
    for what, found in (("boot, nothing cached", cold), ("boot, image cached", warm)):
        for peer, other in (("full copy, then boot", copied), ("boot of a local raw file", local)):
            ratio = statistics.median(a / b for a, b in zip(found, other, strict=True))
            yield Row(what, "s", statistics.median(found), peer, statistics.median(other), ratio)


def boot_instance(node: Node, image_id: str, name: str) -> float:
    """Return the seconds from making an instance until its guest reports."""
    started = time.monotonic()
    node.imagefs("instance", "create", name, "--image", image_id, "--flavor", "m1.small")
    made = time.monotonic() - started
    taken = made + boot(command_line(node, name), node.directory / f"console-{name}").seconds
    node.imagefs("instance", "delete", name)
    return taken


def boot_copy(node: Node, link: Link, image_id: str, place: Path) -> tuple[float, float]:
    """Return the seconds that it takes to copy an image to the node as a raw file, and to boot it, by the same command line."""
    node.imagefs("instance", "create", "peer", "--image", image_id, "--flavor", "m1.small")
    vda = str(node.mountpoint / "instances" / "peer" / "vda")
    words = [word.replace(vda, str(place / "copy.raw")) for word in command_line(node, "peer")]
    node.imagefs("instance", "delete", "peer")
    started = time.monotonic()
    download(node, link, image_id, place / "copy.qcow2")
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(place / "copy.qcow2"), str(place / "copy.raw")])
    run(["qemu-img", "resize", "-q", "-f", "raw", str(place / "copy.raw"), "20G"])
    copied = time.monotonic()
    return copied - started, boot(words, place / "console-copy").seconds


def download(node: Node, link: Link, image_id: str, target: Path) -> None:
    """Copy an image's data from the bucket by boto3, as a node without imagefs would."""
    script = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1]).download_file(*sys.argv[2:])"
    run([sys.executable, "-c", script, link.endpoint_url, BUCKET, f"bench/{image_id}/data", str(target)], environment=node.environment)


def command_line(node: Node, name: str) -> list[str]:
    """Return the command by which imagefs says that an instance is booted."""
    return shlex.split(node.imagefs("instance", "qemu", name, "--accel", "tcg"))


SECTIONS: Final[dict[str, Callable[[Bench], Iterator[Row]]]] = {
    "creation": creation,
    "life": life,
    "reads": reads,
    "writes": writes,
    "memory": memory,
    "attributes": attributes,
    "boots": boots,
}


def main() -> int:
    """Measure what is asked for; return the exit status."""
    parser = argparse.ArgumentParser(prog="tools/bench", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"what to measure, by default all: {', '.join(SECTIONS)}")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller images: to see that it works, not to compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to FILE too")
    wanted = parser.parse_args()
    unknown = set(wanted.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"there is no section {', '.join(sorted(unknown))}: there are {', '.join(SECTIONS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that being ended cleans up too
    directory = Path(tempfile.mkdtemp(prefix="imagefs-bench-"))
    rows: list[Row] = []
    try:
        for name in wanted.sections or SECTIONS:
            print(f"tools/bench: measuring {name}", file=sys.stderr, flush=True)
            rows += SECTIONS[name](Bench(directory, wanted.quick))
            shutil.rmtree(directory / name)
    except Failed as error:
        print(f"tools/bench: FAILED: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        if rows:
            show(rows)
        shutil.rmtree(directory, ignore_errors=True)
    if wanted.json is not None:
        wanted.json.write_text(json.dumps(as_json(rows, quick=wanted.quick), indent=2) + "\n")
    return 0


def show(rows: list[Row]) -> None:
    """Print the table."""
    table = rich.table.Table(title="imagefs and its peers, medians of this run")
    for heading in ("what", "imagefs", "peer", "peer's", "ratio", "wanted", ""):
        table.add_column(heading, justify="right" if heading in ("imagefs", "peer's", "ratio") else "left")
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        verdict = {None: "", True: "met", False: "NOT MET"}[row.met]
        table.add_row(row.what, in_words(row.imagefs, row.unit), row.peer, in_words(row.peer_value, row.unit), ratio, row.target, verdict)
    terminal = rich.console.Console()
    rich.console.Console(width=terminal.width if terminal.is_terminal else 160).print(table)


def in_words(value: float | None, unit: str) -> str:
    """Return a figure with its unit; counts have no fraction."""
    if value is None:
        return ""
    return f"{value:,.0f} {unit}" if unit in ("IOPS", "requests") else f"{value:,.2f} {unit}".strip()


def as_json(rows: list[Row], *, quick: bool) -> dict[str, object]:
    """Return the results with what they depend on."""
    return {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "quick": quick,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


if __name__ == "__main__":
    sys.exit(main())
