"""image list, over a mount: what is listed, in which order, and how much of it."""

import json

import pytest

from imagefs.cli.image_list import Filter
from imagefs.cli.listing import Line
from tests.support.commands import Run
from tests.support.fake_mount import FakeMount

HIDDEN = {"os_hidden": "true"}


def names(run: Run, *options: str) -> list[str]:
    """Return the names that a list with these options shows."""
    found = run("image", "list", "-f", "json", *options)
    assert (found.status, found.err) == (0, "")
    return [image["Name"] for image in json.loads(found.out)]


@pytest.fixture
def project(mount: FakeMount) -> FakeMount:
    """A mount as a member of a project sees it: images of all visibilities, its own and others'."""
    for visibility in ("public", "private", "shared", "community"):
        mount.add_image(f"own-{visibility}", visibility=visibility, owner="us")
    mount.add_image("their-public", visibility="public", owner="them")
    mount.add_image("their-community", visibility="community", owner="them", listed=False)
    for status in ("accepted", "pending", "rejected"):
        mount.add_image(f"their-{status}", visibility="shared", owner="them", listed=status == "accepted", member_status=status)
    mount.add_image("own-hidden", visibility="private", owner="us", os_hidden="true")
    mount.add_image("own-hidden-community", visibility="community", owner="us", os_hidden="true")
    mount.add_image("their-hidden-community", visibility="community", owner="them", listed=False, os_hidden="true")
    mount.add_image("their-hidden-pending", visibility="shared", owner="them", listed=False, member_status="pending", os_hidden="true")
    return mount


OWN = ["own-community", "own-private", "own-public", "own-shared"]


@pytest.mark.parametrize(
    ("options", "listed"),
    [
        ([], [*OWN, "their-accepted", "their-public"]),
        (["--all"], [*OWN, "their-accepted", "their-community", "their-public"]),
        (["--visibility", "all", "--all"], [*OWN, "their-accepted", "their-community", "their-public"]),
        (["--public"], ["own-public", "their-public"]),
        (["--private"], ["own-private"]),
        (["--visibility", "community"], ["own-community", "their-community"]),
        (["--shared"], ["own-shared", "their-accepted"]),
        (["--shared", "--member-status", "pending"], ["own-shared", "their-pending"]),
        (["--shared", "--member-status", "rejected"], ["own-shared", "their-rejected"]),
        (["--shared", "--member-status", "all"], ["own-shared", "their-accepted", "their-pending", "their-rejected"]),
        (["--member-status", "pending"], [*OWN, "their-pending", "their-public"]),
        (["--member-status", "all"], [*OWN, "their-accepted", "their-pending", "their-public", "their-rejected"]),
        (["--hidden"], ["own-hidden", "own-hidden-community"]),
        (["--hidden", "--member-status", "pending"], ["own-hidden", "own-hidden-community", "their-hidden-pending"]),
        (["--hidden", "--community"], ["own-hidden-community", "their-hidden-community"]),
        (["--hidden", "--all", "--member-status", "all"], ["own-hidden", "own-hidden-community", "their-hidden-community", "their-hidden-pending"]),
        (["--project", "them"], ["their-accepted", "their-public"]),
        (["--project", "nobody"], []),
    ],
)
def test_lists_are_glances(run: Run, project: FakeMount, options: list[str], listed: list[str]) -> None:
    """Visibility, membership and hiding choose what Glance would list."""
    assert names(run, *options) == listed


def test_an_owner_that_is_a_member_sees_its_image(run: Run, mount: FakeMount) -> None:
    """What is in the caller's list anyway does not leave it by a membership."""
    mount.add_image("own", visibility="shared", member_status="pending")
    assert names(run) == ["own"]


def test_default_columns_and_order(run: Run, mount: FakeMount) -> None:
    """Each image has its id, name, status, and the server that it was taken of; they are sorted by name, and by id within one."""
    first, second = mount.add_image("web1-before", instance_uuid="web1"), mount.add_image("debian-12")
    nameless = mount.add_image(None, status="queued")
    assert json.loads(run("image", "list", "-f", "json").out) == [
        {"ID": nameless, "Name": None, "Status": "queued", "Server": None},
        {"ID": second, "Name": "debian-12", "Status": "active", "Server": None},
        {"ID": first, "Name": "web1-before", "Status": "active", "Server": "web1"},
    ]
    twins = sorted([second, mount.add_image("debian-12")])
    assert run("image", "list", "--name", "debian-12", "-f", "value", "-c", "ID").out.split() == twins


def test_long_adds_columns(run: Run, mount: FakeMount) -> None:
    """--long shows what the client of OpenStack shows; a column of it can be asked for by itself."""
    image_id = mount.add_image("x", disk_format="raw", container_format="bare", size="5", checksum="c", visibility="public", protected="true",
                               owner="p", tags='["a", "b"]')  # fmt: skip
    assert json.loads(run("image", "list", "--long", "-f", "json").out) == [
        {
            "ID": image_id, "Name": "x", "Status": "active", "Server": None, "Disk Format": "raw", "Container Format": "bare", "Size": 5,
            "Checksum": "c", "Visibility": "public", "Protected": True, "Project": "p", "Tags": ["a", "b"],
        }
    ]  # fmt: skip
    assert run("image", "list", "-c", "size", "-c", "name", "-f", "value").out == "x 5\n"
    assert run("image", "list", "-c", "colour").status == 2


