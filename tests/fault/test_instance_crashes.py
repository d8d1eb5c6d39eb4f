"""Tests of the end of the daemon at every step of an instance's life: what the next daemon finds is whole, or as it was before.

The operations run in a child that ends at one call after the other that changes the host's disk; the same calls fail once each, too.
"""

import contextlib
import errno
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from imagefs.catalog import Catalog, CatalogImage, Snapshot
from imagefs.config import InstancesConfig
from imagefs.disks.disk import Disk
from imagefs.disks.record import DiskRecord
from imagefs.errors import Busy, ImagefsError, LayerFrozen
from imagefs.flavors import make_flavor
from imagefs.identity.caller import Caller
from imagefs.identity.map import ADMIN
from imagefs.image.inspect import Inspection
from imagefs.instances.instance import Instance, with_disk
from imagefs.instances.registry import Instances
from imagefs.library import Library, OpenImage
from imagefs.source import Source
from imagefs.statedir import StateDirectory
from imagefs.store.record import ImageRecord
from imagefs.units import BLOCK, MIB
from tests.support.crash import crashes, faults
from tests.support.instances import instances_of
from tests.support.overlay import PatternBase, pattern

ROOT = Caller(0, 0)
SIZE = 2 * MIB
IMAGE = ImageRecord(
    id="11111111-1111-4111-8111-111111111111",
    created_at="2026-01-01T00:00:00Z",
    updated_at="2026-01-01T00:00:00Z",
    name="os",
    status="active",
    disk_format="raw",
    size=SIZE,
)
FLAVOR = make_flavor("f", vcpus=1, ram=64, disk=0, ephemeral=1, swap=4)


class Images:
    """A catalog and a library with the one image, which shows a pattern."""

    snapshot = Snapshot(0, {})

    async def find(self, image_id: str) -> CatalogImage:
        return CatalogImage(IMAGE, "1")

    async def open(self, image: CatalogImage, wanted: tuple[int, int] | None = None) -> OpenImage:
        base = PatternBase(SIZE)
        return OpenImage(base, Inspection("raw", SIZE, ""), base)

    def expect_boot(self, image: CatalogImage) -> None:
        """Do nothing: a pattern needs no bringing."""

    def recorded(self, image: CatalogImage, disk: Source, ended: Callable[[], object]) -> None:
        """Record no boot."""


def registry(state: Path) -> Instances:
    """Return the registry as a daemon that starts finds it."""
    images = Images()
    config = InstancesConfig(encryption=True)
    return instances_of(StateDirectory(state), catalog=cast("Catalog", images), library=cast("Library", images), config=config)


async def make(instances: Instances, *, plain: bool = False) -> Instance:
    """Make an instance with encrypted disks, a filesystem, swap and a config drive; a plain one has vda alone."""
    instance = await instances.create("web1", ROOT, 0o700)
    if not plain:
        await instances.set_flavor(instance, FLAVOR)
        await instances.set_choice(instance, "ephemeral_format", b"ext4")
        await instances.set_choice(instance, "meta_data", b'{"a": "b"}')
    await instances.set_image(instance, CatalogImage(IMAGE, "1"), {}, ADMIN)
    return instance


async def check_whole(instances: Instances) -> None:
    """Assert that the instance, if it has disks, has all of them and that each can be read and written."""
    for instance in instances.by_name.values():
        assert instance.status in ("new", "active")
        if instance.status == "new":
            assert {path.name for path in instance.directory.iterdir()} == {"instance"}
            continue
        assert list(instance.disks) in (["vda", "vdb", "vdc", "vdz"], ["vda"])
        for disk in instance.disks.values():
            await disk.hold()
            overlay = await disk.ready()
            overlay.check_invariants()
            assert await overlay.write(0, b"x" * BLOCK) == BLOCK
            await disk.let_go()
        vda = instance.disks["vda"]
        await vda.hold()
        assert await (await vda.ready()).read(BLOCK, BLOCK) == pattern(BLOCK, BLOCK)
        await vda.let_go()


def nothing_else(state: Path, instances: Instances) -> None:
    """Assert that the state directory has no files but those of the instances that there are."""
    expected = {instance.directory for instance in instances.by_name.values()}
    assert set((state / "instances").iterdir()) == expected
    assert list((state / "trash").iterdir()) == []
    for instance in instances.by_name.values():
        stems = {stem for disk in instance.record.disks for stem in disk.stems}
        names = {path.name.partition(".")[0] for path in instance.directory.iterdir()}
        assert names - {"instance"} == stems


