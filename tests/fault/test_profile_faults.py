"""Boot profiles when the store denies, fails, is slow or always loses, when the disk is full, and when files are garbage: no boot suffers."""

import logging
import os
import threading
from pathlib import Path
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from imagefs.errors import Conflict, ImagefsError, NotFound, NotPermitted, ReadOnly, StoreRefused, StoreUnavailable, Unsupported
from imagefs.profile.record import Boot, decode, encode
from imagefs.profile.shelf import STORE_SECONDS, WRITE_TRIES, ProfileShelf
from imagefs.store.protocol import ImageStore
from imagefs.threads import Lane
from tests.support.booting import DISK, IMAGE, IMAGE_ID, ProfileStore, boot, profile_of, scattered
from tests.support.lanes import lane_is_empty

UNITS = scattered(200)


class Place:
    """A shelf over a store and a directory."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.store = ProfileStore()
        self.directory = directory / "profiles"
        self.nursery = nursery
        self.shelf = self.again()

    def again(self) -> ProfileShelf:
        """Return a shelf that remembers nothing."""
        return ProfileShelf(cast("ImageStore", self.store), self.directory, self.nursery, chance=lambda: 0.0)

    def fail(self, verb: str, *failures: Exception) -> None:
        """Let the next calls of a verb fail."""
        waiting = list(failures)

        def before(called: str) -> None:
            if called == verb and waiting:
                raise waiting.pop(0)

        self.store.before = before

    async def learnt(self) -> list[int]:
        """Return what a boot is expected to read."""
        known = self.shelf.ask(IMAGE)
        await known.settled.wait()
        return list(known.units(DISK))

    def local(self) -> list[Boot]:
        """Return the boots of the file."""
        return list(decode((self.directory / IMAGE_ID).read_bytes(), "file").boots)

    def stored(self) -> list[Boot]:
        """Return the boots in the store."""
        return list(decode(self.store.bodies[IMAGE_ID][0], "store").boots)


@pytest.fixture
async def place(tmp_path: Path, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture) -> Place:
    """An empty store and an empty directory."""
    caplog.set_level(logging.INFO, "imagefs.profile")
    return Place(tmp_path, nursery)


@pytest.mark.parametrize("denial", [NotPermitted("no"), Unsupported("no"), ReadOnly("no"), StoreRefused("no")])
async def test_a_store_that_takes_no_profiles_leaves_them_on_the_node(denial: ImagefsError, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and not as a warning: that is a choice of the operator's."""
    place.fail("put_profile", denial, denial)
    for number in range(2):
        await place.shelf.add(IMAGE, DISK, boot(UNITS, number))
    assert len(place.local()) == 2
    assert IMAGE_ID not in place.store.bodies
    assert [record.levelname for record in caplog.records if "stay on this node" in record.message] == ["INFO"]


async def test_a_lost_race_is_run_again_with_what_the_other_has_written(place: Place) -> None:
    """Two nodes that end their boots at once are both in the profile."""
    theirs = boot(UNITS, 1)

    def meanwhile(verb: str) -> None:
        if verb == "put_profile" and IMAGE_ID not in place.store.bodies:
            place.store.keep(profile_of(theirs))

    place.store.before = meanwhile
    ours = boot(UNITS, 2)
    await place.shelf.add(IMAGE, DISK, ours)
    assert place.stored() == [theirs, ours]
    assert place.store.calls.count("put_profile") == 2


async def test_a_race_that_is_always_lost_is_given_up(place: Place) -> None:
    """A hundred nodes boot at once: who never wins has its boot in its own file, and it comes to the store with its next one."""
    place.fail("put_profile", *[Conflict("another writer was there first")] * WRITE_TRIES)
    await place.shelf.add(IMAGE, DISK, first := boot(UNITS, 1))
    assert (place.local(), IMAGE_ID in place.store.bodies) == ([first], False)
    await place.shelf.add(IMAGE, DISK, second := boot(UNITS, 2))
    assert place.stored() == [first, second]


