"""The boots of a mount: what is brought ahead of a guest, what is learnt behind it, and what is counted."""

import dataclasses
import uuid
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import cast

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from imagefs.catalog import CatalogImage
from imagefs.counters import COUNTERS, Counters
from imagefs.errors import ImageRefused, NoSpace, StoreUnavailable
from imagefs.profile.boots import MOST_RECORDINGS, PROFILE_SECONDS, Boots
from imagefs.profile.merge import fetches
from imagefs.profile.prefetches import Prefetches
from imagefs.profile.record import KEPT_BOOTS, decode
from imagefs.profile.recorder import IDLE_SECONDS, Recorder
from imagefs.profile.shelf import ProfileShelf
from imagefs.source import Source
from imagefs.store.protocol import ImageStore
from imagefs.units import GIB, MIB, UNIT
from tests.support.booting import DISK, IMAGE, IMAGE_ID, OTHER_BYTES, BootDisk, ProfileStore, boot, profile_of, scattered
from tests.support.overlay import PatternBase

UNITS = scattered(200)
GUESSED = [(0, MIB), (DISK - MIB, MIB)]


@pytest.fixture(autouse=True)
def counted() -> None:
    """Counters begin at nothing."""
    for field in dataclasses.fields(Counters):
        setattr(COUNTERS, field.name, 0)


class Node:
    """A node: a store that others share, a state directory of its own, and its boots."""

    def __init__(self, store: ProfileStore, directory: Path, nursery: trio.Nursery, *, room: int = 50 * GIB, enabled: bool = True) -> None:
        self.shelf = ProfileShelf(cast("ImageStore", store), directory, nursery)
        self.boots = Boots(self.shelf, self.guess, nursery, room, enabled=enabled, clock=lambda: 1234.5)
        self.guesses = 0
        self.opened = 0
        self.disk = BootDisk()
        self.ended = 0

    async def guess(self, disk: Source, budget: int) -> AsyncGenerator[tuple[int, int], None]:
        """Guess the first and the last MiB."""
        self.guesses += 1
        for extent in GUESSED:
            yield extent

    async def open(self) -> Source | None:
        """Open the image."""
        self.opened += 1
        return self.disk

    def _end(self) -> None:
        self.ended += 1

    def recorder(self) -> Recorder:
        """Return what a guest reads through."""
        found = self.boots.recorded(IMAGE, self.disk, self._end)
        assert found is not None
        return found

    async def boot(self, units: list[int]) -> None:
        """Boot a guest that reads these units, and is then ended."""
        recorder = self.recorder()
        for unit in units:
            recorder.read_nowait(unit * UNIT, 4096)
        recorder.end()
        await self.settled()

    async def settled(self) -> None:
        """Return when what runs in the background is done."""
        while self.boots.busy:
            await trio.lowlevel.checkpoint()


@pytest.fixture
async def node(nursery: trio.Nursery, tmp_path: Path) -> Node:
    """A node with nothing in its state directory, and an empty store."""
    return Node(ProfileStore(), tmp_path / "node", nursery)


async def test_the_second_boot_is_brought_ahead_on_any_node(nursery: trio.Nursery, tmp_path: Path) -> None:
    """What the first guest read, the next node fetches before its guest asks, in that order, and evicts last."""
    store = ProfileStore()
    one, other = Node(store, tmp_path / "one", nursery), Node(store, tmp_path / "other", nursery)
    one.boots.expect(IMAGE, one.open)
    await one.settled()
    assert one.disk.prefetched == GUESSED
    await one.boot(UNITS)
    (found,) = decode(store.bodies[IMAGE_ID][0], "").boots
    assert (list(found.units), found.recorded_at) == (UNITS, 1234)
    other.boots.expect(IMAGE, other.open)
    await other.settled()
    assert other.disk.prefetched == other.disk.kept == fetches(UNITS, DISK)
    assert (one.guesses, other.guesses) == (1, 0)
    assert (COUNTERS.profile_recorded, COUNTERS.profile_replays, COUNTERS.profile_bytes) == (1, 1, len(UNITS) * UNIT)
    assert (COUNTERS.profile_boot_units, COUNTERS.profile_covered_units) == (0, 0)  # the first boot had no profile
    await other.boot([*UNITS[20:], 1, 2, 3])
    assert (COUNTERS.profile_boot_units, COUNTERS.profile_covered_units, COUNTERS.profile_wasted_units) == (183, 180, 20)


