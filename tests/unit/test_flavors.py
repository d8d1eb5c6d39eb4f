"""Tests of flavors: what they show, and to whom."""

import tomllib
from pathlib import Path

import pytest

from imagefs.config import Config, parse
from imagefs.errors import ConfigError
from imagefs.flavors import BUILT_IN, make_flavor, visible
from imagefs.identity.map import Identity
from tests.support.access import ADMIN, NOBODY, OWNER, STRANGER

PUBLIC = BUILT_IN["m1.small"]
PRIVATE = make_flavor("gold", vcpus=1, ram=1, disk=1, is_public=False, projects=("owner", "other"))
RESERVED = make_flavor("reserved", vcpus=1, ram=1, disk=1, is_public=False)


@pytest.mark.parametrize("identity", [OWNER, STRANGER, NOBODY, ADMIN, Identity()])
def test_everybody_sees_public_flavors(identity: Identity) -> None:
    """Whoever it is, admin or not."""
    assert visible(PUBLIC, identity, admin=False)


@pytest.mark.parametrize(("identity", "admin", "seen"), [(OWNER, False, True), (STRANGER, False, False), (NOBODY, False, False), (ADMIN, True, True)])
def test_private_flavors_are_for_their_projects_and_admins(identity: Identity, admin: bool, seen: bool) -> None:
    """A private flavor is seen by the projects it was given to, and one that was given to nobody by admins only."""
    assert visible(PRIVATE, identity, admin=admin) is seen
    assert visible(RESERVED, identity, admin=admin) is admin


def test_what_a_flavor_shows() -> None:
    """The keys of the contract in their order, and whom it is for only where that is asked for."""
    keys = ["id", "name", "vcpus", "ram", "disk", "ephemeral", "swap", "is_public"]
    assert list(PUBLIC.shown()) == list(PRIVATE.shown()) == keys
    assert PRIVATE.shown(with_projects=True) == {**PRIVATE.shown(), "projects": ["owner", "other"]}


def read(lines: str) -> Config:
    """Return the configuration with a flavor of these lines."""
    return parse(tomllib.loads(f"[flavors.gold]\nvcpus = 1\nram = 1\ndisk = 1\n{lines}"), {}, "x.toml", Path("/data"))


def test_projects_are_configured() -> None:
    """A private flavor has the projects of the list, each of them once; without a list it has none."""
    assert read('is_public = false\nprojects = ["a", "b", "a"]').flavors["gold"].projects == ("a", "b")
    assert read("is_public = false").flavors["gold"].projects == ()


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ('projects = ["a"]', "everybody sees a public flavor"),
        ('is_public = true\nprojects = ["a"]', "everybody sees a public flavor"),
        ('is_public = false\nprojects = "a"', "not a list"),
        ("is_public = false\nprojects = [1]", "text"),
        ('is_public = false\nprojects = [""]', "text"),
    ],
)
def test_projects_that_cannot_be_are_mistakes(lines: str, reason: str) -> None:
    """Projects of a public flavor, which would have no effect, and what is no list of ids."""
    with pytest.raises(ConfigError, match=reason) as caught:
        read(lines)
    assert 'flavors."gold".projects' in str(caught.value)
