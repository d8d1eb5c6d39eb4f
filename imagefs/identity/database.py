"""This module asks the host's user database which groups a user is in."""

import ctypes
import os
import pwd
from typing import Final

GROUPS_LIMIT: Final = 65536
"""The kernel's NGROUPS_MAX: no process is in more groups."""
_FIRST_ROOM: Final = 64
"""Groups that nearly every user's list has room in, so that libc is called once."""

# os.getgrouplist holds the interpreter's lock while it waits, and with it every thread of the daemon (tried with 3.11: a directory
# service that took 3 s stopped all of them for 3 s). A call by ctypes gives it back.
_libc: Final = ctypes.CDLL(None)


def ask_database(uid: int) -> frozenset[int] | None:
    """Return the groups that the user database gives a uid, its primary one included, or None if there is no such user.

    Blocks, for as long as a directory service behind the database does, without holding up other threads. Raises OSError.
    """
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return None
    return group_list(user.pw_name, user.pw_gid)


def group_list(name: str, gid: int, room: int = _FIRST_ROOM) -> frozenset[int]:
    """Return all groups of a user whose primary group is `gid`; `room` is how many are asked for at first. Blocks. Raises OSError."""
    while room <= GROUPS_LIMIT:
        groups = (ctypes.c_uint32 * room)()
        count = ctypes.c_int(room)
        if _libc.getgrouplist(os.fsencode(name), ctypes.c_uint32(gid), groups, ctypes.byref(count)) >= 0:
            return frozenset(groups[: count.value])
        room = count.value if count.value > room else 2 * room  # it says how many there are; there may be more by now
    raise OSError(f"user {name} is in more than {GROUPS_LIMIT} groups")
