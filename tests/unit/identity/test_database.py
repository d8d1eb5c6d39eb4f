"""Tests of what the host's user database says."""

import ctypes
import os
import pwd
from typing import Any

import pytest

from imagefs.identity import database
from imagefs.identity.database import GROUPS_LIMIT, ask_database, group_list


@pytest.mark.parametrize("user", pwd.getpwall(), ids=lambda user: user.pw_name)
def test_groups_are_those_that_libc_gives(user: pwd.struct_passwd) -> None:
    """Every user of this host has the groups that os.getgrouplist finds, also if the first list has too little room."""
    expected = frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
    assert group_list(user.pw_name, user.pw_gid) == expected == group_list(user.pw_name, user.pw_gid, 1)
    assert ask_database(pwd.getpwnam(user.pw_name).pw_uid) is not None


def test_an_unknown_user_has_no_groups() -> None:
    """A uid of nobody is told apart from a user without groups."""
    uid = next(uid for uid in range(3999999, 5000000) if uid not in {user.pw_uid for user in pwd.getpwall()})
    assert ask_database(uid) is None


class Libc:
    """A libc whose user is in `total` groups; `tells` says whether it tells how many there are when there is too little room."""

    def __init__(self, total: int, *, tells: bool) -> None:
        self.total, self.tells = total, tells
        self.rooms: list[int] = []

    def getgrouplist(self, name: bytes, gid: ctypes.c_uint32, groups: Any, count: Any) -> int:
        room = count._obj.value
        self.rooms.append(room)
        if room < self.total:
            count._obj.value = self.total if self.tells else room
            return -1
        groups[: self.total] = range(self.total)
        count._obj.value = self.total
        return self.total


@pytest.mark.parametrize(("tells", "rooms"), [(True, [64, 1000]), (False, [64, 128, 256, 512, 1024])])
def test_long_lists_are_read_whole(monkeypatch: pytest.MonkeyPatch, tells: bool, rooms: list[int]) -> None:
    """A list is asked for with more room until it fits."""
    libc = Libc(1000, tells=tells)
    monkeypatch.setattr(database, "_libc", libc)
    assert group_list("x", 0) == frozenset(range(1000))
    assert libc.rooms == rooms


@pytest.mark.parametrize("tells", [True, False])
def test_endless_lists_are_a_failure(monkeypatch: pytest.MonkeyPatch, tells: bool) -> None:
    """No process can be in so many groups: the database is wrong."""
    monkeypatch.setattr(database, "_libc", Libc(10 * GROUPS_LIMIT, tells=tells))
    with pytest.raises(OSError, match="more than 65536 groups"):
        group_list("x", 0)
