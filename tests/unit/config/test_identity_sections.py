"""The sections that say who may do what: protection, policy and identity."""

import tomllib
from pathlib import Path

import pytest

from imagefs.config import Config, IdentityConfig, PolicyConfig, ProtectionConfig, load, parse
from imagefs.errors import ConfigError

DATA = Path("/data")


def read(text: str, overrides: dict[str, str] | None = None, *, directory: Path | None = Path("/etc/imagefs")) -> Config:
    return parse(tomllib.loads(text), overrides or {}, "x.toml", DATA, directory=directory)


def mistakes(text: str, overrides: dict[str, str] | None = None, *, directory: Path | None = Path("/etc/imagefs")) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(text, overrides, directory=directory)
    return caught.value.mistakes


def test_nothing_configured_protects_nothing_and_maps_nobody() -> None:
    """Without a word there are no protections, Glance's policies, and callers without roles."""
    found = read("")
    assert (found.protection, found.policy, found.identity) == (ProtectionConfig(), PolicyConfig(), IdentityConfig())
    assert found.protection.property_protection_rule_format == "roles"
    assert found.identity.default_roles == ()


def test_every_mistake_of_a_map_is_told_with_its_entry() -> None:
    """Entries are counted from 1, and each mistake has its key."""
    assert mistakes(
        """
        [identity]
        default_role = ["reader"]
        [[identity.map]]
        user = "alice"
        uid = 1000
        roles = ["reader"]
        [[identity.map]]
        uid = -1
        roles = "member"
        projectid = "p"
        [[identity.map]]
        gid = true
        [[identity.map]]
        roles = ["", "a,b"]
        """
    ) == [
        "identity.default_role: unknown key: did you mean identity.default_roles?",
        "identity.map[1]: is for user and uid: write an entry for each: one of user, uid, group, gid says whom it is for",
        "identity.map[2].uid: -1 is not a whole number from 0 to 4294967294",
        "identity.map[2].roles: 'member' is not a list: put square brackets around it",
        "identity.map[2].projectid: unknown key: did you mean project_id?",
        "identity.map[3].gid: true is not a whole number from 0 to 4294967294",
        "identity.map[3].roles: is missing: list every role, or write [] for none",
        "identity.map[4].roles: 'a,b' is not a role: write each as a text of its own, without commas",
        "identity.map[4]: is for nobody: one of user, uid, group, gid says whom it is for",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[identity.map]\nuser = 'x'", "identity.map: is a list of tables: write [[identity.map]] above each entry, with two brackets"),
        ("[identity]\nmap = [5]", "identity.map[1]: is not a table: write [[identity.map]] and its keys below it"),
        ("[identity]\nmaps = 5", "identity.maps: unknown key: did you mean identity.map?"),
        ("[[map]]\nuser = 'x'", "map: unknown section: did you mean identity.map?"),
        ("[[identity.map]]\nuid = 4294967295\nroles = []", "identity.map[1].uid: 4294967295 is not a whole number from 0 to 4294967294"),
        ("[[identity.map]]\nuser = 1000\nroles = []", "identity.map[1].user: 1000 is not a text of printable characters in quotes"),
        ("[[protection]]\nx = 1", "protection: is a section: write [protection] and its keys below it"),
        (
            "[protection]\nproperty_protection_files = '/x'",
            "protection.property_protection_files: unknown key: did you mean protection.property_protection_file?",
        ),
    ],
)
def test_misshapen_sections_say_what_to_write(text: str, expected: str) -> None:
    """A section or entry of the wrong form is one mistake that says the right form."""
    assert mistakes(text) == [expected]


def test_a_map_may_be_written_inline() -> None:
    """TOML has two ways to write a list of tables, and names of users are not looked up before there is a mount."""
    (entry,) = read('[identity]\nmap = [{user = "nobody-of-that-name", roles = ["reader"]}]').identity.map
    assert (entry.user, entry.roles) == ("nobody-of-that-name", ("reader",))


def test_relative_files_lie_beside_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They start from the directory of the file, however the file was named."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.toml").write_text("[protection]\nproperty_protection_file = 'rules.conf'\n[policy]\npolicy_file = 'sub/policy.yaml'")
    found = load(Path("x.toml"))
    assert found.protection.property_protection_file == tmp_path / "rules.conf"
    assert found.policy.policy_file == tmp_path / "sub" / "policy.yaml"


def test_relative_files_need_a_file_to_lie_beside() -> None:
    """On the command line, and without a file, a path is absolute: the daemon runs in another directory."""
    relative = "'rules.conf' is not an absolute path: begin it with /"
    assert mistakes("", {"protection.property_protection_file": "rules.conf"}) == [f"-o protection.property_protection_file: {relative}"]
    assert mistakes("[policy]\npolicy_file = 'rules.conf'", directory=None) == [f"policy.policy_file: {relative}"]


def test_an_empty_file_name_is_no_file() -> None:
    """As in Glance, an empty name switches protections off; an option can so undo what the file says."""
    assert read("[protection]\nproperty_protection_file = ''").protection.property_protection_file is None
    assert read("[policy]\npolicy_file = '/x'", {"policy.policy_file": ""}).policy.policy_file is None


def test_lists_are_set_in_the_file_only() -> None:
    """An option of a mount is one text, and says so where a list is wanted."""
    found = read("", {"identity.default_project": "p", "policy.policy_file": "/x", "store.glance.cloud": "prod"})
    assert (found.identity.default_project, found.policy.policy_file, found.store.glance.cloud) == ("p", Path("/x"), "prod")
    options = {"identity.default_roles": "reader", "store.glance.direct_stores": "file:///x", "identity.map": "x", "identity.map[1].uid": "5"}
    assert mistakes("", options) == [
        "-o identity.default_roles: takes a list, which can be set in the configuration file only",
        "-o store.glance.direct_stores: takes a list, which can be set in the configuration file only",
        "-o identity.map: the map can be set in the configuration file only: write [[identity.map]] there",
        "-o identity.map[1].uid: the map can be set in the configuration file only: write [[identity.map]] there",
    ]