@pytest.mark.parametrize("failure", [StoreUnavailable("the store is down"), RuntimeError("a mistake")])
async def test_a_store_that_fails_costs_a_line_of_log(failure: Exception, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """Reading and writing fail alike quietly; what is on the node is used, and goes to the store later."""
    place.fail("profile", failure)
    assert await place.learnt() == []
    place.fail("put_profile", failure)
    await place.shelf.add(IMAGE, DISK, boot(UNITS, 1))
    assert await place.learnt() == UNITS
    assert {record.levelname for record in caplog.records} == {"WARNING"}
    assert "on this node only" in caplog.text
    assert "cannot be read" in caplog.text
    await place.shelf.add(IMAGE, DISK, boot(UNITS, 2))
    assert len(place.stored()) == 2


async def test_a_store_that_fails_for_readers_leaves_the_local_profile(place: Place) -> None:
    """A node whose store is down boots with what it knows itself."""
    await place.shelf.add(IMAGE, DISK, boot(UNITS))
    place.store.bodies.clear()
    place.fail("profile", StoreUnavailable("the store is down"))
    place.shelf = place.again()
    assert await place.learnt() == UNITS


async def test_an_image_that_is_deleted_meanwhile_leaves_no_local_profile(place: Place) -> None:
    """The store says that there is no such image any more."""
    place.fail("put_profile", NotFound("the image is gone"))
    await place.shelf.add(IMAGE, DISK, boot(UNITS))
    assert not (place.directory / IMAGE_ID).exists()


async def test_a_store_that_hangs_is_not_waited_for(mock_clock: MockClock, place: Place) -> None:
    """What is known of the node itself serves at once, and the question settles after a while."""
    await place.shelf.add(IMAGE, DISK, boot(UNITS))
    answered = threading.Event()
    place.store.before = lambda verb: answered.wait(60)
    try:
        place.shelf = place.again()
        known = place.shelf.ask(IMAGE)
        while not known.boots:
            await trio.lowlevel.checkpoint()
        assert list(known.units(DISK)) == UNITS
        assert not known.settled.is_set()
        mock_clock.jump(STORE_SECONDS + 1)
        await known.settled.wait()
        mock_clock.rate = 1000.0
        await place.shelf.add(IMAGE, DISK, second := boot(UNITS, 2000))
        assert place.local()[-1] == second
    finally:
        answered.set()
        await lane_is_empty(Lane.STORE)


async def test_a_full_disk_leaves_the_profile_in_the_store(place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is left of the attempt, it is said once, and other nodes have the boot all the same."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for number in range(2):
        await place.shelf.add(IMAGE, DISK, boot(UNITS, number))
    assert list(place.directory.iterdir()) == []
    assert len(place.stored()) == 2
    assert len([record for record in caplog.records if "No space left" in record.getMessage() and record.levelname == "WARNING"]) == 1


@pytest.mark.parametrize("body", [b"", b"garbage" * 1000, bytes(10_000_000), encode(profile_of(boot(UNITS)))[:-1], b"IMFSPROF" + bytes(16)])
async def test_garbage_is_no_profile_and_is_replaced(body: bytes, place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """In the file and in the store alike: each is said once, and the next boot overwrites both."""
    place.directory.mkdir()
    (place.directory / IMAGE_ID).write_bytes(body)
    place.store.bodies[IMAGE_ID] = (body, "v")
    assert await place.learnt() == []
    await place.shelf.add(IMAGE, DISK, new := boot(UNITS))
    assert place.local() == place.stored() == [new]
    assert len([record for record in caplog.records if "is not used" in record.message and record.levelname == "WARNING"]) == 2


async def test_what_lies_in_the_way_of_the_file_is_not_followed(place: Place, tmp_path: Path) -> None:
    """A link, a named pipe and a directory are no profiles; nobody waits for the other end of a pipe, and nothing is written through a link."""
    place.directory.mkdir()
    path, target = place.directory / IMAGE_ID, tmp_path / "target"
    target.write_bytes(encode(profile_of(boot(UNITS))))
    for kind in ("link", "pipe"):
        path.unlink(missing_ok=True)
        path.symlink_to(target) if kind == "link" else os.mkfifo(path)
        place.store.bodies.clear()
        place.shelf = place.again()
        assert await place.learnt() == []
        await place.shelf.add(IMAGE, DISK, boot(UNITS))
        assert path.is_file()
        assert not path.is_symlink()
    assert len(decode(target.read_bytes(), "").boots) == 1
    path.unlink()
    path.mkdir()
    place.store.bodies.clear()
    place.shelf = place.again()
    assert await place.learnt() == []
    await place.shelf.add(IMAGE, DISK, boot(UNITS))
    assert len(place.stored()) == 1
    assert [entry.name for entry in place.directory.iterdir()] == [IMAGE_ID]