def test_filters_all_have_to_fit(run: Run, mount: FakeMount) -> None:
    """Properties, tags, name and status; attributes of Glance are compared as text."""
    mount.add_image("a", hw_disk_bus="scsi", os_distro="debian", tags='["x", "y"]', min_ram="64", protected="true")
    mount.add_image("b", hw_disk_bus="scsi", tags='["x"]', status="deactivated")
    assert names(run, "--property", "hw_disk_bus=scsi") == ["a", "b"]
    assert names(run, "--property", "hw_disk_bus=scsi", "--property", "os_distro=debian") == ["a"]
    assert names(run, "--property", "hw_disk_bus=") == []
    assert names(run, "--property", "min_ram=64", "--property", "protected=true") == ["a"]
    assert names(run, "--property", "tags=x") == []
    assert names(run, "--tag", "x") == ["a", "b"]
    assert names(run, "--tag", "x", "--tag", "y") == ["a"]
    assert names(run, "--status", "deactivated") == ["b"]
    assert names(run, "--name", "a", "--tag", "z") == []
    assert names(run, "--property", "\udcff=\udcfe") == []


def test_sorting_by_several_keys(run: Run, mount: FakeMount) -> None:
    """The first key counts first; each has its direction; numbers are sorted as numbers, and what is missing comes first."""
    for name, size, status in (("a", "10", "active"), ("b", "9", "active"), ("c", "100", "killed")):
        mount.add_image(name, size=size, status=status)
    mount.add_image("d", status="active")
    assert names(run, "--sort", "size") == ["d", "b", "a", "c"]
    assert names(run, "--sort", "size:desc") == ["c", "a", "b", "d"]
    assert names(run, "--sort", "status:desc,size:asc") == ["c", "d", "b", "a"]
    assert names(run, "--sort", "status, name:desc") == ["d", "b", "a", "c"]


def test_pages(run: Run, mount: FakeMount) -> None:
    """--limit cuts, and --marker goes on behind the last image of a page, by id or name, even if it is not in the list any more."""
    ids = [mount.add_image(name, tags=tags) for name, tags in (("a", "[]"), ("b", '["x"]'), ("c", "[]"), ("d", '["x"]'))]
    assert names(run, "--limit", "2") == ["a", "b"]
    assert names(run, "--limit", "2", "--marker", "b") == ["c", "d"]
    assert names(run, "--marker", ids[3]) == []
    assert names(run, "--sort", "name:desc", "--marker", "c", "--limit", "1") == ["b"]
    assert names(run, "--tag", "x", "--marker", "a") == ["b", "d"]
    assert names(run, "--limit", "0") == []


def test_a_marker_that_is_no_image_is_an_error(run: Run, mount: FakeMount) -> None:
    """As is one that several images are named; one in the caller's lists comes before others."""
    mount.add_image("a", listed=False, visibility="community")
    mount.add_image("a")
    mount.add_image("b")
    assert names(run, "--marker", "a") == ["b"]
    assert "there is no image with the id or name 'x'" in run("image", "list", "--marker", "x").err
    mount.add_image("b")
    found = run("image", "list", "--marker", "b")
    assert found.status == 1
    assert "2 images are named 'b'" in found.err


@pytest.mark.parametrize(
    ("options", "status", "reason"),
    [
        (["--public", "--private"], 2, "choose one visibility, not private and public"),
        (["--all", "--visibility", "shared"], 2, "choose one visibility"),
        (["--visibility", "secret"], 2, "--visibility"),
        (["--member-status", "maybe"], 2, "--member-status"),
        (["--sort", "colour"], 2, "'colour' is nothing to sort by"),
        (["--sort", "name:up"], 2, "write name:asc or name:desc"),
        (["--sort", "name,"], 2, "nothing to sort by"),
        (["--sort", ""], 2, "nothing to sort by"),
        (["--sort", "tags"], 2, "nothing to sort by"),
        (["--limit", "-1"], 2, "--limit"),
        (["--limit", "x"], 2, "--limit"),
        (["--property", "hw"], 1, "write KEY=VALUE"),
        (["extra"], 2, "unexpected extra argument"),
    ],
)
def test_bad_options_are_one_line(run: Run, mount: FakeMount, options: list[str], status: int, reason: str) -> None:
    """What cannot be meant is said in one line."""
    found = run("image", "list", *options)
    assert (found.status, found.out, found.err.count("\n")) == (status, "", 1)
    assert reason in found.err


def test_an_empty_mount_has_an_empty_list(run: Run, mount: FakeMount) -> None:
    """Nothing is no error."""
    assert run("image", "list", "-f", "value").out == ""
    assert run("image", "list", "-f", "json").out == "[]\n"


def test_attributes_of_odd_types_fit_nothing() -> None:
    """A list or null is no text to compare with, and tags that are no list are none."""
    line: Line = {"imagefs.listed": True, "x": None, "y": ["a"], "tags": "a"}
    assert Filter().takes(line)
    assert not Filter(attributes=(("x", "None"),)).takes(line)
    assert not Filter(attributes=(("y", "a"),)).takes(line)
    assert not Filter(tags=frozenset({"a"})).takes(line)
