"""This module says who is calling: the numbers that the kernel vouches for, the caller's groups, and what mode bits allow it.

Nothing else is believed: not /proc/<pid>, since a process may be gone or changed by the time it is looked at, and not its environment.
A request names one group of its caller; the user database knows them all. That database may be across the network, so it is asked
in threads of their own, one question at a time for each user, and what it said is believed for ten seconds. Then the next request
waits for a new answer, so that leaving a group takes effect. If there is none, the last answer goes on to count for a while.
"""

import dataclasses
import logging
import os
import stat
from collections.abc import Callable
from typing import Final

import trio

from imagefs.identity.database import ask_database
from imagefs.threads import Lane, run

log = logging.getLogger(__name__)

GROUPS_LIFE: Final = 10.0
"""Seconds for which an answer is believed, from when the question was asked; and how long a failure is left alone."""
TIME_LIMIT: Final = 10.0
"""Seconds after which a lookup has failed."""
LAST_KNOWN_LIFE: Final = 600.0
"""Seconds for which an answer counts as long as newer lookups fail."""
USERS_LIMIT: Final = 4096
"""Users whose groups are kept; then those asked about longest ago go."""

AskDatabase = Callable[[int], frozenset[int] | None]
"""Returns the groups of a uid, or None if there is no such user. Blocks. May raise anything."""


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """One request's caller: user and group ids as seen by the daemon's user namespace, its umask, and all groups it is in.

    `groups` always has `gid`. The rest is what the user database says (see `Groups`): a request names one group only.
    """

    uid: int
    gid: int
    umask: int = 0o022
    groups: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        if self.gid not in self.groups:
            object.__setattr__(self, "groups", self.groups | {self.gid})


def mode_allows(caller: Caller, wanted: int, mode: int, uid: int, gid: int) -> bool:
    """Tell whether the caller may do `wanted` (R_OK | W_OK | X_OK) to an object with this mode, owner and group.

    As the kernel decides it for files without ACLs: root may all but execute a file without any x bit.
    """
    if caller.uid == 0:
        return not wanted & os.X_OK or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if caller.uid == uid:
        bits = mode >> 6
    elif gid in caller.groups:
        bits = mode >> 3
    else:
        bits = mode
    return not wanted & ~bits & 0o7


@dataclasses.dataclass(frozen=True, slots=True)
class _Answer:
    """The groups that count until `until`; the database said so at `asked`. Both are seconds of trio's clock."""

    groups: frozenset[int]
    asked: float
    until: float


class _Lookup:
    """A lookup under way. `groups` is None if it was cancelled before it came to anything."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.groups: frozenset[int] | None = None


class Groups:
    """The groups of at most `USERS_LIMIT` users. Belongs to the event loop."""

    def __init__(self, ask: AskDatabase = ask_database) -> None:
        """`ask` is called in threads."""
        self._ask = ask
        self._answers: dict[int, _Answer] = {}
        self._under_way: dict[int, _Lookup] = {}

    def nowait(self, uid: int) -> frozenset[int] | None:
        """Return a user's groups if they are known and still believed, else None: then `lookup` has to be awaited."""
        answer = self._answers.get(uid)
        return answer.groups if answer is not None and trio.current_time() < answer.until else None

    def until(self, uid: int) -> float:
        """Return when what is known of a user's groups stops being believed, in seconds of trio's clock; 0 if nothing is known."""
        answer = self._answers.get(uid)
        return answer.until if answer is not None else 0.0

    async def lookup(self, uid: int) -> frozenset[int]:
        """Return a user's groups; empty for a user that is not known. Takes at most about `TIME_LIMIT` seconds, and never fails.

        All who ask about one user at the same time wait for the same lookup; if its first asker is cancelled, the next one starts over.
        """
        while (groups := self.nowait(uid)) is None:
            under_way = self._under_way.get(uid)
            if under_way is None:
                return await self._renew(uid)
            await under_way.done.wait()
            if under_way.groups is not None:  # it is right for who waited, however little of its life is left
                return under_way.groups
        return groups

    async def _renew(self, uid: int) -> frozenset[int]:
        lookup = self._under_way[uid] = _Lookup()
        try:
            answer = await self._answer(uid)
            self._keep(uid, answer)
            lookup.groups = answer.groups
        finally:
            del self._under_way[uid]
            lookup.done.set()
        return answer.groups

    async def _answer(self, uid: int) -> _Answer:
        """Ask the database, and return its answer or what takes the place of one."""
        asked = trio.current_time()
        found: frozenset[int] | None = None
        reason = f"no answer in {TIME_LIMIT:.0f} s"
        failed = True
        with trio.move_on_after(TIME_LIMIT):  # waiting for a free thread is part of it: hung lookups may hold them all
            try:
                found = await run(Lane.IDENTITY, self._ask, uid)
            except Exception as error:  # the host's plugins for user databases are foreign code
                reason = f"{type(error).__name__}: {error}"
            else:
                reason = "no such user any more"
                failed = False
        return self._judged(uid, asked, found, reason, failed=failed)

    def _judged(self, uid: int, asked: float, found: frozenset[int] | None, reason: str, *, failed: bool) -> _Answer:
        """Return what follows from a lookup that began at `asked` and `found` groups or, for the `reason`, none."""
        if found is not None:
            return _Answer(found, asked, asked + GROUPS_LIFE)
        now = trio.current_time()
        last = self._answers.get(uid)
        if last is not None and last.groups and now < last.asked + LAST_KNOWN_LIFE:
            # libc says "no such user" as well when it cannot reach the database. Nobody gets more by this than the kernel
            # itself grants: a process keeps its groups when its user is removed.
            log.warning("the user database fails; a user's last known groups go on to count uid=%d reason=%s", uid, reason)
            return _Answer(last.groups, last.asked, min(now + GROUPS_LIFE, last.asked + LAST_KNOWN_LIFE))
        if failed:
            log.warning("the user database fails; a user counts as being in no group but the one it runs with uid=%d reason=%s", uid, reason)
        return _Answer(frozenset(), asked, now + GROUPS_LIFE)

    def _keep(self, uid: int, answer: _Answer) -> None:
        self._answers.pop(uid, None)
        self._answers[uid] = answer  # at the end: the first ones are those asked about longest ago
        while len(self._answers) > USERS_LIMIT:
            del self._answers[next(iter(self._answers))]


class Callers:
    """Makes callers out of what requests say, the same object for as long as its groups are believed. Belongs to the event loop."""

    def __init__(self, groups: Groups) -> None:
        """Take the groups of users."""
        self._groups = groups
        self._known: dict[tuple[int, int, int], tuple[Caller, float]] = {}

    def nowait(self, uid: int, gid: int, umask: int) -> Caller | None:
        """Return the caller if its groups are known, else None: then `find` has to be awaited."""
        known = self._known.get((uid, gid, umask))
        return known[0] if known is not None and trio.current_time() < known[1] else None

    async def find(self, uid: int, gid: int, umask: int) -> Caller:
        """Return the caller, with its groups as the user database has them, which other requests do not wait for."""
        groups = await self._groups.lookup(uid)
        caller = Caller(uid, gid, umask, groups)
        if len(self._known) >= USERS_LIMIT:
            self._known.clear()
        self._known[uid, gid, umask] = (caller, self._groups.until(uid))
        return caller
