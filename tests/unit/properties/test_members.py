"""Tests of who adds, changes and removes members of an image."""

import pytest

from imagefs.errors import AlreadyExists, ImagefsError, InvalidInput, NoAttribute, NotPermitted, QuotaExceeded
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.core import MEMBER_LIMIT
from imagefs.properties.policy import Policies
from imagefs.store.record import ImageRecord
from tests.support.access import ADMIN, NOBODY, OWNER, READER, STRANGER, Table, image, open_access

DEFAULT = Access(Policies.of({}), Table())
SHARED = image({"p": "1"}, {"stranger": "pending", "third": "accepted"})


def outcome(
    value: bytes | None,
    identity: Identity = OWNER,
    project: str = "stranger",
    record: ImageRecord = SHARED,
    mode: Mode = Mode.SET,
    access: Access = DEFAULT,
) -> dict[str, str] | type[ImagefsError]:
    """Return the members by status after a write, or a removal if the value is None; else the kind of the refusal."""
    name = f"imagefs.member.{project}"
    try:
        changed = remove_attribute(record, name, identity, access) if value is None else set_attribute(record, name, value, mode, identity, access)
    except ImagefsError as error:
        return type(error)
    assert (changed.properties, changed.visibility) == (record.properties, record.visibility)
    return {member.project_id: member.status for member in changed.members}


AS_IT_WAS = {"stranger": "pending", "third": "accepted"}
ADDED = AS_IT_WAS | {"new": "pending"}


@pytest.mark.parametrize(
    ("identity", "project", "value", "wanted"),
    [
        (OWNER, "new", b"pending", ADDED),
        (OWNER, "new", b"pending\n", ADDED),
        (OWNER, "new", b"accepted", NotPermitted),
        (OWNER, "stranger", b"accepted", NotPermitted),
        (OWNER, "stranger", b"pending", AS_IT_WAS),
        (OWNER, "third", b"pending", NotPermitted),
        (OWNER, "third", None, {"stranger": "pending"}),
        (OWNER, "new", None, NoAttribute),
        (ADMIN, "new", b"accepted", AS_IT_WAS | {"new": "accepted"}),
        (ADMIN, "stranger", b"rejected", AS_IT_WAS | {"stranger": "rejected"}),
        (ADMIN, "third", None, {"stranger": "pending"}),
        (READER, "new", b"pending", NotPermitted),
        (READER, "stranger", b"accepted", NotPermitted),
        (READER, "stranger", b"pending", NotPermitted),
        (READER, "stranger", None, NotPermitted),
        (STRANGER, "stranger", b"accepted", AS_IT_WAS | {"stranger": "accepted"}),
        (STRANGER, "stranger", b"rejected", AS_IT_WAS | {"stranger": "rejected"}),
        (STRANGER, "stranger", b"pending", AS_IT_WAS),
        (STRANGER, "stranger", None, NotPermitted),
        (STRANGER, "third", b"rejected", NotPermitted),
        (STRANGER, "third", None, NoAttribute),
        (STRANGER, "new", b"pending", NotPermitted),
        (STRANGER, "new", None, NoAttribute),
    ],
)
def test_default_policies(identity: Identity, project: str, value: bytes | None, wanted: dict[str, str] | type[ImagefsError]) -> None:
    """The owner adds and removes, a member accepts and rejects for itself, admin may all; a membership of another project is not there."""
    assert outcome(value, identity, project) == wanted


@pytest.mark.parametrize(
    ("mode", "project", "wanted"),
    [
        (Mode.CREATE, "stranger", AlreadyExists),
        (Mode.CREATE, "new", ADDED),
        (Mode.REPLACE, "stranger", AS_IT_WAS),
        (Mode.REPLACE, "new", NoAttribute),
    ],
)
def test_modes(mode: Mode, project: str, wanted: dict[str, str] | type[ImagefsError]) -> None:
    """CREATE wants no membership, REPLACE wants one."""
    assert outcome(b"pending", project=project, mode=mode) == wanted


