"""Tests of policies: what they decide, which is what Glance's enforcer decides, and what a policy file must not have."""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from imagefs.errors import InvalidInput
from imagefs.identity.map import Identity
from imagefs.properties import policy, rules_file
from imagefs.properties.policy import Policies
from imagefs.properties.policy_defaults import DEFAULTS, EARLIER

P1 = "project-1"


def identity(*roles: str, project_id: str | None = P1, user_id: str | None = "user-1") -> Identity:
    """Return an identity of project-1 with these roles."""
    return Identity(frozenset(roles), project_id, user_id)


ADMIN = identity("admin", project_id="other")
MEMBER = identity("member", "reader")
READER = identity("reader")
NOBODY = Identity()
OWN = {"project_id": P1, "owner": P1, "member_id": None, "visibility": "private"}
FOREIGN = {"project_id": "p2", "owner": "p2", "member_id": None, "visibility": "private"}
SHARED = {"project_id": "p2", "owner": "p2", "member_id": P1, "visibility": "shared"}
PUBLIC = {"project_id": "p2", "owner": "p2", "member_id": None, "visibility": "public"}
DECISIONS = [
    ("get_images", {"project_id": P1}, [ADMIN, MEMBER, READER]),
    ("get_image", OWN, [ADMIN, MEMBER, READER]),
    ("get_image", FOREIGN, [ADMIN]),
    ("get_image", SHARED, [ADMIN, MEMBER, READER]),
    ("get_image", PUBLIC, [ADMIN, MEMBER, READER]),
    ("download_image", OWN, [ADMIN, MEMBER]),
    ("download_image", PUBLIC, [ADMIN, MEMBER]),
    ("modify_image", OWN, [ADMIN, MEMBER]),
    ("modify_image", SHARED, [ADMIN]),
    ("delete_image", OWN, [ADMIN, MEMBER]),
    ("publicize_image", OWN, [ADMIN]),
    ("communitize_image", OWN, [ADMIN, MEMBER]),
    ("add_image", OWN, [ADMIN, MEMBER]),
    ("add_image", {"project_id": P1, "owner": "p2"}, [ADMIN]),
    ("modify_member", SHARED, [ADMIN, MEMBER]),
    ("modify_member", OWN, [ADMIN]),
    ("get_members", SHARED, [ADMIN, MEMBER, READER]),
    ("deactivate", OWN, [ADMIN, MEMBER]),
    ("cache_image", {}, [ADMIN]),
    ("manage_image_cache", {}, [ADMIN]),
    ("context_is_admin", {}, [ADMIN]),
    ("default", {}, [ADMIN, MEMBER, READER, NOBODY]),
    ("get_task", {}, [ADMIN, MEMBER, READER, NOBODY]),
]


@pytest.mark.parametrize(("name", "target", "allowed"), DECISIONS)
def test_defaults_decide_as_glances(name: str, target: Mapping[str, object], allowed: list[Identity]) -> None:
    """Admin everything, a member its own, a reader looks on, and nobody without roles."""
    policies = Policies.load(None)
    assert [who for who in (ADMIN, MEMBER, READER, NOBODY) if policies.allows(name, target, who)] == allowed