async def test_a_boot_is_expected_once_at_a_time(node: Node) -> None:
    """Eight instances of one image are helped by one replay."""
    node.disk.gate = trio.Event()
    for _ in range(8):
        node.boots.expect(IMAGE, node.open)
    await trio.testing.wait_all_tasks_blocked()
    node.disk.gate.set()
    await node.settled()
    assert (node.opened, node.guesses) == (1, 1)


async def test_what_is_here_is_not_brought_again(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A warm image costs nothing but being kept; of one that is here in part the rest is fetched."""
    store = ProfileStore()
    store.keep(profile_of(boot(UNITS)))
    node = Node(store, tmp_path, nursery)
    node.disk.here.update(UNITS)
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert (node.disk.prefetched, len(node.disk.kept), COUNTERS.profile_replays) == ([], 200, 0)
    node.disk.here.remove(UNITS[7])
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert node.disk.prefetched == [(UNITS[7] * UNIT, UNIT)]


async def test_what_an_earlier_daemon_has_left_is_proved_ahead(nursery: trio.Nursery, tmp_path: Path) -> None:
    """It is read, and not fetched: a guest's hits need no thread then."""
    store = ProfileStore()
    store.keep(profile_of(boot(UNITS)))
    node = Node(store, tmp_path, nursery)
    node.disk.on_disk.update(UNITS[1:])
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert node.disk.prefetched == [(UNITS[0] * UNIT, UNIT)]
    assert node.disk.reads == fetches(UNITS[1:], DISK)
    assert (COUNTERS.profile_replays, COUNTERS.profile_bytes) == (1, UNIT)


async def test_recordings_are_bounded(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A hundred instances of one image that boot at once: five are enough to know what they read."""
    node = Node(ProfileStore(), tmp_path, nursery)
    for _ in range(KEPT_BOOTS):
        node.recorder().read_nowait(0, 10)
    assert node.boots.recorded(IMAGE, node.disk, lambda: None) is None
    for _ in range(MOST_RECORDINGS - KEPT_BOOTS):
        other = CatalogImage(msgspec.structs.replace(IMAGE.record, id=str(uuid.uuid4())), "1")
        found = node.boots.recorded(other, node.disk, lambda: None)
        assert found is not None
        found.read_nowait(0, 10)
    assert node.boots.recorded(OTHER_BYTES, node.disk, lambda: None) is None
    await node.boots.close()
    assert node.boots.recorded(OTHER_BYTES, node.disk, lambda: None) is not None


async def test_the_local_profile_is_used_before_a_slow_store_answers(autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path) -> None:
    """What only the store knows comes later, without what has been brought."""
    node = Node(ProfileStore(), tmp_path, nursery)
    known = node.shelf.ask(IMAGE)
    await known.settled.wait()
    known.settled = trio.Event()
    known.disk_size, known.boots = DISK, (boot(UNITS, 1),)
    node.boots.expect(IMAGE, node.open)
    await trio.sleep(PROFILE_SECONDS + 1)
    assert node.disk.prefetched == fetches(UNITS, DISK)
    known.boots = (boot([*UNITS, 5, 6], 1), boot([*UNITS, 5, 6], 2))
    known.settled.set()
    await trio.sleep(1)
    assert node.disk.prefetched == [*fetches(UNITS, DISK), (5 * UNIT, 2 * UNIT)]
    assert node.guesses == 0


async def test_without_a_profile_in_time_what_is_likely_is_brought(autojump_clock: MockClock, nursery: trio.Nursery, tmp_path: Path) -> None:
    """The guess is made at once then, and the profile is replayed when it comes."""
    node = Node(ProfileStore(), tmp_path, nursery)
    known = node.shelf.ask(IMAGE)
    await known.settled.wait()
    known.settled = trio.Event()
    node.boots.expect(IMAGE, node.open)
    await trio.sleep(PROFILE_SECONDS + 1)
    assert node.disk.prefetched == GUESSED
    known.disk_size, known.boots = DISK, (boot(UNITS[1:], 1),)
    known.settled.set()
    await trio.sleep(1)
    assert node.disk.prefetched == [*GUESSED, *fetches(UNITS[1:], DISK)]


async def test_a_boot_set_larger_than_the_cache_is_brought_in_part(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Half of the budget at most, what is needed first: more would drive out what it has just brought. Without a cache nothing is."""
    store = ProfileStore()
    store.keep(profile_of(boot(UNITS)))
    for room, brought in ((100 * UNIT, 50), (0, 0)):
        node = Node(store, tmp_path, nursery, room=room)
        node.boots.expect(IMAGE, node.open)
        await node.settled()
        assert node.disk.prefetched == fetches(UNITS[:brought], DISK)


@pytest.mark.parametrize("failure", [StoreUnavailable("the store is down"), ImageRefused("it is a bomb"), RuntimeError("a mistake")])
async def test_an_image_that_does_not_open_is_nobodys_trouble(failure: Exception, node: Node, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads it is told; here it is only a line of the log, and the next boot is expected anew."""

    async def fail() -> Source | None:
        raise failure

    node.boots.expect(IMAGE, fail)
    await node.settled()
    assert ("could not be prepared" in caplog.text) is isinstance(failure, RuntimeError)
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert node.disk.prefetched == GUESSED


async def test_a_replay_that_fails_ends_quietly(node: Node) -> None:
    """The store goes down in the middle: the guest's own reads tell of it."""
    node.disk.failure = StoreUnavailable("the store is down")
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert node.disk.at_once == 0


async def test_an_image_that_is_read_in_place_is_neither_recorded_nor_brought(node: Node) -> None:
    """Its bytes are here. One that is no disk is not either."""
    for disk in (PatternBase(MIB), None):
        node.disk = cast("BootDisk", disk)
        node.boots.expect(IMAGE, node.open)
        await node.settled()
    assert node.boots.recorded(IMAGE, PatternBase(MIB), lambda: None) is None
    assert node.guesses == 0


async def test_switched_off_it_does_nothing_but_what_is_asked_for(nursery: trio.Nursery, tmp_path: Path) -> None:
    """No question to the store, no recording; a prefetch that somebody wants is done all the same."""
    store = ProfileStore()
    store.keep(profile_of(boot(UNITS)))
    node = Node(store, tmp_path, nursery, enabled=False)
    node.boots.ask(IMAGE)
    node.boots.expect(IMAGE, node.open)
    await node.settled()
    assert node.boots.recorded(IMAGE, node.disk, lambda: None) is None
    assert (store.calls, node.opened) == ([], 0)
    await node.boots.bring(IMAGE, node.disk, lambda done, wanted: None)
    assert node.disk.prefetched == fetches(UNITS, DISK)


async def test_an_image_that_is_gone_ends_its_replay(node: Node) -> None:
    """At once, and a new image of that name is expected by itself."""
    node.disk.gate = trio.Event()
    node.boots.expect(IMAGE, node.open)
    while not node.disk.at_once:
        await trio.lowlevel.checkpoint()
    node.boots.forget(IMAGE)
    node.boots.forget(OTHER_BYTES)
    node.boots.expect(IMAGE, node.open)
    node.disk.gate.set()
    await node.settled()
    assert (node.opened, node.disk.at_once) == (2, 0)


async def test_what_is_no_boot_is_not_kept(node: Node, tmp_path: Path) -> None:
    """A look at the partition table, a copy of the disk."""
    await node.boot([0, 1, 2])
    await node.boot(list(range(4000)))
    assert COUNTERS.profile_recorded == 0
    assert not (tmp_path / "node").exists()


async def test_a_recording_that_was_never_read_through_costs_nothing(node: Node) -> None:
    """An instance that is made and never started: no task waits for it."""
    recorder = node.recorder()
    assert not node.boots.busy
    recorder.end()
    assert (node.ended, node.boots.busy) == (1, False)


async def test_a_recording_ends_by_itself(mock_clock: MockClock, node: Node) -> None:
    """When nothing was read for a while, and is kept then."""
    recorder = node.recorder()
    for unit in UNITS:
        await recorder.read(unit * UNIT, 4096)
    await trio.testing.wait_all_tasks_blocked(0.05)
    mock_clock.jump(IDLE_SECONDS + 1)
    mock_clock.rate = 100.0
    await node.settled()
    assert (node.ended, COUNTERS.profile_recorded) == (1, 1)


async def test_the_end_of_a_mount_keeps_what_was_recorded(node: Node, tmp_path: Path) -> None:
    """The guest is still booting: what it has read so far is written down, and waited for."""
    recorder = node.recorder()
    for unit in UNITS:
        recorder.read_nowait(unit * UNIT, 4096)
    await trio.testing.wait_all_tasks_blocked(0.05)
    await node.boots.close()
    assert not node.boots.busy
    assert list(decode((tmp_path / "node" / IMAGE_ID).read_bytes(), "").boots[0].units) == UNITS


async def test_a_nursery_that_is_closed_takes_no_boots(tmp_path: Path) -> None:
    """While the daemon ends nothing is begun, and nothing fails."""
    async with trio.open_nursery() as nursery:
        node = Node(ProfileStore(), tmp_path, nursery)
    node.boots.ask(IMAGE)
    node.boots.expect(IMAGE, node.open)
    recorder = node.recorder()
    recorder.read_nowait(0, 10)
    assert node.ended == 1
    assert not node.boots.busy


# -- prefetches that somebody asked for -----------------------------------------------------------


async def test_a_boot_can_be_brought_when_asked(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Its progress is told in bytes while it runs, and that it is done afterwards."""
    store = ProfileStore()
    store.keep(profile_of(boot(UNITS)))
    node = Node(store, tmp_path, nursery)
    prefetches = Prefetches(node.boots)
    assert prefetches.state(IMAGE) == "none"
    node.disk.gate = trio.Event()
    async with trio.open_nursery() as asking:
        asking.start_soon(prefetches.run, IMAGE, node.disk, "boot")
        while not node.disk.prefetched:
            await trio.lowlevel.checkpoint()
        assert prefetches.state(IMAGE) == f"boot 0/{200 * UNIT}"
        node.disk.gate.set()
    assert prefetches.state(IMAGE) == "done"
    assert prefetches.state(OTHER_BYTES) == "none"
    prefetches.forget(IMAGE)
    assert prefetches.state(IMAGE) == "none"


async def test_without_a_profile_what_is_likely_is_brought_when_asked(node: Node) -> None:
    """That is what a boot would be helped with, too."""
    await Prefetches(node.boots).run(IMAGE, node.disk, "boot")
    assert node.disk.prefetched == GUESSED


async def test_all_of_an_image_can_be_brought(node: Node) -> None:
    """Everything but its holes, of which the progress tells as of what is done."""
    node.disk.data = [(0, 2 * MIB), (GIB, GIB + UNIT)]
    prefetches = Prefetches(node.boots)
    node.disk.gate = trio.Event()
    async with trio.open_nursery() as asking:
        asking.start_soon(prefetches.run, IMAGE, node.disk, "all")
        await trio.testing.wait_all_tasks_blocked()
        assert prefetches.state(IMAGE) == f"all {DISK - 2 * MIB - UNIT}/{DISK}"
        node.disk.gate.set()
    assert sorted(node.disk.prefetched) == [(0, MIB), (MIB, MIB), (GIB, UNIT)]
    assert prefetches.state(IMAGE) == "done"


async def test_a_prefetch_that_fails_or_is_given_up_is_none(node: Node) -> None:
    """The error is the asker's; what was brought stays."""
    prefetches = Prefetches(node.boots)
    node.disk.failure = StoreUnavailable("the store is down")
    for what in ("boot", "all"):
        with pytest.raises(StoreUnavailable, match="is down"):
            await prefetches.run(IMAGE, node.disk, what)
        assert prefetches.state(IMAGE) == "none"
    node.disk.gate = trio.Event()
    with trio.move_on_after(0.05) as scope:
        await prefetches.run(IMAGE, node.disk, "all")
    assert scope.cancelled_caught
    assert (prefetches.state(IMAGE), node.disk.at_once) == ("none", 0)


async def test_an_image_that_the_cache_cannot_hold_is_not_brought_as_a_whole(nursery: trio.Nursery, tmp_path: Path) -> None:
    """That would only drive out what is there; the reason names the setting."""
    node = Node(ProfileStore(), tmp_path, nursery, room=GIB)
    with pytest.raises(NoSpace, match=r"4\.0 GiB, and the cache may take 1\.0 GiB: raise \[cache\] size"):
        await Prefetches(node.boots).run(IMAGE, node.disk, "all")
    assert node.disk.prefetched == []


async def test_what_is_read_in_place_needs_no_bringing(node: Node) -> None:
    """It is done at once."""
    prefetches = Prefetches(node.boots)
    for what in ("boot", "all"):
        await prefetches.run(IMAGE, PatternBase(MIB), what)
        assert prefetches.state(IMAGE) == "done"
