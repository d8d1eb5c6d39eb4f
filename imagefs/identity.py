"""This module says who is calling: the numbers that the kernel vouches for, and what mode bits allow them.

Only what FUSE says of a caller is trusted. Its supplementary groups are looked up by uid in the user database, not under
/proc/<pid>: a process may be gone or changed by the time it is looked at.
"""

import dataclasses
import functools
import os
import pwd
import stat
import time
from typing import Final

GROUPS_LIFE: Final = 10.0
"""Seconds for which a looked-up list of groups is believed."""


@dataclasses.dataclass(frozen=True, slots=True)
class Caller:
    """One request's caller: user and group ids as seen by the daemon's user namespace, and its umask."""

    uid: int
    gid: int
    umask: int = 0o022

    def groups(self) -> frozenset[int]:
        """Return all groups of the caller: the one it runs with and those the user database gives its uid."""
        return _groups(self.uid, int(time.monotonic() / GROUPS_LIFE)) | {self.gid}


@functools.lru_cache(maxsize=1024)
def _groups(uid: int, _period: int) -> frozenset[int]:
    try:
        user = pwd.getpwuid(uid)
        return frozenset(os.getgrouplist(user.pw_name, user.pw_gid))
    except (KeyError, OSError):
        return frozenset()


def mode_allows(caller: Caller, wanted: int, mode: int, uid: int, gid: int) -> bool:
    """Tell whether the caller may do `wanted` (R_OK | W_OK | X_OK) to an object with this mode, owner and group.

    As the kernel decides it for files without ACLs: root may all but execute a file without any x bit.
    """
    if caller.uid == 0:
        return not wanted & os.X_OK or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if caller.uid == uid:
        bits = mode >> 6
    elif gid in caller.groups():
        bits = mode >> 3
    else:
        bits = mode
    return not wanted & ~bits & 0o7