# (rule, target, roles, answer): each was answered by Glance 33.0.0's enforcer
ANSWERS: list[tuple[policy.Rule, dict[str, object], tuple[str, ...], bool]] = [
    ("role:ADMIN", {}, ("admin",), True),
    ("role:admin", {}, ("Admin",), True),  # a service's role is not lowered
    ("roles:Admin", {}, ("Admin",), True),
    ("roles:admin", {}, ("Admin",), False),
    ("role:%(x)s", {"x": "Admin"}, ("admin",), True),
    ("role:%(x)s", {}, ("admin",), False),
    ("not role:%(x)s", {}, ("admin",), True),
    ("role:a%%b", {}, ("a%b",), True),
    ("role:%s", {}, ("{}",), True),
    ("role:100%", {}, ("100%",), False),  # crashes
    ("not role:100%", {}, (), False),
    ("role:member or role:100%", {}, ("member",), True),
    ("project_id:%(project_id)s", {"project_id": P1}, (), True),
    ("project_id:%(project_id)s", {"project_id": None}, (), False),
    ("project_id:%(project_id)s", {}, (), False),
    ("not project_id:%(project_id)s", {}, (), True),
    ("project_id:%(n)d", {"n": 5}, (), False),
    ("project_id:%(n)d", {"n": "5"}, (), False),
    ("not project_id:%(n)d", {"n": "5"}, (), False),
    ("'public':%(visibility)s", {"visibility": "public"}, (), True),
    ("True:%(protected)s", {"protected": True}, (), True),
    ("None:%(owner)s", {"owner": None}, (), True),
    ("5:%(min_disk)s", {"min_disk": 5}, (), True),
    ("1_0:10", {}, (), True),
    ("-5:-5", {}, (), True),
    ("'a':a", {}, (), True),
    ("b'x':y", {}, (), False),
    ("class:x", {}, (), False),
    ("not class:x", {}, (), False),
    ("not {[]}:x", {}, (), False),
    ("not class:%(x)s", {}, (), True),  # the missing attribute is found before the crash
    ("is_admin:True", {}, ("admin",), False),  # Glance's context has no such value for checks
    ("not is_admin:True", {}, ("admin",), True),
    ("is_admin_project:True", {}, (), True),
    ("tenant:project-1", {}, (), False),
    ("domain_id:None", {}, (), True),
    ("user_id:user-1", {}, (), True),
    ("project_id.x:y", {}, (), False),
    ("not project_id.x:y", {}, (), False),
    ("roles.x:y", {}, (), False),
    ("not roles.x:y", {}, (), True),
    ("not roles.x:y", {}, ("admin",), False),
    ("rule:undefined", {}, (), True),
    ("not rule:undefined", {}, (), False),
    ("rule:!", {}, (), True),
    ("   ", {}, ("admin",), False),
    ("admin", {}, ("admin",), False),
    ("not admin", {}, (), True),
    ("role:admin role:admin", {}, ("admin",), False),
    ('"role:admin"', {}, ("admin",), False),
    ("role:member or role:admin and role:reader", {}, ("member",), True),
    ("role:member and role:admin or role:reader", {}, ("reader",), True),
    ([], {}, (), True),
    ([[]], {}, (), False),
    ([["role:a", "role:b"], "role:c"], {}, ("c",), True),
    ([["role:a", "role:b"], "role:c"], {}, ("a",), False),
    ([["role:a b"]], {}, ("a b",), True),
]


@pytest.mark.parametrize(("rule", "target", "roles", "answer"), ANSWERS, ids=repr)
def test_language_is_oslo_policys(rule: policy.Rule, target: dict[str, object], roles: tuple[str, ...], answer: bool) -> None:
    """Each corner of the language has Glance's answer; a crash denies, also under `not`."""
    assert Policies.of({"rule": rule}).allows("rule", MappingProxyType(target), identity(*roles)) is answer


def test_identity_without_project_owns_nothing() -> None:
    """Unlike in Glance, where None equals None, an image without owner is not that of a caller without project."""
    policies = Policies.load(None)
    target = {"project_id": None, "owner": None, "member_id": None, "visibility": "private"}
    lost = identity("member", "reader", project_id=None)
    assert not policies.allows("modify_image", target, lost)
    assert not policies.allows("get_image", target, lost)
    assert not Policies.of({"rule": "user_id:None"}).allows("rule", {}, Identity())


def test_undefined_rule_is_the_default_one() -> None:
    """In Glance's own way, which `load` refuses."""
    assert Policies.of({"a": "rule:typo"}).allows("a", {}, NOBODY)
    assert not Policies.of({"a": "rule:typo", "default": "!"}).allows("a", {}, ADMIN)
    assert not Policies.of({"default": "rule:typo"}).allows("default", {}, ADMIN)