def test_creation_leaves_nothing_or_all(tmp_path: Path) -> None:
    """A crash at any step of mkdir and of setting flavor and image leaves no instance, a new one, or one with all its disks."""
    seen = set()
    for crash in crashes():
        state = tmp_path / str(crash.number)
        crash.run(functools.partial(make_in, state))
        statuses = trio.run(found_after_creation, state)
        seen.update(statuses or ["none"])
        assert statuses == ["active"] or not crash.completed
    assert seen == {"none", "new", "active"}


async def make_in(state: Path) -> None:
    """Make the instance, as a daemon that starts with this state."""
    await make(registry(state))


async def make_plain_in(state: Path) -> None:
    """Make the instance with vda alone."""
    await make(registry(state), plain=True)


async def found_after_creation(state: Path) -> list[str]:
    """Check what a creation that broke off has left, go on with it, and return the statuses of what was there."""
    instances = registry(state)
    nothing_else(state, instances)
    await check_whole(instances)
    statuses = [instance.status for instance in instances.by_name.values()]
    if statuses == ["new"]:
        await instances.set_image(instances.get("web1"), CatalogImage(IMAGE, "1"), {}, ADMIN)
    await instances.close()
    return statuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_creation_that_fails_leaves_nothing_or_all(tmp_path: Path, number: int) -> None:
    """Whichever call to the host's disk fails, the instance is whole or has no disk, and can be made once the disk is well again."""
    for fault in faults(number):
        state = tmp_path / str(fault.number)
        instances = registry(state)
        with fault:
            try:
                await make(instances)
            except (ImagefsError, OSError):
                assert fault.struck
        again = registry(state)
        await check_whole(again)
        nothing_else(state, again)
        if "web1" not in instances.by_name:
            await make(instances)
        elif instances.get("web1").status == "new":
            await instances.set_flavor(instances.get("web1"), FLAVOR)
            await instances.set_image(instances.get("web1"), CatalogImage(IMAGE, "1"), {}, ADMIN)
        assert instances.get("web1").status == "active"
        await instances.close()


def test_deletion_leaves_all_or_nothing(tmp_path: Path) -> None:
    """A crash at any step of rmdir leaves the whole instance or none; what is left of its keys and bytes goes at the next mount."""
    seen = set()

    async def remove(state: Path) -> None:
        await registry(state).remove("web1")

    async def check(state: Path) -> int:
        again = registry(state)
        nothing_else(state, again)
        await check_whole(again)
        return len(again.by_name)

    for crash in crashes():
        state = tmp_path / str(crash.number)
        trio.run(make_in, state)
        crash.run(functools.partial(remove, state))
        left = trio.run(check, state)
        seen.add(left)
        assert not (crash.completed and left)
    assert seen == {0, 1}


def keeper(instance: Instance) -> Callable[[DiskRecord], Any]:
    """Return what keeps a disk's record in that of its instance."""

    async def keep(record: DiskRecord) -> None:
        await instance.write(with_disk(instance.record, record))

    return keep


async def layers_come_and_go(instances: Instances, acknowledged: Callable[[int], object]) -> None:
    """Write, take a layer, write, merge it while writing; tell of each write once it is done."""
    instance = instances.get("web1")
    disk: Disk = instance.disks["vda"]
    await disk.hold()
    await disk.take()

    async def write(number: int) -> None:
        await disk.write(number * BLOCK, bytes([number]) * BLOCK)
        acknowledged(number)

    await write(1)
    await disk.add_layer(keeper(instance))
    await write(2)
    await write(3)
    await disk.add_layer(keeper(instance))
    await write(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.merge)
        for number in range(5, 12):
            await write(number)
            await trio.lowlevel.checkpoint()
    await disk.release()
    await disk.let_go()


