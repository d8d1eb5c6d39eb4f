"""image add project, remove project and member list, over a mount."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.support.commands import Run
from tests.support.fake_mount import FakeMount, set_attributes

ID = "9f0a2f5c-6f2e-4c0b-9d43-8a1d6c7b9e21"
MEMBERS = json.dumps([{"member_id": "p2", "status": "accepted"}, {"member_id": "p1", "status": "pending"}])


@pytest.fixture
def image(mount: FakeMount) -> Path:
    """A shared image with two members, and the file of its attributes."""
    mount.add_image("debian", ID, visibility="shared", own={"members": MEMBERS})
    return mount.path / "images" / ID


def test_add_makes_a_pending_membership_and_prints_it(run: Run, image: Path) -> None:
    """The project has yet to accept."""
    found = run("image", "add", "project", "debian", "p3", "-f", "json")
    assert json.loads(found.out) == {"image_id": ID, "member_id": "p3", "status": "pending"}
    assert os.getxattr(image, "user.imagefs.member.p3") == b"pending"


def test_a_member_is_not_added_again(run: Run, image: Path) -> None:
    """What it has decided must not be forgotten by that."""
    found = run("image", "add", "project", ID, "p2")
    assert (found.status, found.err.count("\n")) == (1, 1)
    assert "the image is shared with that project already: the share is accepted" in found.err
    assert "user.imagefs.member.p2" not in os.listxattr(image)


def test_add_where_members_are_not_shown(run: Run, mount: FakeMount) -> None:
    """The mount decides, as for any change, and its reason is told."""
    private = mount.add_image("x", visibility="private")
    assert run("image", "add", "project", "x", "p1").status == 0
    assert os.getxattr(mount.path / "images" / private, "user.imagefs.member.p1") == b"pending"


def test_remove_ends_a_membership(run: Run, image: Path) -> None:
    """Nothing is printed; a project that is no member is told."""
    set_attributes(image, {"imagefs.member.p1": "pending"})
    found = run("image", "remove", "project", "debian", "p1")
    assert (found.status, found.out, found.err) == (0, "", "")
    assert "user.imagefs.member.p1" not in os.listxattr(image)
    found = run("image", "remove", "project", "debian", "p1")
    assert found.status == 1
    assert found.err == f"imagefs: image remove project debian p1: {os.strerror(errno.ENODATA)}: nothing was changed\n"


@pytest.mark.parametrize("command", ["add", "remove"])
def test_a_refusal_has_the_mounts_reason(run: Run, image: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Only who may can share."""
    set_attributes(image, {"imagefs.error": "the policy add_member does not allow it"})

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "setxattr", refused)
    monkeypatch.setattr(os, "removexattr", refused)
    found = run("image", command, "project", "debian", "p3")
    assert (found.status, found.out) == (1, "")
    assert found.err == f"imagefs: image {command} project debian p3: the policy add_member does not allow it: nothing was changed\n"


def test_members_are_listed_by_project(run: Run, image: Path) -> None:
    """The columns are those of the client of OpenStack."""
    assert json.loads(run("image", "member", "list", "debian", "-f", "json").out) == [
        {"Image ID": ID, "Member ID": "p1", "Status": "pending"},
        {"Image ID": ID, "Member ID": "p2", "Status": "accepted"},
    ]
    assert run("image", "member", "list", ID, "-c", "Member ID", "-f", "value").out == "p1\np2\n"


def test_an_image_that_is_not_shared_has_no_members(run: Run, mount: FakeMount) -> None:
    """It is told from one whose members the caller may not see, and from one that is shared with nobody."""
    mount.add_image("private", visibility="private")
    mount.add_image("closed", visibility="shared")
    mount.add_image("alone", visibility="shared", own={"members": "[]"})
    assert "the image is private, and only shared images have members" in run("image", "member", "list", "private").err
    assert "its members are not for you to see" in run("image", "member", "list", "closed").err
    found = run("image", "member", "list", "alone", "-f", "json")
    assert (found.status, found.out) == (0, "[]\n")


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["add"], 2, "Usage"),
        (["add", "project", "debian"], 2, "Missing argument 'PROJECT'"),
        (["add", "project", "debian", "p3", "-c", "colour"], 2, "there is no column 'colour'"),
        (["add", "project", "nosuch", "p3"], 1, "there is no image"),
        (["add", "project", "debian", ""], 1, "cannot be a project"),
        (["add", "project", "debian", "\udcff"], 1, "cannot be a project"),
        (["add", "project", "debian", "p" * 236], 1, "cannot be changed through the mount"),
        (["remove", "project", "debian", "p" * 300], 1, "cannot be a project"),
        (["member", "list", "nosuch"], 1, "there is no image"),
        (["member", "list", "debian", "-c", "colour"], 2, "there is no column 'colour'"),
        (["member", "add"], 2, "No such command 'add'"),
    ],
)
def test_bad_input_changes_nothing(run: Run, image: Path, arguments: list[str], status: int, reason: str) -> None:
    """What cannot be right is said before the mount is asked for anything."""
    before = os.listxattr(image)
    found = run("image", *arguments)
    assert found.status == status
    assert reason in found.err
    assert os.listxattr(image) == before