def test_name_that_is_not_defined_denies(caplog: pytest.LogCaptureFixture) -> None:
    """The code of imagefs asks for defined policies only; the log says it once."""
    policies = Policies.load(None)
    assert [policies.allows("typo", {}, ADMIN) for _ in range(3)] == [False] * 3
    assert len(caplog.records) == 1


def test_circles_deny_unless_decided_before(caplog: pytest.LogCaptureFixture) -> None:
    """Who passes before the circle closes passes; all others make Glance crash, which denies."""
    policies = Policies.of({"a": "role:x or rule:b", "b": "role:y or rule:a", "c": "not rule:c"})
    assert policies.allows("b", {}, identity("x"))
    assert policies.allows("a", {}, identity("y"))
    for _ in range(2):
        assert not policies.allows("a", {}, identity("z"))
        assert not policies.allows("c", {}, identity("z"))
    assert len(caplog.records) == 2


def test_rule_that_crashes_the_parser_denies() -> None:
    """Under Glance's leniency, so does one that is no rule."""
    assert not Policies.of({"a": "not " * 5000 + "role:a"}).allows("a", {}, ADMIN)
    assert not Policies.of({"a": 5}).allows("a", {}, ADMIN)  # type: ignore[dict-item] # what YAML may have


def test_checks_that_ask_a_server_deny() -> None:
    """Nothing goes out to any network."""
    assert not Policies.of({"a": "http://127.0.0.1:1/", "b": "https://127.0.0.1:1/"}).allows("a", {}, ADMIN)


def test_threads_may_share_policies() -> None:
    """Many threads get the same answers."""
    policies = Policies.load(None)
    wrong: list[str] = []

    def ask(number: int) -> None:
        for round_ in range(300):
            mine = f"project-{number}-{round_ % 50}"
            if not policies.allows("modify_image", {"project_id": mine}, identity("member", project_id=mine)):
                wrong.append(mine)
            if policies.allows("modify_image", {"project_id": P1}, identity("member", project_id=mine)):
                wrong.append(mine)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_extended_policies_keep_what_is_there() -> None:
    """A rule of the policy file is not replaced by one of a protection, and the originals do not change."""
    policies = Policies.of({"x:read": "role:a"})
    extended = policies.extended({"x:read": "role:b", "x:create": "rule:x:read"})
    assert extended.allows("x:create", {}, identity("a"))
    assert not extended.allows("x:create", {}, identity("b"))
    assert not policies.defines("x:create")


def test_names_are_complete() -> None:
    """No default refers to a rule that is not there, and deprecated checks belong to names."""
    policies = Policies.load(None)
    assert all(policies.defines(name) and policies.flaw(name) is None for name in DEFAULTS)
    assert EARLIER.keys() <= DEFAULTS.keys()
    assert len(DEFAULTS) == 41


# --- files


