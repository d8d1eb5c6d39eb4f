"""This module measures boots of a real guest: from an imagefs with nothing cached, with a boot profile, with all cached, and after a full copy.

The guest is the server of tools/guest-image: 4 GiB of disk with 1.5 GB of content. A full copy is what Nova does: all bytes of the
object by ranged requests in parallel, conversion to raw if it is a qcow2, then the boot.
"""

import contextlib
import dataclasses
import re
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.support.seaweed import Seaweed
from tools.boot import boot
from tools.disks import recorded
from tools.instruments import BUCKET, DELAY, RATE, drop_caches, fronted, mounted
from tools.link import Link
from tools.node import Failed, Node, guest_image, run
from tools.rows import Bench, Row
from tools.traces import Trace

GUEST: Final = "server"
FLAVOR: Final = "bench"
FLAVORS: Final = f"[flavors.{FLAVOR}]\nvcpus = 2\nram = 1024\ndisk = 0"
PROFILE_SECONDS: Final = 150.0
"""How long a recorded boot may take to be stored: a recording ends when nothing was read for 15 s."""
_VDA: Final = re.compile(r"file=[^,]*/vda")


@dataclasses.dataclass(slots=True)
class Boots:
    """What the rounds gave for one object: seconds until the guest's report, bytes over the link, and what the profile was worth."""

    local: list[float] = dataclasses.field(default_factory=list)
    copied: list[float] = dataclasses.field(default_factory=list)
    first: list[float] = dataclasses.field(default_factory=list)
    profiled: list[float] = dataclasses.field(default_factory=list)
    warm: list[float] = dataclasses.field(default_factory=list)
    first_bytes: list[float] = dataclasses.field(default_factory=list)
    profiled_bytes: list[float] = dataclasses.field(default_factory=list)
    coverage: list[float] = dataclasses.field(default_factory=list)
    waste: list[float] = dataclasses.field(default_factory=list)


def boots(bench: Bench) -> Iterator[Row]:
    """Boot the server from both kinds of object, over the link, in turn with its peers."""
    place = bench.place("boots")
    image = guest_image(GUEST)
    trace = recorded(GUEST)
    objects = {"qcow2": image}
    if not bench.quick:
        objects["raw"] = place / "disk.raw"
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(objects["raw"])])
    for kind, path in objects.items():
        with Seaweed.start(place / f"seaweed-{kind}", anonymous_bucket=BUCKET) as server:
            server.create_bucket(BUCKET)
            with started(place / f"import-{kind}", server, server.endpoint_url) as node:
                image_id = node.create_image("guest", path, "--disk-format", kind, "--public")
            with (
                fronted(server.endpoint_url, {f"/{BUCKET}/bench/{image_id}/data": path}) as front,
                Link(front, delay=DELAY, rate=RATE) as link,
            ):
                found = rounds(place, server, link, image_id, kind, bench.rounds)
        yield from rows(found, kind, trace)


def rounds(place: Path, server: Seaweed, link: Link, image_id: str, kind: str, count: int) -> Boots:
    """Boot in turn in each of the ways, each time with nothing left of the time before."""
    found = Boots()
    for turn in range(count):
        here = place / f"{kind}-{turn}"
        here.mkdir()
        copy_and_boot(here, server, link, image_id, kind, found)
        first_boot(here / "first", server, link, image_id, found)
        profiled_boots(here / "second", server, link, image_id, found)
        shutil.rmtree(here)
        forget_profile(server, image_id)
    return found


@contextlib.contextmanager
def started(directory: Path, server: Seaweed, endpoint_url: str) -> Iterator[Node]:
    """Hold a mounted node with nothing of its own yet, which hydrates nothing: what is counted is what boots fetch."""
    settings = f'[store]\nurl = "s3://{BUCKET}/bench"\n[store.s3]\nendpoint_url = "{endpoint_url}"\n[cache]\nhydrate = "off"\n{FLAVORS}'
    with mounted(Node(directory, settings, server.environment())) as node:
        yield node


def first_boot(place: Path, server: Seaweed, link: Link, image_id: str, found: Boots) -> None:
    """Boot on a node that has nothing, from an image that nobody has booted; and wait until the profile of that is in the store."""
    drop_caches()
    with started(place, server, link.endpoint_url) as node:
        before = link.received
        found.first.append(boot_instance(node, image_id, "first"))
        found.first_bytes.append(link.received - before)
        await_counter(node, "profile_recorded")