@pytest.mark.parametrize("mode", [Mode.SET, Mode.CREATE, Mode.REPLACE])
def test_a_member_cannot_find_out_the_others(mode: Mode) -> None:
    """What is said of another project is the same whether it is a member or not."""
    words = set()
    for record in (SHARED, image({"p": "1"}, {"stranger": "pending"})):
        with pytest.raises((NotPermitted, NoAttribute)) as written:
            set_attribute(record, "imagefs.member.third", b"accepted", mode, STRANGER, DEFAULT)
        with pytest.raises(NoAttribute) as removed:
            remove_attribute(record, "imagefs.member.third", STRANGER, DEFAULT)
        words.add((str(written.value), str(removed.value)))
    assert len(words) == 1


@pytest.mark.parametrize("visibility", ["public", "private", "community"])
def test_only_shared_images_have_members(visibility: str) -> None:
    """Members that are left from before can be neither changed nor removed, by admin neither."""
    record = image(members={"stranger": "pending"}, visibility=visibility)
    for identity in (OWNER, ADMIN):
        assert outcome(b"pending", identity, "new", record) is NotPermitted
        assert outcome(None, identity, "stranger", record) is NotPermitted


@pytest.mark.parametrize("value", [b"", b"Accepted", b"queued", b"\xff", b"pending\n\n", b"x" * 100])
def test_statuses_that_are_none(value: bytes) -> None:
    """They are invalid, also for who may do everything."""
    assert outcome(value, ADMIN, "new") is InvalidInput
    assert outcome(value, ADMIN, "stranger") is InvalidInput


@pytest.mark.parametrize("project", ["", "p" * 256, "\udcff"])
def test_projects_that_are_none(project: str) -> None:
    """A project has 1 to 255 characters of UTF-8."""
    assert outcome(b"pending", ADMIN, project) is InvalidInput
    assert outcome(None, ADMIN, project) is NoAttribute


def test_quota() -> None:
    """128 members, and one more is refused; those that are there still change."""
    full = image(members={f"m{number}": "pending" for number in range(MEMBER_LIMIT)})
    assert outcome(b"pending", project="new", record=full) is QuotaExceeded
    changed = outcome(b"accepted", ADMIN, "m5", full)
    assert isinstance(changed, dict)
    assert changed["m5"] == "accepted"
    assert len(changed) == MEMBER_LIMIT


@pytest.mark.parametrize(
    ("refused", "value", "project"),
    [
        ("add_member", b"pending", "new"),
        ("modify_member", b"accepted", "new"),
        ("modify_member", b"accepted", "stranger"),
        ("delete_member", None, "stranger"),
    ],
)
def test_each_policy_has_its_say(refused: str, value: bytes | None, project: str) -> None:
    """With everything else allowed, the one policy decides."""
    assert outcome(value, project=project, access=open_access(refused)) is NotPermitted
    assert isinstance(outcome(value, project=project, access=open_access()), dict)


def test_policies_do_not_let_strangers_add_members() -> None:
    """Whatever add_member says, who is neither owner nor admin adds nobody: neither a member nor a caller without project."""
    assert outcome(b"pending", STRANGER, "new", access=open_access()) is NotPermitted
    ownerless = image(owner=None, members={"stranger": "pending"})
    assert outcome(b"pending", NOBODY, "new", ownerless, access=open_access()) is NotPermitted
    assert outcome(b"accepted", NOBODY, "stranger", ownerless, access=open_access()) is NotPermitted


def test_who_cannot_read_memberships_does_not_overwrite_them() -> None:
    """Without get_member, adding somebody who is a member already is refused and not done again."""
    access = open_access("get_member")
    assert outcome(b"pending", project="new", access=access) == ADDED
    assert outcome(b"pending", project="third", access=access) is NotPermitted
    assert outcome(None, project="third", access=access) is NoAttribute


def test_nothing_changed_is_the_record_itself() -> None:
    """So that a store writes nothing."""
    assert set_attribute(SHARED, "imagefs.member.stranger", b"pending", Mode.SET, OWNER, DEFAULT) is SHARED
