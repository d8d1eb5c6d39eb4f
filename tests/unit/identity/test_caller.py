"""Tests of callers: their groups, and what mode bits allow them."""

import os
import threading

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from imagefs.identity import caller as module
from imagefs.identity.caller import GROUPS_LIFE, Caller, Groups, mode_allows
from imagefs.threads import Lane
from tests.support.lanes import lane_is_empty

DIRECTORY, FILE = 0o040000, 0o100000


class Database:
    """A user database to ask, whose answers a test sets; `asked` has every uid it was asked for."""

    def __init__(self, **groups: set[int]) -> None:
        self.groups = {int(name.removeprefix("u")): found for name, found in groups.items()}
        self.asked: list[int] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, uid: int) -> frozenset[int] | None:
        self.asked.append(uid)
        self.open.wait()
        found = self.groups.get(uid)
        return None if found is None else frozenset(found)


@pytest.mark.parametrize(
    ("uid", "gid", "wanted", "mode", "allowed"),
    [
        (1000, 1000, os.R_OK, FILE | 0o400, True),
        (1000, 1000, os.W_OK, FILE | 0o400, False),
        (1000, 1000, os.R_OK, FILE | 0o044, False),  # the owner has the owner's bits only, even if others have more
        (2000, 1000, os.R_OK, FILE | 0o040, True),
        (2000, 1000, os.R_OK, FILE | 0o404, False),
        (2000, 2000, os.R_OK, FILE | 0o004, True),
        (2000, 2000, os.R_OK | os.W_OK, FILE | 0o004, False),
        (0, 0, os.R_OK | os.W_OK, FILE | 0o000, True),
        (0, 0, os.X_OK, FILE | 0o666, False),
        (0, 0, os.X_OK, DIRECTORY | 0o000, True),
    ],
)
def test_mode_allows_as_the_kernel_does(uid: int, gid: int, wanted: int, mode: int, allowed: bool) -> None:
    """For an object of uid 1000 and gid 1000, the answer is the kernel's."""
    assert mode_allows(Caller(uid, gid), wanted, mode, 1000, 1000) is allowed


def test_any_group_of_the_caller_counts() -> None:
    """The group of an object may be a supplementary one of the caller."""
    assert mode_allows(Caller(2000, 2000, groups=frozenset({5, 1000})), os.R_OK, FILE | 0o040, 1000, 1000)


def test_groups_have_the_callers_own() -> None:
    """The group a caller runs with counts besides those that are given; if it is among them they are taken as they are."""
    given = frozenset({7, 8})
    assert Caller(1, 7).groups == {7}
    assert Caller(1, 9, groups=given).groups == {7, 8, 9}
    assert Caller(1, 7, groups=given).groups is given
    assert Caller(1, 9, groups=given) == Caller(1, 9, groups=frozenset({7, 8, 9}))


async def test_an_answer_is_believed_for_ten_seconds(mock_clock: MockClock) -> None:
    """Then the next caller waits for a new one, so that who has left a group is out of it."""
    database = Database(u5={5, 50})
    groups = Groups(database)
    assert groups.nowait(5) is None
    assert await groups.lookup(5) == {5, 50}
    database.groups[5] = {5}
    mock_clock.jump(GROUPS_LIFE - 0.001)
    assert groups.nowait(5) == await groups.lookup(5) == frozenset({5, 50})
    mock_clock.jump(0.001)
    assert groups.nowait(5) is None
    assert await groups.lookup(5) == groups.nowait(5) == frozenset({5})
    assert database.asked == [5, 5]


@pytest.mark.usefixtures("mock_clock")
async def test_who_is_not_in_the_database_is_in_no_group(caplog: pytest.LogCaptureFixture) -> None:
    """That is an answer as any other: nothing to warn of, and not to be asked again at once."""
    database = Database()
    groups = Groups(database)
    assert await groups.lookup(123456) == frozenset() == await groups.lookup(123456)
    assert database.asked == [123456]
    assert not caplog.records


@pytest.mark.usefixtures("mock_clock")
async def test_all_who_wait_share_one_lookup_and_others_have_their_own() -> None:
    """A hundred requests of one user are one question; another user's is asked beside it, and the event loop goes on."""
    database = Database(u5={50}, u6={60})
    database.open.clear()
    groups = Groups(database)
    found: list[frozenset[int]] = []

    async def ask(uid: int) -> None:
        found.append(await groups.lookup(uid))

    async with trio.open_nursery() as nursery:
        for uid in [5] * 100 + [6]:
            nursery.start_soon(ask, uid)
        await wait_all_tasks_blocked()
        assert found == []
        database.open.set()
    assert sorted(database.asked) == [5, 6]
    assert found.count(frozenset({50})) == 100


@pytest.mark.usefixtures("mock_clock")
async def test_a_cancelled_asker_leaves_the_others_with_a_lookup() -> None:
    """If the request that began the lookup goes away, the next one that waits begins another."""
    database = Database(u5={50})
    database.open.clear()
    groups = Groups(database)
    found: list[frozenset[int]] = []
    first = trio.CancelScope()

    async def ask(scope: trio.CancelScope) -> None:
        with scope:
            found.append(await groups.lookup(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(ask, trio.CancelScope())
        nursery.start_soon(ask, trio.CancelScope())
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        database.open.set()
    await lane_is_empty(Lane.IDENTITY)
    assert found == [{50}, {50}]
    assert database.asked == [5, 5]


@pytest.mark.usefixtures("mock_clock")
async def test_no_more_users_are_kept_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those whose groups were asked for longest ago make room."""
    monkeypatch.setattr(module, "USERS_LIMIT", 2)
    groups = Groups(Database(u1={1}, u2={2}, u3={3}))
    for uid in (1, 2, 3):
        await groups.lookup(uid)
    assert [groups.nowait(uid) for uid in (1, 2, 3)] == [None, {2}, {3}]
