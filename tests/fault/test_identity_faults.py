"""User databases that fail, hang, are slow or lose a user: callers are answered, and nobody keeps a group for ever."""

import threading
from collections.abc import Callable, Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imagefs import threads
from imagefs.identity.caller import GROUPS_LIFE, LAST_KNOWN_LIFE, TIME_LIMIT, Groups
from imagefs.threads import Lane
from tests.support.lanes import lane_is_empty

Behaviour = Callable[[int], frozenset[int] | None]


class Database:
    """A user database that behaves as a test wants it to; `released` lets hanging questions end."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = self.answer
        self.groups = frozenset({5, 50})
        self.released = threading.Event()
        self.asked = 0

    def __call__(self, uid: int) -> frozenset[int] | None:
        self.asked += 1
        return self.behaviour(uid)

    def answer(self, uid: int) -> frozenset[int] | None:
        return self.groups

    def fail(self, uid: int) -> frozenset[int] | None:
        raise OSError("the directory service is down")

    def hang(self, uid: int) -> frozenset[int] | None:
        self.released.wait()
        return frozenset({666})

    def lose(self, uid: int) -> frozenset[int] | None:
        return None


@pytest.fixture
def database() -> Iterator[Database]:
    """A database whose threads all end with the test."""
    made = Database()
    yield made
    made.released.set()


async def lookup_in(groups: Groups, uid: int, clock: MockClock, seconds: float) -> frozenset[int]:
    """Return what a lookup finds while `seconds` pass."""
    found: list[frozenset[int]] = []

    async def ask() -> None:
        found.append(await groups.lookup(uid))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        clock.jump(seconds)
    return found[0]


async def test_a_failure_leaves_the_last_known_groups_for_ten_minutes(
    mock_clock: MockClock, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Each failure is warned of and left alone for a while; when the last answer is too old it counts no more."""
    groups = Groups(database)
    assert await groups.lookup(5) == {5, 50}
    database.behaviour = database.fail
    for passed in range(10, int(LAST_KNOWN_LIFE), 10):
        mock_clock.jump(GROUPS_LIFE)
        assert groups.nowait(5) is None
        assert await groups.lookup(5) == groups.nowait(5) == frozenset({5, 50})
        assert len(caplog.records) == passed // 10
    assert "last known groups go on to count uid=5 reason=OSError: the directory service is down" in caplog.text
    mock_clock.jump(GROUPS_LIFE)
    caplog.clear()
    assert await groups.lookup(5) == frozenset()
    assert "in no group but the one it runs with uid=5" in caplog.text


async def test_the_last_known_groups_do_not_outlive_their_ten_minutes(mock_clock: MockClock, database: Database) -> None:
    """A failure shortly before the end extends them to the end and not beyond."""
    groups = Groups(database)
    await groups.lookup(5)
    database.behaviour = database.fail
    mock_clock.jump(LAST_KNOWN_LIFE - 1)
    assert await groups.lookup(5) == {5, 50}
    mock_clock.jump(1)
    assert groups.nowait(5) is None


async def test_without_a_last_answer_a_failure_is_no_group(mock_clock: MockClock, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The caller is told apart from one without groups in the log only, and is asked about again."""
    database.behaviour = database.fail
    groups = Groups(database)
    assert await groups.lookup(5) == groups.nowait(5) == frozenset()
    assert "reason=OSError: the directory service is down" in caplog.text
    database.behaviour = database.answer
    mock_clock.jump(GROUPS_LIFE)
    assert await groups.lookup(5) == {5, 50}


async def test_a_recovered_database_counts_at_once(mock_clock: MockClock, database: Database) -> None:
    """After a failure the next answer replaces the last known groups."""
    groups = Groups(database)
    await groups.lookup(5)
    for behaviour, found in ((database.fail, {5, 50}), (database.answer, {5})):
        mock_clock.jump(GROUPS_LIFE)
        database.behaviour = behaviour
        assert await groups.lookup(5) == found
        database.groups = frozenset({5})


async def test_a_user_that_is_lost_is_a_failure_first(mock_clock: MockClock, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """Libc says "no such user" of a directory service that is down too; after ten minutes it is believed."""
    groups = Groups(database)
    await groups.lookup(5)
    database.behaviour = database.lose
    mock_clock.jump(GROUPS_LIFE)
    assert await groups.lookup(5) == {5, 50}
    assert "reason=no such user any more" in caplog.text
    mock_clock.jump(LAST_KNOWN_LIFE)
    caplog.clear()
    assert await groups.lookup(5) == frozenset()
    assert not caplog.records


async def test_a_hanging_lookup_ends_after_its_time(mock_clock: MockClock, database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """The last known groups take its place, and what the thread brings later is not taken for anything."""
    groups = Groups(database)
    await groups.lookup(5)
    database.behaviour = database.hang
    mock_clock.jump(GROUPS_LIFE)
    assert await lookup_in(groups, 5, mock_clock, TIME_LIMIT) == {5, 50}
    assert "reason=no answer in 10 s" in caplog.text
    database.released.set()
    await lane_is_empty(Lane.IDENTITY)
    assert groups.nowait(5) == frozenset({5, 50})


async def test_hanging_lookups_hold_up_nothing_else(mock_clock: MockClock, database: Database) -> None:
    """When all threads of the lane hang, other users wait their time and no longer, and disks are served by threads of their own."""
    database.behaviour = database.hang
    groups = Groups(database)
    found: list[frozenset[int]] = []

    async def ask(uid: int) -> None:
        found.append(await groups.lookup(uid))

    async with trio.open_nursery() as nursery:
        for uid in range(50):
            nursery.start_soon(ask, uid)
        await wait_all_tasks_blocked()
        assert threads.busy()["identity"] == Lane.IDENTITY.value
        assert await threads.run(Lane.DISK, lambda: "served") == "served"
        assert await threads.run(Lane.TABLES, lambda: "served") == "served"
        mock_clock.jump(TIME_LIMIT)
    assert found == [frozenset()] * 50
    assert database.asked <= Lane.IDENTITY.value
    assert threads.busy()["identity"] == Lane.IDENTITY.value  # they hang on, and no more are added
    database.behaviour = database.answer
    mock_clock.jump(GROUPS_LIFE)
    assert await lookup_in(groups, 99, mock_clock, TIME_LIMIT) == frozenset()
    database.released.set()
    await lane_is_empty(Lane.IDENTITY)
    assert await groups.lookup(100) == {5, 50}


async def test_a_slow_answer_is_as_old_as_its_question(mock_clock: MockClock, database: Database) -> None:
    """Who waited for it gets it; it is believed for ten seconds from the question, for the group may have been left right after that."""
    groups = Groups(database)

    def slowly(uid: int) -> frozenset[int] | None:
        trio.from_thread.run_sync(mock_clock.jump, 9.0)
        return frozenset({50})

    database.behaviour = slowly
    assert await groups.lookup(5) == groups.nowait(5) == frozenset({50})
    mock_clock.jump(1.0)
    assert groups.nowait(5) is None