def test_layers_lose_nothing_wherever_they_break_off(tmp_path: Path) -> None:
    """A crash at any step of snapshots and of merging loses no write that was acknowledged; the next daemon merges to the end."""
    layers = set()
    for crash in crashes():
        state, log = tmp_path / str(crash.number), tmp_path / f"{crash.number}.log"
        trio.run(make_plain_in, state)
        with log.open("wb", buffering=0) as told:
            crash.run(functools.partial(work_and_tell, state, told))
        layers.add(trio.run(merged_after, state, log.read_bytes()))
        nothing_else(state, registry(state))
    assert layers == {1, 2, 3}


async def work_and_tell(state: Path, told: io.FileIO) -> None:
    """Let layers come and go, and note in a file which writes were acknowledged."""
    await layers_come_and_go(registry(state), lambda number: told.write(bytes([number])))


async def merged_after(state: Path, written: bytes) -> int:
    """Check that the disk has what was written, before and after it is merged to the end, and return how many layers it had."""
    again = registry(state)
    nothing_else(state, again)
    disk = again.get("web1").disks["vda"]
    count = len(disk.record.stems)
    await disk.hold()
    await disk.take()
    for _ in ("before", "after"):
        overlay = await disk.ready()
        for number in written:
            assert await overlay.read(number * BLOCK, BLOCK) == bytes([number]) * BLOCK, number
        assert await overlay.read(100 * BLOCK, BLOCK) == pattern(100 * BLOCK, BLOCK)
        await disk.merge()
    assert len(disk.record.stems) == 1
    await disk.release()
    await disk.let_go()
    return count


async def test_a_layer_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    """Whichever call fails while a layer is made or merged, no write is lost, and it works once the disk is well again."""
    for fault in faults(errno.ENOSPC):
        state = tmp_path / str(fault.number)
        instances = registry(state)
        instance = await make(instances, plain=True)
        disk = instance.disks["vda"]
        await disk.hold()
        await disk.take()
        await disk.write(BLOCK, b"1" * BLOCK)
        with fault:
            try:
                await disk.add_layer(keeper(instance))
                await disk.write(2 * BLOCK, b"2" * BLOCK)
                await disk.merge()
            except (ImagefsError, OSError):
                assert fault.struck
        with contextlib.suppress(OSError):  # after a sync that failed, none is believed until the disk is opened again
            await disk.release()
        with contextlib.suppress(OSError):
            await disk.let_go()
        await disk.hold()
        await disk.take()
        await disk.write(2 * BLOCK, b"2" * BLOCK)
        await disk.add_layer(keeper(instance))
        await disk.write(3 * BLOCK, b"3" * BLOCK)
        await disk.merge()
        for number in (1, 2, 3):
            assert await (await disk.ready()).read(number * BLOCK, BLOCK) == str(number).encode() * BLOCK
        await disk.release()
        await disk.let_go()
        again = registry(state)
        assert len(again.get("web1").disks["vda"].record.stems) == 1
        nothing_else(state, again)


async def test_a_write_to_a_disk_that_stays_frozen_is_refused(tmp_path: Path) -> None:
    """A top layer that takes no writes, which cannot be, gives an error: trying again without end would stop every guest."""
    disk = (await make(registry(tmp_path), plain=True)).disks["vda"]
    await disk.hold()
    (await disk.ready()).freeze()
    with trio.fail_after(5), pytest.raises(LayerFrozen):
        await disk.write(0, b"x" * BLOCK)
    await disk.let_go()


async def test_a_removal_that_is_refused_lets_the_merge_go_on(tmp_path: Path) -> None:
    """Rmdir of an instance whose disk is open, or whose volume is, is Busy, and its layers are merged all the same; then it goes."""
    async with trio.open_nursery() as nursery:
        images = cast("Any", Images())
        instances = instances_of(StateDirectory(tmp_path), catalog=images, library=images, nursery=nursery)
        instance = await make(instances, plain=True)
        disk = instance.disks["vda"]
        await disk.hold()
        await disk.take()
        await disk.add_layer(keeper(instance))
        await disk.write(0, b"x" * BLOCK)
        await disk.release()
        with pytest.raises(Busy, match="vda"):
            await instances.remove("web1")
        with trio.fail_after(10):
            await instances._snapshots._jobs[instance.record.uuid].ended.wait()
        assert len(disk.record.stems) == 1
        assert await (await disk.ready()).read(0, BLOCK) == b"x" * BLOCK
        await disk.let_go()
        await instances.remove("web1")
        assert list((tmp_path / "instances").iterdir()) == []
