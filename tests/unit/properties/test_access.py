"""Tests of what an identity may see and do, with Glance's default policies."""

import threading

import pytest

from imagefs.errors import Denied, NotFound
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.policy import Policies
from imagefs.store.record import Member
from tests.support.access import ADMIN, NOBODY, OWNER, READER, STRANGER, Table, denied, image, open_access

DEFAULT = Access(Policies.of({}), Table())
ROLELESS = Identity(frozenset(), "owner")


@pytest.mark.parametrize(
    ("identity", "sees", "downloads", "modifies"),
    [
        (OWNER, True, True, True),
        (READER, True, False, False),
        (ADMIN, True, True, True),
        (STRANGER, False, False, False),
        (ROLELESS, False, False, False),
    ],
)
def test_default_policies_decide_on_a_private_image(identity: Identity, sees: bool, downloads: bool, modifies: bool) -> None:
    """A reader of the project sees it, a member reads and changes it, admin may all, and nobody else knows that it exists."""
    record = image(visibility="private")
    assert DEFAULT.sees(identity, record) is sees
    assert DEFAULT.lists(identity, record) is sees
    assert (DEFAULT.allows("modify_image", identity, record) and DEFAULT.mutable(identity, record)) is modifies
    if downloads:
        DEFAULT.check_download(identity, record)
    else:
        with pytest.raises(Denied if sees else NotFound):
            DEFAULT.check_download(identity, record)


def test_lists_need_sight_too() -> None:
    """A public image is in no list of a caller whom get_image does not allow it."""
    record = image(visibility="public")
    assert DEFAULT.lists(STRANGER, record)
    assert not DEFAULT.lists(ROLELESS, record)
    assert not open_access("get_image").lists(OWNER, record)


def test_may_list_is_get_images() -> None:
    """Readers list, also without a project, as in Glance; callers without roles do not."""
    assert DEFAULT.may_list(READER)
    assert DEFAULT.may_list(ADMIN)
    assert not DEFAULT.may_list(ROLELESS)
    assert DEFAULT.may_list(NOBODY)
    assert DEFAULT.lists(NOBODY, image(visibility="public"))
    assert not DEFAULT.lists(NOBODY, image(visibility="private", owner=None))


def test_pending_members_see_and_do_not_list() -> None:
    """The status of a membership decides about lists only."""
    record = image(members={"stranger": "pending"})
    assert DEFAULT.sees(STRANGER, record)
    assert not DEFAULT.lists(STRANGER, record)
    assert DEFAULT.lists(STRANGER, record, member_status="pending")
    assert DEFAULT.lists(STRANGER, image(os_hidden=True, members={"stranger": "accepted"}), hidden=True)
    DEFAULT.check_download(STRANGER, record)


def test_deactivated_images_are_read_by_admin_only() -> None:
    """The owner is told why; that it exists is no secret."""
    record = image(status="deactivated")
    DEFAULT.check_download(ADMIN, record)
    with pytest.raises(Denied, match="deactivated"):
        DEFAULT.check_download(OWNER, record)
    assert DEFAULT.sees(OWNER, record)


def test_download_denied_names_the_policy() -> None:
    """The reason can be looked up in the policy file."""
    with pytest.raises(Denied, match="policy download_image"):
        open_access("download_image").check_download(OWNER, image())


def test_an_image_that_is_not_seen_is_like_one_that_is_not_there() -> None:
    """The words are the same whatever hides it."""
    messages = set()
    for rules, identity in ((DEFAULT, STRANGER), (open_access("get_image"), OWNER), (DEFAULT, NOBODY)):
        with pytest.raises(NotFound) as refused:
            rules.check_seen(identity, image())
        messages.add(str(refused.value))
    assert len(messages) == 1


def test_readable_leaves_out_what_is_protected_hidden_or_covers_an_attribute() -> None:
    """Protections hold for admin too; a property in a core attribute's place is never shown."""
    record = image({"shown": "1", "secret": "2", "os_glance_hash_op_host": "3", "status": "deleted"})
    rules = open_access(protection=denied("read secret"))
    assert rules.readable(OWNER, record) == rules.readable(ADMIN, record) == {"shown": "1"}


def test_readable_of_an_unprotected_image_is_its_own() -> None:
    """Nothing is copied where nothing is left out."""
    record = image({"a": "1", "b": "2"})
    assert open_access().readable(OWNER, record) is record.properties


def test_policies_see_readable_properties_only() -> None:
    """A policy about a property that the caller cannot read finds nothing, so a check on it is false."""
    policies = Policies.of({"download_image": "'yes':%(open)s"})
    record = image({"open": "yes"})
    Access(policies, Table()).check_download(OWNER, record)
    with pytest.raises(Denied):
        Access(policies, denied("read open")).check_download(OWNER, record)


def test_owner_and_admin_read_all_memberships_and_a_member_its_own() -> None:
    """Who is neither reads none, and an image that is not shared has none."""
    record = image(members={"stranger": "pending", "third": "accepted"})
    both = (Member("stranger", "pending"), Member("third", "accepted"))
    assert DEFAULT.members(OWNER, record) == DEFAULT.members(ADMIN, record) == DEFAULT.members(READER, record) == both
    assert DEFAULT.members(STRANGER, record) == both[:1]
    assert DEFAULT.members(Identity(frozenset({"reader"}), "fourth"), record) == ()
    assert DEFAULT.members(ROLELESS, record) == ()
    assert not DEFAULT.may_see_members(OWNER, image(visibility="private", members={"stranger": "pending"}))
    assert DEFAULT.members(OWNER, image(visibility="private", members={"stranger": "pending"})) == ()


@pytest.mark.parametrize("policy", ["get_members", "get_member"])
def test_memberships_need_their_policies(policy: str) -> None:
    """Either policy hides them all."""
    assert open_access(policy).members(OWNER, image(members={"stranger": "pending"})) == ()


def test_one_membership_needs_get_member_only() -> None:
    """As in Glance, where get_members is about the list."""
    record = image(members={"stranger": "pending"})
    assert open_access("get_members").member(OWNER, record, "stranger") == Member("stranger", "pending")
    assert open_access("get_member").member(OWNER, record, "stranger") is None
    assert open_access().member(Identity(frozenset(), "third"), record, "stranger") is None


def test_a_caller_without_a_project_is_nobody_s_member_and_owner() -> None:
    """Even where rules allow everything: an image without owner is seen, and not its own."""
    record = image(owner=None, members={"stranger": "accepted"})
    rules = open_access()
    assert rules.sees(NOBODY, record)
    assert not rules.lists(NOBODY, record)
    assert not rules.mutable(NOBODY, record)
    assert rules.members(NOBODY, record) == ()


def test_threads_share_one_object() -> None:
    """Answers are right while several threads ask."""
    rules = Access(Policies.of({}), denied("read secret"))
    records = [image({"secret": "1", "open": "2"}, id=f"0d5a3e3e-6a4c-4b11-9c6b-{number:012}", owner=f"p{number % 3}") for number in range(30)]
    identities = [Identity(frozenset({"reader"}), f"p{number}") for number in range(3)]
    right: list[bool] = []

    def ask() -> None:
        for record in records * 20:
            for identity in identities:
                right.append(rules.sees(identity, record) is (record.owner == identity.project_id))
                right.append(rules.readable(identity, record) == {"open": "2"})

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(right) == 4 * 30 * 20 * 3 * 2
    assert all(right)
