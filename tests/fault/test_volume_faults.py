"""Tests of volumes whose making, growth or removal breaks off: in a crash at each step, in a failure of each, and on a full disk."""

import contextlib
import errno
import functools
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio

from imagefs.disks.record import DISK_MODE
from imagefs.disks.steps import purge
from imagefs.errors import ImagefsError, NoSpace
from imagefs.identity.caller import Caller
from imagefs.statedir import StateDirectory
from imagefs.volumes.record import RECORD
from imagefs.volumes.registry import Volumes
from imagefs.volumes.volume import Volume
from tests.support.crash import Crash, crashes, faults

CALLER = Caller(5, 6)
MIB = 1024**2
SMALL, LARGE = 70 * MIB, 300 * MIB
"""Sizes whose durable maps differ in length."""
BODY = b"kept" * 1024
Step = Callable[[StateDirectory], Awaitable[None]]


@pytest.fixture(params=[errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def error_number(request: pytest.FixtureRequest) -> int:
    """What the host's disk says."""
    number: int = request.param
    return number


def loaded(state: StateDirectory) -> Volumes:
    """Return the registry that the next daemon has; it empties the trash before, as the registry of instances does."""
    for leftover in state.trash.iterdir():
        purge(leftover)
    volumes = Volumes(state)
    volumes.load()
    return volumes


async def create(state: StateDirectory) -> None:
    """Make a volume."""
    await loaded(state).create("db1", CALLER, DISK_MODE)


async def resize(state: StateDirectory, size: int) -> None:
    """Give the volume a size."""
    volumes = loaded(state)
    await volumes.resize(volumes.get("db1"), size)


async def remove(state: StateDirectory) -> None:
    """Remove the volume."""
    await loaded(state).remove("db1")


async def fill(state: StateDirectory) -> None:
    """Write into the volume, durably."""
    await write(loaded(state).get("db1"))


async def write(volume: Volume) -> None:
    """Write into a volume, durably."""
    await volume.disk.hold()
    await volume.disk.write(volume.disk.size - len(BODY), BODY)
    await volume.disk.let_go()


async def read(volume: Volume, offset: int) -> bytes:
    """Return what a volume holds there."""
    overlay = await volume.disk.ready()
    return bytes(await overlay.read(offset, len(BODY)))


def a_state(path: Path, *steps: Step) -> StateDirectory:
    """Return a fresh state directory in which these steps were taken."""
    state = StateDirectory(path)
    for step in steps:
        trio.run(step, state)
    return state


def attempts(tmp_path: Path, operation: Step, *steps: Step) -> Iterator[tuple[Crash, Volumes]]:
    """Break the operation off at each of its calls, and yield each time what the next daemon finds. What it removes must stay removed."""
    for crash in crashes():
        state = a_state(tmp_path / str(crash.number), *steps)
        crash.run(functools.partial(operation, state))
        volumes = loaded(state)
        yield crash, volumes
        assert not list(state.trash.iterdir()), crash
        known = {volume.directory for volume in volumes.by_name.values()}
        assert set(state.volumes.iterdir()) == known, crash
        for volume in volumes.by_name.values():
            suffixes = {path.name for path in volume.directory.iterdir()}
            assert suffixes - {"disk.live"} == ({RECORD, "disk.map", "disk.data"} if volume.disk.size else {RECORD}), crash


def check_sound(volume: Volume, *, size: int, kept: bool) -> None:
    """Assert that a volume can be written to its end, read and grown, and that what was in it is there."""

    async def check() -> None:
        assert volume.disk.size == size
        if kept:
            assert await read(volume, SMALL - len(BODY)) == BODY
        if size > SMALL:
            assert await read(volume, size - len(BODY)) == bytes(len(BODY))
        await write(volume)
        overlay = await volume.disk.ready()
        assert not hasattr(overlay, "check_invariants") or overlay.check_invariants() is None
        await volume.disk.grow(size + MIB)
        assert await read(volume, size) == bytes(len(BODY))
        assert await read(volume, size - len(BODY)) == BODY
        await volume.disk.let_go()

    trio.run(check)


def test_crash_while_a_volume_is_made(tmp_path: Path) -> None:
    """There is no volume, or one of size 0 that takes a size."""
    found = []
    for crash, volumes in attempts(tmp_path, create):
        if "db1" in volumes.by_name:
            trio.run(volumes.resize, volumes.get("db1"), SMALL)
            check_sound(volumes.get("db1"), size=SMALL, kept=False)
        else:
            trio.run(volumes.create, "db1", CALLER, DISK_MODE)
        found.append(crash.completed or "db1" in volumes.by_name)
    assert len(found) > 4


def test_crash_while_a_volume_gets_its_first_size(tmp_path: Path) -> None:
    """The volume has no size, or the size that was asked for; both can be used."""
    sizes = []
    for crash, volumes in attempts(tmp_path, functools.partial(resize, size=SMALL), create):
        volume = volumes.get("db1")
        sizes.append(volume.disk.size)
        if not volume.disk.size:
            trio.run(volumes.resize, volume, SMALL)
        check_sound(volume, size=SMALL, kept=False)
        assert not crash.completed or sizes[-1] == SMALL
    assert sizes == sorted(sizes)
    assert set(sizes) == {0, SMALL}


def test_crash_while_a_volume_grows(tmp_path: Path) -> None:
    """The volume has its old size or the new one, and all that was in it."""
    sizes = []
    for crash, volumes in attempts(tmp_path, functools.partial(resize, size=LARGE), create, functools.partial(resize, size=SMALL), fill):
        volume = volumes.get("db1")
        sizes.append(volume.disk.size)
        check_sound(volume, size=volume.disk.size, kept=True)
        assert not crash.completed or sizes[-1] == LARGE
    assert sizes == sorted(sizes)
    assert set(sizes) == {SMALL, LARGE}


def test_crash_while_a_volume_is_removed(tmp_path: Path) -> None:
    """The volume is there, whole, or gone with all its files."""
    there = []
    for crash, volumes in attempts(tmp_path, remove, create, functools.partial(resize, size=SMALL), fill):
        there.append("db1" in volumes.by_name)
        if there[-1]:
            check_sound(volumes.get("db1"), size=SMALL, kept=True)
        assert not crash.completed or not there[-1]
    assert there == sorted(there, reverse=True)
    assert set(there) == {True, False}


@pytest.mark.parametrize("lasting", [False, True])
async def test_failure_while_a_volume_is_made(tmp_path: Path, error_number: int, lasting: bool) -> None:
    """Whichever step fails, there is no volume; the reason is told, and with a sound disk the next attempt succeeds."""
    for fault in faults(error_number, lasting=lasting):
        state = StateDirectory(tmp_path / str(fault.number))
        volumes = loaded(state)
        with fault:
            failed = await fails(volumes.create, "db1", CALLER, DISK_MODE)
        assert failed == fault.struck, fault
        assert ("db1" in volumes.by_name) is not failed, fault
        assert lasting or len(list(state.volumes.iterdir())) == (not failed), fault
        if failed:
            await volumes.create("db1", CALLER, DISK_MODE)
        await volumes.resize(volumes.get("db1"), MIB)
        assert list(loaded(state).by_name) == ["db1"], fault


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("opened", [False, True])
async def test_failure_while_a_volume_gets_a_size(tmp_path: Path, error_number: int, lasting: bool, opened: bool) -> None:
    """Whichever step fails, this daemon and the next one agree on a size, and the next attempt succeeds."""
    await check_sizing(tmp_path, error_number, 0, SMALL, lasting=lasting, opened=opened)


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("opened", [False, True])
async def test_failure_while_a_volume_grows(tmp_path: Path, error_number: int, lasting: bool, opened: bool) -> None:
    """The same, and nothing that was in the volume is lost."""
    await check_sizing(tmp_path, error_number, SMALL, LARGE, lasting=lasting, opened=opened)


async def check_sizing(tmp_path: Path, error_number: int, before: int, after: int, *, lasting: bool, opened: bool) -> None:
    """Let each step of giving a volume a size fail."""
    for fault in faults(error_number, lasting=lasting):
        state = StateDirectory(tmp_path / str(fault.number))
        volumes = loaded(state)
        volume = await volumes.create("db1", CALLER, DISK_MODE)
        await volumes.resize(volume, before)
        if before:
            await write(volume)
        if opened:
            await volume.disk.hold()
        with fault:
            failed = await fails(volumes.resize, volume, after)
        assert fault.struck or not failed
        assert failed or volume.disk.size == after, fault
        size = volume.disk.size
        assert size in (before, after), fault
        assert size or lasting or [path.name for path in volume.directory.iterdir()] == [RECORD], fault
        if opened and failed:
            with pytest.raises(NoSpace):
                await volume.disk.write(size, b"past the end")
        later = loaded(state).get("db1").disk.size
        assert later in ({size} if not failed else {before, after}), fault
        if opened:
            with contextlib.suppress(OSError):  # after a failed sync nothing that is open flushes any more
                await volume.disk.let_go()
        await volumes.resize(volume, LARGE)
        assert volume.disk.size == LARGE, fault
        if before:
            assert await read(volume, SMALL - len(BODY)) == BODY, fault
        await write(volume)
        await volume.disk.let_go()
        again = loaded(state).get("db1")
        assert again.disk.size == LARGE, fault
        assert await read(again, LARGE - len(BODY)) == BODY, fault
        await again.disk.let_go()


@pytest.mark.parametrize("lasting", [False, True])
async def test_failure_while_a_volume_is_removed(tmp_path: Path, error_number: int, lasting: bool) -> None:
    """The volume is there, whole, and can be removed later; or it is gone, for this daemon as for the next one."""
    outcomes = set()
    for fault in faults(error_number, lasting=lasting):
        state = StateDirectory(tmp_path / str(fault.number))
        volumes = loaded(state)
        volume = await volumes.create("db1", CALLER, DISK_MODE)
        await volumes.resize(volume, SMALL)
        await write(volume)
        with fault:
            failed = await fails(volumes.remove, "db1")
        there = "db1" in volumes.by_name
        outcomes.add((failed, there))
        assert failed or not there, fault
        assert ("db1" in loaded(state).by_name) is there, fault
        if there:
            assert await read(volume, SMALL - len(BODY)) == BODY, fault
            await volume.disk.let_go()
            await volumes.remove("db1")
        assert not list(loaded(state)._state.trash.iterdir()), fault
        assert not list(state.volumes.iterdir()), fault
    assert outcomes == {(True, True), (True, False), (False, False)}


async def test_change_of_owner_that_fails_changes_nothing(tmp_path: Path, error_number: int) -> None:
    """A record that cannot be written leaves the old owner in force; the reason says what could not be written."""
    for fault in faults(error_number):
        volume = await loaded(StateDirectory(tmp_path / str(fault.number))).create("db1", CALLER, DISK_MODE)
        with fault:
            failed = await fails(functools.partial(volume.disk.set_owner, uid=9, gid=None, mode=None))
        assert failed == fault.struck, fault
        assert volume.disk.record.uid == (5 if failed else 9), fault


async def fails(operation: Callable[..., Awaitable[object]], *arguments: object) -> bool:
    """Tell whether an operation fails, which it may only with a reason for the user: never with an error of the host as it is."""
    try:
        await operation(*arguments)
    except NoSpace as error:
        return "full" in str(error) or os.strerror(errno.ENOSPC) in str(error)
    except ImagefsError:
        return True
    return False
