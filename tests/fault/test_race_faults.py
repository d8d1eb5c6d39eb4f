"""Requests that stall, break or lie while a second one runs beside them, and readers who give up meanwhile."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imagefs import threads
from imagefs.counters import COUNTERS
from imagefs.errors import StoreRefused, StoreUnavailable, VersionChanged, WrongBytes
from imagefs.fetch import patience
from imagefs.fetch.backoff import RetryPolicy
from imagefs.fetch.digests import UnitDigests
from imagefs.fetch.filler import ObjectFiller
from imagefs.fetch.race import Race
from imagefs.fetch.stored import StoredObject
from imagefs.fetch.traffic import Traffic
from imagefs.image.qcow2.filler import Qcow2Filler
from imagefs.image.qcow2.image import open_image
from imagefs.threads import Lane
from imagefs.units import UNIT, unit_count
from imagefs.urgency import Urgency
from tests.support.caching import settled, started
from tests.support.fetched import hash_tree, noise
from tests.support.lanes import lane_is_empty
from tests.support.qcow2 import FileSource, converted

CONTENT = noise(16 * UNIT)
SOON = 0.02


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not come at once is asked for again soon."""
    monkeypatch.setattr(patience, "LEAST", SOON)


class StallingObject:
    """A DataObject of which some attempts (by number, from 0) do something else before or instead of a certain unit."""

    path: Path | None = None
    version = "v1"

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.size = len(content)
        self.requests: list[tuple[int, int]] = []
        self.ended = 0
        self.odd: dict[tuple[int, int], Callable[[], object]] = {}
        """(attempt, unit) -> what happens there: it may wait, it may raise, and bytes that it returns come in place of the unit's."""
        self.go = threading.Event()
        """Set when stalled attempts may go on."""
        self.stalled = threading.Semaphore(0)
        """Released by each attempt that stalls."""

    def stall(self) -> None:
        self.stalled.release()
        assert self.go.wait(60), "nobody let the stalled request go on"

    def stream(self, offset: int, length: int) -> Iterator[bytes]:
        attempt = len(self.requests)
        self.requests.append((offset, length))
        try:
            for start in range(offset, offset + length, UNIT):
                body = self.odd.get((attempt, start // UNIT), lambda: None)()
                yield body if isinstance(body, bytes) else self.content[start : min(start + UNIT, offset + length)]
        finally:
            self.ended += 1


class Fetching:
    """A filler over a StallingObject, with digests, and what it delivered."""

    def __init__(self) -> None:
        self.object = StallingObject()
        tree, digests = hash_tree(CONTENT)
        self.stored = StoredObject(
            self.object, UnitDigests(tree, len(CONTENT), lambda page: digests, "debian"), RetryPolicy(deadline=5, first=0.001, cap=0.001)
        )
        self.filler = ObjectFiller(self.stored)
        self.delivered: list[tuple[int, bytes | None]] = []

    async def fill(self, first: int = 0, count: int = 8, urgency: Urgency = Urgency.DEMAND) -> None:
        with trio.fail_after(30):
            await self.filler.fill(first, count, lambda unit, body: self.delivered.append((unit, body)), urgency)

    def check(self, first: int = 0, count: int = 8) -> None:
        """Raise unless each unit came once, as it is."""
        assert sorted(self.delivered) == [(unit, CONTENT[unit * UNIT : (unit + 1) * UNIT]) for unit in range(first, first + count)]

    async def let_go(self) -> None:
        """Let stalled requests go on, and return when they have ended: what they still bring must not be delivered."""
        self.object.go.set()
        for lane in (Lane.FETCH, Lane.AHEAD, Lane.IDLE):
            await lane_is_empty(lane)
        assert self.object.ended == len(self.object.requests)


def steps(*calls: Callable[[], object]) -> Callable[[], None]:
    """Return what calls one after the other, and has nothing to say."""

    def call() -> None:
        for each in calls:
            each()

    return call


def nap() -> None:
    """Take a little longer than anybody has patience for."""
    time.sleep(5 * SOON)


@pytest.fixture
def fetching() -> Fetching:
    return Fetching()


@pytest.mark.parametrize("unit", [0, 5])
async def test_a_stalled_request_is_sent_again(fetching: Fetching, unit: int) -> None:
    """A second request brings what the first one does not, before its first byte or in the middle; what the loser brings later is dropped."""
    hedged, won = COUNTERS.hedged_requests, COUNTERS.hedges_won
    fetching.object.odd[0, unit] = fetching.object.stall
    await fetching.fill()
    fetching.check()
    assert fetching.object.requests == [(0, 8 * UNIT), (unit * UNIT, (8 - unit) * UNIT)]
    assert (COUNTERS.hedged_requests - hedged, COUNTERS.hedges_won - won) == (1, 1)
    await fetching.let_go()
    fetching.check()


async def test_the_first_one_may_win_all_the_same(fetching: Fetching) -> None:
    """A request that goes on while the second one stalls brings its units, and the second one is the loser."""
    won = COUNTERS.hedges_won
    second_begun = threading.Event()

    def stall_until_the_second_runs() -> None:
        assert second_begun.wait(30)

    def stall() -> None:
        second_begun.set()
        fetching.object.stall()

    fetching.object.odd = {(0, 3): stall_until_the_second_runs, (1, 3): stall}
    await fetching.fill()
    fetching.check()
    assert COUNTERS.hedges_won == won
    await fetching.let_go()
    fetching.check()


async def test_both_bring_parts(fetching: Fetching) -> None:
    """Each unit comes from whoever has it first, and once."""
    first_goes_on = threading.Event()
    fetching.object.odd = {(0, 2): lambda: first_goes_on.wait(30), (1, 5): steps(first_goes_on.set, fetching.object.stall)}
    await fetching.fill()
    fetching.check()
    await fetching.let_go()
    fetching.check()


async def test_what_nobody_waits_for_is_not_asked_for_twice(fetching: Fetching) -> None:
    """Hydration waits for a stalled request; it is in no hurry."""
    fetching.object.odd[0, 0] = nap
    await fetching.fill(urgency=Urgency.IDLE)
    fetching.check()
    assert len(fetching.object.requests) == 1


async def test_a_store_that_stalls_always_is_not_asked_twice_for_everything(fetching: Fetching) -> None:
    """When the second requests are used up, a stalled one is waited for: a store in trouble gets 5 % more, not twice as much."""
    assert [fetching.stored.traffic.may_try_twice(Urgency.DEMAND) for _ in range(4)] == [True] * 4
    fetching.object.odd[0, 0] = nap
    await fetching.fill()
    fetching.check()
    assert len(fetching.object.requests) == 1


@pytest.mark.parametrize("error", [VersionChanged("another"), StoreRefused("no")])
async def test_a_second_request_that_fails_does_not_end_the_first(fetching: Fetching, error: Exception) -> None:
    """What the second one says does not count as long as the first one may still bring everything."""
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise error

    fetching.object.odd = {(0, 0): steps(lambda: failed.wait(30), nap), (1, 0): fail}
    await fetching.fill()
    fetching.check()


async def test_wrong_bytes_of_a_loser_do_no_harm(fetching: Fetching) -> None:
    """A second connection that brings other bytes is refused by their digests, tries again, and the image is served."""
    fetching.object.odd = {(0, 0): fetching.object.stall, (1, 0): lambda: bytes(UNIT), (2, 0): lambda: noise(UNIT, 9)}
    await fetching.fill()
    fetching.check()
    await fetching.let_go()
    fetching.check()


async def test_wrong_bytes_of_both(fetching: Fetching) -> None:
    """Bytes that are wrong whoever brings them are an error, and none of them is delivered."""
    for attempt in range(20):
        fetching.object.odd[attempt, 2] = lambda: bytes(UNIT)
    fetching.object.odd[0, 0] = nap
    with pytest.raises(WrongBytes, match="unit 2"):
        await fetching.fill()
    assert {unit for unit, _ in fetching.delivered} == {0, 1}


async def test_both_fail(fetching: Fetching) -> None:
    """The error of the one that ended first is told, once both have ended."""

    def refuse(words: str) -> Callable[[], None]:
        def fail() -> None:
            raise StoreRefused(words)

        return fail

    second = threading.Event()
    fetching.object.odd = {(0, 0): steps(lambda: second.wait(30), nap, refuse("the first")), (1, 0): steps(second.set, refuse("the second"))}
    with pytest.raises(StoreRefused, match="the second"):
        await fetching.fill()
    assert fetching.delivered == []


@pytest.mark.parametrize(
    "fault",
    [
        lambda: (_ for _ in ()).throw(StoreUnavailable("reset")),
        lambda: b"short",
    ],
)
async def test_broken_requests_are_resumed_in_either(fetching: Fetching, fault: Callable[[], object]) -> None:
    """Resets and short bodies are resumed as always, also by the second request."""
    fetching.object.odd = {(0, 2): fetching.object.stall, (1, 4): fault}
    await fetching.fill()
    fetching.check()
    await fetching.let_go()


@pytest.mark.parametrize("stalled_attempts", [1, 2])
async def test_cancellation_leaves_stalled_requests_to_themselves(fetching: Fetching, stalled_attempts: int) -> None:
    """Ending does not wait for a store that hangs, before the second request and after; nothing is delivered once the fill has returned."""
    for attempt in range(stalled_attempts):
        fetching.object.odd[attempt, 3] = fetching.object.stall
    if stalled_attempts == 1:  # then let there be none
        while fetching.stored.traffic.may_try_twice(Urgency.DEMAND):
            pass
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetching.fill)
        for _ in range(stalled_attempts):
            await threads.run(Lane.DISK, fetching.object.stalled.acquire)
        nursery.cancel_scope.cancel()
    fetching.check(count=3)
    await fetching.let_go()
    fetching.check(count=3)


async def test_a_delivery_under_way_is_waited_for() -> None:
    """A race does not end while a unit is being written: whoever cancelled it may close the file next."""
    begun, go = threading.Event(), threading.Event()
    written: list[int] = []

    def write() -> None:
        begun.set()
        assert go.wait(30)
        written.append(1)

    race = Race(Traffic(), Urgency.DEMAND)
    ended = trio.Event()

    async def run(scope: trio.CancelScope) -> None:
        with scope:
            await race.run(lambda attempt: attempt.once(0, write))
        ended.set()

    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()
        nursery.start_soon(run, scope)
        await threads.run(Lane.DISK, begun.wait)
        scope.cancel()
        await wait_all_tasks_blocked()
        assert not ended.is_set()
        go.set()
        await ended.wait()
    assert written == [1]
    race.once(1, written.append, 2)
    assert written == [1]


async def test_a_bug_in_an_attempt_is_an_error() -> None:
    """An exception that nobody foresaw comes out of the race as it is."""

    def fail(race: Race) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        await Race(Traffic(), Urgency.DEMAND).run(fail)


async def test_who_waits_for_read_ahead_is_not_left_behind(tmp_path: Path, nursery: trio.Nursery, fetching: Fetching) -> None:
    """A reader that wants a unit of a prefetch which has stalled gets it from a second request."""
    fetching.object.odd[0, 2] = fetching.object.stall
    caches = await started(tmp_path, nursery)
    cache = await caches.root.open("11111111-2222-3333-4444-555555555555", "stored", "v1", fetching.filler, nursery, name="debian")
    with trio.fail_after(30):
        nursery.start_soon(cache.prefetch, 0, 8 * UNIT)
        await wait_all_tasks_blocked()
        assert await cache.read(5 * UNIT, 10) == CONTENT[5 * UNIT : 5 * UNIT + 10]
    await settled(cache)
    cache.check_invariants()
    await fetching.let_go()
    cache.check_invariants()


async def test_the_digests_may_stall_too(fetching: Fetching, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of digests that does not come is fetched once more by who needs it."""
    monkeypatch.setattr("imagefs.fetch.digests.PATIENCE", SOON)
    tree, digests = hash_tree(CONTENT)
    asked: list[int] = []
    go = threading.Event()

    def load(page: int) -> bytes:
        asked.append(page)
        if len(asked) == 1:
            assert go.wait(60)
        return digests

    stored = StoredObject(fetching.object, UnitDigests(tree, len(CONTENT), load, "debian"), RetryPolicy())
    fetching.filler = ObjectFiller(stored)
    await fetching.fill()
    fetching.check()
    assert asked == [0, 0]
    go.set()
    await lane_is_empty(Lane.TABLES)
    await fetching.let_go()


class StallingFile(StallingObject):
    """The stored units of a file, of which one stream stalls ahead of a unit."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.read_bytes())
        self.traffic = Traffic()

    def stream_units(self, first_unit: int, count: int) -> Generator[bytes, None, None]:
        yield from self.stream(first_unit * UNIT, min(count * UNIT, self.size - first_unit * UNIT))


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_stalled_request_of_a_qcow2_image(tmp_path: Path, compressed: bool) -> None:
    """Guest units are made from whichever request brings the stored ones, each once."""
    content = noise(20 * UNIT, 3)
    raw = tmp_path / "raw"
    raw.write_bytes(content)
    image = converted(tmp_path, "image", raw, "cluster_size=65536", compress=compressed)
    stored = StallingFile(image)
    filler = Qcow2Filler(await open_image(FileSource(image), "debian"), stored)
    for unit in range(unit_count(stored.size)):
        if unit > 8:
            stored.odd[0, unit] = stored.stall
    delivered: dict[int, bytes | None] = {}

    def deliver(unit: int, body: bytes | None) -> None:
        assert unit not in delivered
        delivered[unit] = body

    with trio.fail_after(30):
        await filler.fill(0, 20, deliver)
    assert delivered == {unit: content[unit * UNIT : (unit + 1) * UNIT] for unit in range(20)}
    stored.go.set()
    await lane_is_empty(Lane.FETCH)
    assert len(delivered) == 20