def profiled_boots(place: Path, server: Seaweed, link: Link, image_id: str, found: Boots) -> None:
    """Boot on another node that has nothing, now that there is a profile; then again after a restart of its daemon, with the page cache dropped."""
    drop_caches()
    with started(place, server, link.endpoint_url) as node:
        before = link.received
        found.profiled.append(boot_instance(node, image_id, "second"))
        found.profiled_bytes.append(link.received - before)
        await_counter(node, "profile_recorded")
        told = node.statistics()
        booted = told["profile_boot_units"]
        found.coverage.append(told["profile_covered_units"] / booted)
        found.waste.append(told["profile_wasted_units"] / (told["profile_covered_units"] + told["profile_wasted_units"]))
        node.umount()
        drop_caches()
        node.mount()
        found.warm.append(boot_instance(node, image_id, "third"))


def copy_and_boot(place: Path, server: Seaweed, link: Link, image_id: str, kind: str, found: Boots) -> None:
    """Copy the whole object to a local raw file, and boot that, by the same command line but for the path."""
    with started(place / "peer", server, server.endpoint_url) as node:
        node.imagefs("instance", "create", "peer", "--image", image_id, "--flavor", FLAVOR)
        words = command_line(node, "peer")
    drop_caches()
    raw = place / "copy.raw"
    begun = time.monotonic()
    target = raw if kind == "raw" else place / "copy.qcow2"
    script = "import boto3, sys; boto3.client('s3', endpoint_url=sys.argv[1]).download_file(*sys.argv[2:])"
    run([sys.executable, "-c", script, link.endpoint_url, BUCKET, f"bench/{image_id}/data", str(target)], environment=node.environment)
    if target != raw:
        run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(target), str(raw)])
    copying = time.monotonic() - begun
    drop_caches()
    booting = boot([_VDA.sub(f"file={raw}", word) for word in words], place / "console").seconds
    found.local.append(booting)
    found.copied.append(copying + booting)


def boot_instance(node: Node, image_id: str, name: str) -> float:
    """Return the seconds from making an instance until its guest reports."""
    begun = time.monotonic()
    node.imagefs("instance", "create", name, "--image", image_id, "--flavor", FLAVOR)
    words = command_line(node, name)
    taken = time.monotonic() - begun + boot(words, node.directory / f"console-{name}").seconds
    node.imagefs("instance", "delete", name)
    return taken


def command_line(node: Node, name: str) -> list[str]:
    """Return the command by which imagefs says that an instance is booted."""
    return node.imagefs("instance", "qemu", name, "--accel", "tcg").split()


def await_counter(node: Node, name: str) -> None:
    """Return when a counter of the node is above 0. Raises Failed if that takes too long."""
    end = time.monotonic() + PROFILE_SECONDS
    while not node.statistics().get(name):
        if time.monotonic() > end:
            raise Failed(f"no boot profile was stored within {PROFILE_SECONDS:.0f} s: {name} of .imagefs/stats is 0")
        time.sleep(0.5)


def forget_profile(server: Seaweed, image_id: str) -> None:
    """Remove what the boots of a round left in the store, so that the next one begins like the first."""
    server.client().delete_object(Bucket=BUCKET, Key=f"bench/{image_id}/profile")


def rows(found: Boots, kind: str, trace: Trace) -> Iterator[Row]:
    """Return the lines of the table for one kind of object."""
    local, copied = statistics.median(found.local), statistics.median(found.copied)
    for number, what, times in ((1, "nothing cached, no profile", found.first), (2, "nothing cached, with profile", found.profiled)):
        lost = statistics.median((own - here) / (peer - here) for own, here, peer in zip(times, found.local, found.copied, strict=True))
        yield Row(
            f"boot, {kind}, {what}: share of what a full copy costs",
            "s",
            statistics.median(times),
            "full copy, then boot",
            copied,
            lost,
            number=number,
        )
    for number, what, times in ((4, "nothing cached, with profile", found.profiled), (3, "all cached, daemon restarted", found.warm)):
        ratio = statistics.median(own / here for own, here in zip(times, found.local, strict=True))
        yield Row(f"boot, {kind}, {what}", "s", statistics.median(times), "a local raw file", local, ratio, number=number)
    for number, what, fetched in ((5, "no profile", found.first_bytes), (6, "with profile", found.profiled_bytes)):
        own = statistics.median(fetched) / 1e6
        yield Row(
            f"fetched by a boot, {kind}, {what}", "MB", own, "blocks that it reads", trace.unique / 1e6, own * 1e6 / trace.unique, number=number
        )
    yield Row(f"fetched by a boot, {kind}, no profile, of the disk", "%", statistics.median(found.first_bytes) / trace.size * 100, number=7)
    yield Row(f"reads of the next boot that the profile covers, {kind}", "%", statistics.median(found.coverage) * 100, number=8)
    yield Row(f"the profile's units that the next boot does not read, {kind}", "%", statistics.median(found.waste) * 100, also="8.waste")
