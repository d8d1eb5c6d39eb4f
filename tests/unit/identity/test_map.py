"""Tests of who a caller is by the map."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagefs.config import IdentityConfig, MapEntry
from imagefs.errors import ConfigError
from imagefs.identity import map as module
from imagefs.identity.caller import Caller
from imagefs.identity.map import ADMIN, Identity, IdentityMap

DAEMON = 990
USERS = {"root": 0, "alice": 1001, "bob": 1002}
GROUPS = {"kvm": 50, "users": 100}


def mapped(*entries: MapEntry, roles: tuple[str, ...] = (), project: str | None = None) -> IdentityMap:
    config = IdentityConfig(roles, project, entries)
    return IdentityMap(config, DAEMON, "x.toml", uid_of=USERS.__getitem__, gid_of=GROUPS.__getitem__)


def who(*roles: str, project_id: str | None = None, user_id: str | None = None) -> Identity:
    return Identity(frozenset(roles), project_id, user_id)


def test_without_a_map_root_and_the_daemons_user_are_admin() -> None:
    """They have the role admin and no other; everybody else has the default."""
    found = mapped(roles=("reader",), project="p")
    assert found.identity(Caller(0, 0)) == found.identity(Caller(DAEMON, 5)) == ADMIN == who("admin")
    assert found.identity(Caller(1001, 0)) == who("reader", project_id="p")
    assert set(found.everyone) == {ADMIN, who("reader", project_id="p")}


def test_the_first_entry_that_fits_says_all() -> None:
    """Roles of two projects never meet in one identity, and a later entry adds nothing."""
    found = mapped(
        MapEntry(user="alice", roles=("member", "reader"), project_id="p1", user_id="u1"),
        MapEntry(group="kvm", roles=("admin",), project_id="p2"),
        MapEntry(uid=1001, roles=("other",)),
        MapEntry(gid=100, roles=()),
        roles=("reader",),
        project="p0",
    )
    assert found.identity(Caller(1001, 50)) == who("member", "reader", project_id="p1", user_id="u1")
    assert found.identity(Caller(1002, 7, groups=frozenset({100, 50}))) == who("admin", project_id="p2")
    assert found.identity(Caller(1002, 100)) == who()
    assert found.identity(Caller(1002, 7)) == who("reader", project_id="p0")


@pytest.mark.parametrize("entry", [MapEntry(user="root", roles=("reader",)), MapEntry(uid=0, roles=("reader",)), MapEntry(gid=0, roles=("reader",))])
def test_an_entry_that_fits_root_is_what_root_is(entry: MapEntry) -> None:
    """Root is admin only if nothing else is said of it, by its name, its uid or a group."""
    assert mapped(entry).identity(Caller(0, 0)) == who("reader")
    assert mapped(entry).identity(Caller(DAEMON, 7)) == ADMIN


def test_admin_is_nobody_when_the_map_names_both() -> None:
    """With root and the daemon's user mapped there is no caller left who is admin without being told."""
    found = mapped(MapEntry(user="root", roles=("reader",)), MapEntry(uid=DAEMON, roles=("reader",)))
    assert set(found.everyone) == {who("reader"), who()}


def test_unknown_names_are_refused_together() -> None:
    """Every user and group that this host does not know is a mistake with its key."""
    with pytest.raises(ConfigError) as caught:
        mapped(MapEntry(user="carol", roles=()), MapEntry(user="bob", roles=()), MapEntry(group="wheel", roles=()))
    assert caught.value.source == "x.toml"
    assert caught.value.mistakes == [
        "identity.map[1].user: there is no user 'carol' on this host: create it, or remove the entry",
        "identity.map[3].group: there is no group 'wheel' on this host: create it, or remove the entry",
    ]


