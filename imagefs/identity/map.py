"""This module maps callers to identities: the project, the user and the roles that Glance's policies and property protections speak of.

The first entry of the map that fits a caller says all of it. Entries are never merged: a role in one project must not count in another.
"""

import dataclasses
import grp
import pwd
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from imagefs.config import IdentityConfig, MapEntry
from imagefs.errors import ConfigError
from imagefs.identity.caller import Caller

KNOWN_LIMIT: Final = 4096
"""Callers whose identity is remembered; it takes a walk through the map to find it again."""


@dataclasses.dataclass(frozen=True, slots=True)
class Identity:
    """Who a caller is for policies and protections. Two callers with the same identity see and may do the same."""

    roles: frozenset[str] = frozenset()
    """In lower case, as Glance's context has them."""
    project_id: str | None = None
    user_id: str | None = None


ADMIN: Final = Identity(frozenset({"admin"}))
"""Root and the user who runs the daemon, unless the map says otherwise."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the map: for the caller with `uid`, or for all who are in group `gid`. The other one is None."""

    key: str
    """Where it stands in the configuration, for messages."""
    uid: int | None
    gid: int | None
    identity: Identity

    def fits(self, caller: Caller) -> bool:
        """Tell whether the entry is for this caller."""
        return caller.uid == self.uid or self.gid in caller.groups


class IdentityMap:
    """The map of one mount. It never changes: who is who is fixed when the mount is made."""

    def __init__(
        self,
        config: IdentityConfig,
        uid: int,
        source: str,
        *,
        uid_of: Callable[[str], int] = lambda name: pwd.getpwnam(name).pw_uid,
        gid_of: Callable[[str], int] = lambda name: grp.getgrnam(name).gr_gid,
    ) -> None:
        """Resolve the map's names with `uid_of` and `gid_of`, which raise KeyError for an unknown one. Blocks.

        `uid` is that of the user who runs the daemon, `source` the file that the configuration is from, for messages.
        Raises ConfigError with every unknown name and its key.
        """
        self._uid = uid
        self._default = Identity(frozenset(config.default_roles), config.default_project)
        self._entries = _resolved(config.map, source, uid_of, gid_of)
        self._known: dict[tuple[int, frozenset[int]], Identity] = {}
        self.hints = tuple(_hints(self._entries, self._default))
        """What is allowed and probably not meant, for the log: one line each, with its key."""

    @property
    def everyone(self) -> tuple[Identity, ...]:
        """All identities that any caller can have, each of them once."""
        named = {entry.uid for entry in self._entries}
        unnamed = [self._default] if {0, self._uid} <= named else [self._default, ADMIN]
        return tuple(dict.fromkeys([*(entry.identity for entry in self._entries), *unnamed]))

    def identity(self, caller: Caller) -> Identity:
        """Return who the caller is: a matter of its uid and groups only. Never waits."""
        key = (caller.uid, caller.groups)
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= KNOWN_LIMIT:
                self._known.clear()
            found = self._known[key] = self._first_match(caller)
        return found

    def _first_match(self, caller: Caller) -> Identity:
        unmapped = ADMIN if caller.uid in (0, self._uid) else self._default
        return next((entry.identity for entry in self._entries if entry.fits(caller)), unmapped)


def _resolved(entries: Iterable[MapEntry], source: str, uid_of: Callable[[str], int], gid_of: Callable[[str], int]) -> tuple[Entry, ...]:
    """Return the entries with numbers for names. Raises ConfigError."""
    found: list[Entry] = []
    mistakes: list[str] = []
    for number, entry in enumerate(entries, 1):
        key = f"identity.map[{number}]"
        identity = Identity(frozenset(entry.roles), entry.project_id, entry.user_id)
        try:
            uid = entry.uid if entry.user is None else uid_of(entry.user)
            gid = entry.gid if entry.group is None else gid_of(entry.group)
        except KeyError:
            kind, name = ("user", entry.user) if entry.user is not None else ("group", entry.group)
            mistakes.append(f"{key}.{kind}: there is no {kind} '{name}' on this host: create it, or remove the entry")
        else:
            found.append(Entry(key, uid, gid, identity))
    if mistakes:
        raise ConfigError(source, mistakes)
    return tuple(found)


def _hints(entries: Iterable[Entry], default: Identity) -> Iterator[str]:
    """Say what the map allows and its author may not have meant."""
    first: dict[tuple[int | None, int | None], str] = {}
    for entry in entries:
        before = first.setdefault((entry.uid, entry.gid), entry.key)
        if before != entry.key:
            yield f"{entry.key} is never used: {before} is for the same {'user' if entry.gid is None else 'group'}, and the first one counts"
        if _is_blind(entry.identity):
            yield f"{entry.key}.roles: {_BLIND}"
        if entry.gid is not None and not default.roles <= entry.identity.roles:
            yield (
                f"{entry.key} gives less than identity.default_roles, which members of the group have as long as the user database does not answer: "
                "leave those roles out of default_roles, or map users"
            )
    if _is_blind(default):
        yield f"identity.default_roles: {_BLIND}"


_BLIND: Final = "has member and not reader, and no role contains another here: Glance's own policies then show no image: add reader"


def _is_blind(identity: Identity) -> bool:
    return "member" in identity.roles and not identity.roles & {"reader", "admin"}