def write(path: Path, text: str | bytes) -> Path:
    """Make a file and return its path."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refusal(path: Path) -> str:
    """Return what is said of a policy file, which has to be one line that names it."""
    with pytest.raises(InvalidInput) as caught:
        Policies.load(path)
    said = str(caught.value)
    assert "\n" not in said
    return said


def test_yaml_file_overrides_defaults(tmp_path: Path) -> None:
    """What the file does not name keeps its default; other names are rules that others may use."""
    path = write(tmp_path / "policy.yaml", '# ours\n"get_image": "rule:staff"\nstaff: role:staff or role:admin\n')
    policies = Policies.load(path)
    assert policies.allows("get_image", {}, identity("staff"))
    assert not policies.allows("get_image", OWN, READER)
    assert policies.allows("modify_image", OWN, MEMBER)
    assert policies.defines("staff")
    assert not policies.defines("Staff")


def test_json_file_is_read_too(tmp_path: Path) -> None:
    """Also with tabs, which YAML forbids, and with the list of lists of old files."""
    path = write(tmp_path / "policy.json", '{\n\t"get_image": "role:staff",\n\t"publicize_image": [["role:a", "role:b"], ["role:c"]],\n\t"x": []\n}')
    policies = Policies.load(path)
    assert policies.allows("get_image", {}, identity("staff"))
    assert policies.allows("publicize_image", {}, identity("a", "b"))
    assert not policies.allows("publicize_image", {}, identity("a"))
    assert policies.allows("x", {}, NOBODY)


def test_file_named_json_may_be_yaml(tmp_path: Path) -> None:
    """As for Glance, which does not look at the name."""
    assert Policies.load(write(tmp_path / "policy.json", "get_image: role:staff")).allows("get_image", {}, identity("staff"))


@pytest.mark.parametrize("text", ["", "\n# nothing\n", "{}", "\ufeff{}"])
def test_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    """A file of comments is one that changes nothing."""
    assert Policies.load(write(tmp_path / "policy.yaml", text)).allows("get_image", OWN, READER)


def test_policies_of_metadefs_are_let_in(tmp_path: Path) -> None:
    """A file written for Glance names policies that have no meaning here, and what they refer to."""
    text = 'get_metadef_namespace: "rule:metadef_default"\nadd_metadef_tag: "rule:metadef_admin"\n'
    assert Policies.load(write(tmp_path / "policy.yaml", text)).defines("add_metadef_tag")


def test_directory_beside_the_file_is_read_in_order(tmp_path: Path) -> None:
    """Later files win; hidden ones and directories are passed over."""
    path = write(tmp_path / "policy.yaml", "a: role:main\nb: role:main\nc: role:main\n")
    write(tmp_path / "policy.d" / "20.yaml", "b: role:twenty")
    write(tmp_path / "policy.d" / "10.yaml", "a: role:ten\nb: role:ten")
    write(tmp_path / "policy.d" / ".hidden", "c: '!'")
    (tmp_path / "policy.d" / "old").mkdir()
    policies = Policies.load(path)
    assert policies.allows("a", {}, identity("ten"))
    assert policies.allows("b", {}, identity("twenty"))
    assert not policies.allows("b", {}, identity("ten"))
    assert policies.allows("c", {}, identity("main"))


def test_files_are_read_once(tmp_path: Path) -> None:
    """A change of the file changes nothing until it is loaded again."""
    path = write(tmp_path / "policy.yaml", "get_image: role:staff")
    policies = Policies.load(path)
    path.unlink()
    assert policies.allows("get_image", {}, identity("staff"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("get_image: [role:admin", "line 1: it is neither YAML nor JSON"),
        ("a: '@'\nb: role:x: y", "line 2: it is neither YAML nor JSON"),
        ("a: 2001-99-99", "neither YAML nor JSON"),
        ("[" * 5000, "neither YAML nor JSON"),
        ("- role:admin", "no mapping"),
        ("just words", "no mapping"),
        ("5: role:admin", "5 names no policy"),
        ("'': role:admin", "'' names no policy"),
        (b"get_image: \xff", "byte 11 is not UTF-8"),
        ("get_image: 5", "policy 'get_image' is 5 and not text"),
        ("get_image:", "policy 'get_image' is None and not text"),
        ("get_image: no", "policy 'get_image' is False and not text"),
        ("get_image: {role: admin}", "policy 'get_image' is {'role': 'admin'} and not text"),
        ("get_image: [[5]]", "policy 'get_image' has 5 in its list"),
        ("get_image: admin", "policy 'get_image' has 'admin', which is no check"),
        ("get_image: role:a role:b", "policy 'get_image' has no 'and' or 'or' before 'role:b'"),
        ("get_image: not (role:a", "policy 'get_image' has a '(' without its ')'"),
        ("get_image: rule:staff", "policy 'get_image' refers to rule 'staff', which is not defined"),
        ("get_image: not rule:staff", "policy 'get_image' refers to rule 'staff', which is not defined"),
        ("a: rule:a", "policy 'a' refers to itself (a -> a)"),
        ("a: role:x or not rule:b\nb: rule:c and role:y\nc: rule:a", "policy 'a' refers to itself (a -> b -> c -> a)"),
        ("context_is_admin: rule:get_image", "refers to itself (context_is_admin -> get_image -> context_is_admin)"),
        ("a: http://policy.example/%(id)s", "policy 'a' has the check 'http://policy.example/%(id)s', which asks a server"),
        ("a: role:x or https://policy.example/", "which asks a server"),
        ("a: remote:https://policy.example/", "which asks a server"),
        ("a: role:100%", "policy 'a' has the check 'role:100%' with a '%' that names no attribute"),
        ("a: class:x", "policy 'a' has the check 'class:x', whose part before the ':' is neither an attribute"),
        ("a: roles.name:x", "policy 'a' has the check 'roles.name:x', but that attribute of the caller has no parts"),
    ],
)
def test_what_would_not_do_what_it_says_is_refused(tmp_path: Path, text: str | bytes, words: str) -> None:
    """Each reason names the file, the policy and what to correct."""
    path = write(tmp_path / "policy.yaml", text)
    said = refusal(path)
    assert words in said
    assert said.startswith(f"policy file {path}: ")


def test_policy_d_is_named_where_it_is_wrong(tmp_path: Path) -> None:
    """Of a rule that a later file overrides too."""
    path = write(tmp_path / "policy.yaml", "a: '@'")
    bad = write(tmp_path / "policy.d" / "10.yaml", "a: admin")
    write(tmp_path / "policy.d" / "20.yaml", "a: role:admin")
    assert refusal(path).startswith(f"policy file {bad}: policy 'a' has 'admin'")
    bad.unlink()
    bad.symlink_to("nowhere")
    assert f"{bad}: there is no such file" in refusal(path)


def test_policy_d_that_is_no_directory_is_refused(tmp_path: Path) -> None:
    """As Glance does."""
    write(tmp_path / "policy.d", "")
    assert f"policy directory {tmp_path}/policy.d: it cannot be read (Not a directory)" in refusal(write(tmp_path / "policy.yaml", ""))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing file too, for which Glance takes its defaults; a FIFO does not stop the mount."""
    assert "there is no such file" in refusal(tmp_path / "policy.yaml")
    assert "it is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(tmp_path / "fifo")
    assert "has more than 1048576 bytes" in refusal(write(tmp_path / "big.yaml", b"#" * (rules_file.SIZE_LIMIT + 1)))

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path / "secret.yaml", "")
    monkeypatch.setattr(rules_file, "_open", refuse)
    assert "it cannot be read (Permission denied)" in refusal(path)


@pytest.mark.parametrize(
    ("name", "body", "place"),
    [
        ("policy.yaml", "get_image: '!'\n'get_image': '@'\n", "line 2: "),
        ("policy.yaml", '{"get_image": "!",\n\n"get_image": "@"}', "line 3: "),
        ("policy.json", '{"get_image": "!", "get_image": "@"}', ""),
    ],
)
def test_policy_that_is_there_twice_is_refused(tmp_path: Path, name: str, body: str, place: str) -> None:
    """Of two rules of one name in a file, one would not be obeyed, and that may be the one that closes."""
    path = write(tmp_path / name, body)
    assert refusal(path) == f"policy file {path}: {place}policy 'get_image' is there already: leave one of the two"


def test_misspelt_names_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A name that is almost one of Glance's guards nothing; one that others use, or that is like none, is meant."""
    Policies.load(write(tmp_path / "policy.yaml", "dowload_image: '!'\nget_imagez: '@'\nstaff: role:x\nget_image: rule:get_imagez"))
    assert [(record.levelno, "dowload_image" in record.getMessage()) for record in caplog.records] == [(logging.WARNING, True)]
