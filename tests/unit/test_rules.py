"""Loading the rules of a configuration: sound ones are obeyed, all others refused."""

from pathlib import Path

import pytest

from imagefs.config import Config, parse
from imagefs.errors import InvalidInput
from imagefs.identity.caller import Caller
from imagefs.identity.map import ADMIN, Identity
from imagefs.rules import load_access, load_identities

MEMBER = Identity(frozenset({"member", "reader"}), "p1")
NOBODY_CREATES = "[^hw_]\ncreate = !\nread = @\nupdate = @\ndelete = @\n"


def configured(tmp_path: Path, **sections: object) -> Config:
    """Return a configuration with these sections."""
    return parse(sections, {}, "the test", tmp_path)


def test_without_files_the_rules_are_glances_own(tmp_path: Path) -> None:
    """Glance's default policies hold, and no property is protected."""
    access = load_access(configured(tmp_path))
    assert access.is_admin(ADMIN)
    assert not access.is_admin(MEMBER)
    assert access.may_list(MEMBER)
    assert not access.may_list(Identity())
    assert access.may("create", "anything", Identity())


def test_files_are_obeyed(tmp_path: Path) -> None:
    """A policy of the policy file takes the place of Glance's; protections deny what they do not name, to admins too."""
    (tmp_path / "policy.yaml").write_text('"get_images": "!"\n"p_all": "@"\n')
    (tmp_path / "rules").write_text(NOBODY_CREATES)
    config = configured(
        tmp_path, policy={"policy_file": str(tmp_path / "policy.yaml")}, protection={"property_protection_file": str(tmp_path / "rules")}
    )
    access = load_access(config)
    assert not access.may_list(MEMBER)
    assert not access.may("create", "hw_x", ADMIN)
    assert access.may("read", "hw_x", MEMBER)
    assert not access.may("read", "other", ADMIN)


def test_protections_can_name_policies(tmp_path: Path) -> None:
    """The rule format is taken from the configuration, and the policies from the policy file."""
    (tmp_path / "policy.yaml").write_text('"members_only": "role:member"\n')
    (tmp_path / "rules").write_text("[.*]\ncreate = members_only\nread = @\nupdate = !\ndelete = !\n")
    protection = {"property_protection_file": str(tmp_path / "rules"), "property_protection_rule_format": "policies"}
    access = load_access(configured(tmp_path, policy={"policy_file": str(tmp_path / "policy.yaml")}, protection=protection))
    assert access.may("create", "x", MEMBER)
    assert not access.may("create", "x", ADMIN)


@pytest.mark.parametrize(
    ("section", "key", "body"),
    [
        ("protection", "property_protection_file", None),
        ("protection", "property_protection_file", "[hw\ncreate = @\n"),
        ("protection", "property_protection_file", "[hw]\ncreate = @\n"),
        ("policy", "policy_file", None),
        ("policy", "policy_file", "- not\n- a mapping\n"),
        ("policy", "policy_file", '"get_image": "role:admin role:member"\n'),
    ],
)
def test_rules_that_are_not_sound_are_refused(tmp_path: Path, section: str, key: str, body: str | None) -> None:
    """A missing, broken or incomplete file is told with its name: nobody is let in because a rule could not be read."""
    path = tmp_path / "rules"
    if body is not None:
        path.write_text(body)
    with pytest.raises(InvalidInput, match=str(path)):
        load_access(configured(tmp_path, **{section: {key: str(path)}}))


def test_the_user_of_the_daemon_is_admin(tmp_path: Path) -> None:
    """So is root, unless the map says otherwise; everybody else gets the default roles."""
    identity = {"default_roles": ["reader"], "map": [{"uid": 7, "roles": ["member"], "project_id": "p1"}]}
    config = configured(tmp_path, identity=identity)
    identities = load_identities(config, 1000)
    assert identities.identity(Caller(1000, 1000)) == ADMIN
    assert identities.identity(Caller(0, 0)) == ADMIN
    assert identities.identity(Caller(7, 7)) == Identity(frozenset({"member"}), "p1")
    assert identities.identity(Caller(8, 8)) == Identity(frozenset({"reader"}))
    assert load_identities(config, 1001).identity(Caller(1000, 1000)) == Identity(frozenset({"reader"}))