def test_names_are_this_hosts() -> None:
    """Without other sources the host's own user database resolves names."""
    config = IdentityConfig(map=(MapEntry(user="root", roles=("reader",)), MapEntry(group="root", roles=("other",))))
    found = IdentityMap(config, DAEMON, "x.toml")
    assert [found.identity(Caller(uid, 0)) for uid in (0, 1)] == [who("reader"), who("other")]


def test_hints_name_what_was_hardly_meant() -> None:
    """Entries that see or list nothing, that are never reached, and that a silent user database turns into more."""
    found = mapped(
        MapEntry(user="alice", roles=("member",)),
        MapEntry(uid=1001, roles=("member", "reader")),
        MapEntry(group="kvm", roles=("member", "admin", "reader")),
        MapEntry(gid=50, roles=("member", "reader")),
        MapEntry(user="bob", roles=()),
        roles=("member",),
    )
    assert [hint.split(":")[0] for hint in found.hints] == [
        "identity.map[1].roles",
        "identity.map[2] is never used",
        "identity.map[4] is never used",
        "identity.default_roles",
    ]
    assert "add reader" in found.hints[0]
    assert "identity.map[1] is for the same user" in found.hints[1]
    assert "identity.map[3] is for the same group" in found.hints[2]
    assert mapped(roles=("reader",)).hints == ()
    (hint,) = mapped(MapEntry(group="kvm", roles=()), roles=("reader",), project="p0").hints
    assert "identity.map[1] gives less than identity.default_roles" in hint
    assert mapped(MapEntry(group="kvm", roles=("member", "reader"), project_id="p"), roles=("reader",), project="p0").hints == ()


def test_remembered_callers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many callers come, few are remembered; the answer stays the same."""
    monkeypatch.setattr(module, "KNOWN_LIMIT", 3)
    found = mapped(MapEntry(uid=5, roles=("reader",)))
    for _ in range(2):
        assert [found.identity(Caller(uid, 7)) == who("reader") for uid in range(1, 11)] == [uid == 5 for uid in range(1, 11)]
        assert len(found._known) <= 3


ids = st.integers(0, 4)
roles = st.lists(st.sampled_from(["admin", "member", "reader"]), unique=True).map(tuple)
entries = st.lists(
    st.one_of(
        st.builds(MapEntry, uid=ids, roles=roles, project_id=st.sampled_from(["p", "q"])),
        st.builds(MapEntry, gid=ids, roles=roles, user_id=st.sampled_from(["u", None])),
        st.builds(MapEntry, user=st.sampled_from(sorted(USERS)), roles=roles),
        st.builds(MapEntry, group=st.sampled_from(sorted(GROUPS)), roles=roles),
    ),
    max_size=6,
)
numbers = st.one_of(ids, st.sampled_from([DAEMON, *USERS.values(), *GROUPS.values()]))
callers = st.builds(Caller, uid=numbers, gid=numbers, umask=st.sampled_from([0, 0o77]), groups=st.frozensets(numbers, max_size=4))


@given(entries, roles, st.lists(callers, max_size=8))
def test_identity_is_that_of_the_first_match_and_among_everyones(map_entries: list[MapEntry], default: tuple[str, ...], asking: list[Caller]) -> None:
    """For any map and any callers, in any order, the answer is the first entry's that names the caller, else admin's or the default."""
    found = mapped(*map_entries, roles=default, project="p0")
    for caller in asking:
        expected = ADMIN if caller.uid in (0, DAEMON) else Identity(frozenset(default), "p0")
        for entry in map_entries:
            uid = USERS[entry.user] if entry.user is not None else entry.uid
            gid = GROUPS[entry.group] if entry.group is not None else entry.gid
            if (uid is not None and caller.uid == uid) or (gid is not None and (caller.gid == gid or gid in caller.groups)):
                expected = Identity(frozenset(entry.roles), entry.project_id, entry.user_id)
                break
        assert found.identity(caller) == expected
        assert expected in found.everyone
    assert len(set(found.everyone)) == len(found.everyone)
