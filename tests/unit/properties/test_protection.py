"""Tests of property protections: every corner of Glance's rules files, and what must not start a mount."""

import os
import threading
from pathlib import Path

import pytest

from imagefs.errors import InvalidInput
from imagefs.identity.map import Identity
from imagefs.properties import rules_file
from imagefs.properties.policy import Policies
from imagefs.properties.protection import OPERATIONS, UNPROTECTED, Protection

NONE = Policies.of({})


def who(*roles: str) -> Identity:
    """Return an identity with these roles."""
    return Identity(frozenset(roles), "project-1", "user-1")


def rules(text: str | bytes, rule_format: str = "roles", policies: Policies = NONE) -> Protection:
    """Return what Glance makes of a file."""
    return Protection.parse(text if isinstance(text, bytes) else text.encode(), "rules.conf", rule_format, policies)


def section(name: str, value: str, **others: str) -> str:
    """Return a section whose operations all have `value`, but for those in `others`."""
    return f"[{name}]\n" + "".join(f"{operation} = {others.get(operation, value)}\n" for operation in OPERATIONS)


def readers(protection: Protection, name: str, *candidates: str) -> list[str]:
    """Return the roles that may read a property, each asked for alone."""
    return [role for role in candidates if protection.allows(name, "read", who(role))]


ALLOWED = [
    # the header is a regular expression that is searched for
    (section("foo", "a"), "a_foo_b", ["a"], True),
    (section("^foo$", "a"), "a_foo_b", ["a"], False),
    (section("foo", "a"), "FOO", ["a"], False),
    (section("(?i)foo", "a"), "FOO", ["a"], True),
    (section("^foo$", "a"), "foo\n", ["a"], True),
    (section("", "a").replace("[]", "[^]"), "", ["a"], True),
    # it ends with the last ] of its line, keeps its blanks, and what follows is ignored
    (section("^a[b]c$", "a"), "abc", ["a"], True),
    (section("x", "a").replace("[x]", "[x] # more"), "x", ["a"], True),
    (section("x", "a").replace("[x]", "[x] # ]"), "x] # ", ["a"], True),
    (section(" foo ", "a"), "foo", ["a"], False),
    (section(" foo ", "a"), "x foo y", ["a"], True),
    (section("x", "a").replace("[x]", "  [x]"), "x", ["a"], True),
    (section("100%", "a"), "100%", ["a"], True),
    # the first section that matches decides, also by denying
    (section("x", "!") + section("x_a", "a"), "x_a", ["a"], False),
    (section("x_a", "a") + section("x", "!"), "x_a", ["a"], True),
    (section("^x", "a"), "y", ["a", "admin"], False),
    ("", "x", ["admin"], False),
    ("# nothing\n; at all\n", "x", ["admin"], False),
    # values are lists of exact names
    (section("x", "a,b"), "x", ["b"], True),
    (section("x", " a ,\tb "), "x", ["b"], True),
    (section("x", "A"), "x", ["a"], True),
    (section("x", "a"), "x", ["A"], False),  # a service's role, which Glance does not lower
    (section("x", "STRASSE"), "x", ["straße"], False),
    (section("x", "İ"), "x", ["i̇"], True),
    (section("x", "@"), "x", [], True),
    (section("x", "a,@"), "x", [], True),
    (section("x", "!"), "x", ["admin"], False),
    (section("x", "a,!"), "x", ["a"], False),
    (section("x", "@@"), "x", ["a"], False),
    (section("x", "@@"), "x", ["@@"], True),
    (section("x", "@ a"), "x", ["a"], False),
    (section("x", "role:a"), "x", ["a"], False),
    (section("x", "*"), "x", ["a"], False),
    (section("x", ""), "x", ["a", ""], False),
    (section("x", "a,"), "x", [""], True),
    (section("x", ","), "x", [""], True),
    (section("x", "a,"), "x", [], False),
    (section("x", "two words"), "x", ["two words"], True),
    (section("x", "a # b"), "x", ["a"], False),
    (section("x", "a # b"), "x", ["a # b"], True),
    (section("x", "a ; b"), "x", ["a ; b"], True),
    # a value goes on in lines that are indented deeper
    (section("x", "a,\n  b"), "x", ["b"], True),
    (section("x", "a\n  b"), "x", ["a"], False),
    (section("x", "a\n  b"), "x", ["a\nb"], True),
    (section("x", "a,\n\n# c\n  b"), "x", ["b"], True),
    (section("x", "\n  a"), "x", ["a"], True),
    (section("x", "a\n  [y],b"), "x", ["b"], True),
    # keys and delimiters
    (section("x", "a").replace(" = ", ":"), "x", ["a"], True),
    (section("x", "a").replace(" = ", "\t=\t"), "x", ["a"], True),
    (section("x", "= a"), "x", ["= a"], True),
    (section("x", "a").replace("read", "READ"), "x", ["a"], True),
    ("[x]\n" + "".join(f"   {operation} = a\n" for operation in OPERATIONS), "x", ["a"], True),
    (section("x", "a") + "list = b\n%bad = %\n", "x", ["a"], True),
    (section("x", "a").replace("\n", "\r\n"), "x", ["a"], True),
    (section("x", "a").replace("\n", "\r"), "x", ["a"], True),
    # defaults and interpolation
    ("[DEFAULT]\nread = a\n[x]\ncreate = @\nupdate = @\ndelete = @\n", "x", ["a"], True),
    ("[DEFAULT]\nread = a\n" + section("x", "b"), "x", ["a"], False),
    (section("default", "a"), "default", ["a"], True),
    (section("x", "a", read="%(UPDATE)s,b"), "x", ["a"], True),
    ("[DEFAULT]\nteam = a,%(more)s\nmore = b\n" + section("x", "%(team)s"), "x", ["b"], True),
    (section("x", "100%%"), "x", ["100%"], True),
    # os_glance
    (section(".*", "!"), "os_glance_x", [], True),
    (section(".*", "!"), "my_os_glance_x", [], True),
    (section(".*", "!"), "os_glanc", [], False),
    (section("os_glance.*", "!"), "os_glance_x", [], True),
    (section("os_glance(", "!") + section("x", "a"), "x", ["a"], True),  # dropped, wrong or not
    ("[os_glance_x]\nread = !\n", "os_glance_x", [], True),
    (section("^os_glance", "!"), "os_glance_x", [], True),
    ("", "os_glance_x", [], True),
]


@pytest.mark.parametrize(("text", "name", "roles", "allowed"), ALLOWED, ids=repr)
def test_roles_format(text: str, name: str, roles: list[str], allowed: bool) -> None:
    """Each was answered by Glance 33.0.0."""
    assert rules(text).allows(name, "read", who(*roles)) is allowed


def test_operations_are_told_apart() -> None:
    """Each has its own value, and there are four."""
    protection = rules("[x]\ncreate = a\nread = @\nupdate = !\ndelete = a, b\n")
    expected = [True, True, False, True]
    assert [protection.allows("x", operation, who("a")) for operation in OPERATIONS] == expected
    assert [protection.allows("x", operation, who("b")) for operation in OPERATIONS] == [False, True, False, True]
    assert not protection.allows("x", "list", who("a"))
    assert not protection.allows("os_glance", "Read", who("a"))


POLICIES: dict[str, str | list[str | list[str]]] = {"pa": "role:a", "pb": "role:b", "own": "project_id:%(project_id)s", "me": "user_id:user-1"}
BY_POLICY = [
    ("pa", ["a"], True),
    ("pa", ["A"], True),  # role: compares without case
    ("pa", ["b"], False),
    ("@", [], True),
    ("!", ["a"], False),
    ("", ["a"], False),
    ("me", [], True),
    ("own", ["a"], False),  # the target is empty
    ("context_is_admin", ["admin"], True),
    ("get_image", ["reader"], False),
    ("default", [], True),
    ("undefined", [], True),
    ("PA", [], True),
    ("pa or role:zed", ["zed"], True),
    ("pa\n  or rule:pb", ["b"], True),
    ("pa or pb", ["b"], False),  # pb alone is no check
    ("pa and not pb", ["a"], True),
    ("pa and not rule:pb", ["a"], True),
    ("! or @", ["z"], True),  # rule:! is undefined
    ("not pa", ["b"], False),
    ("(pa)", [], False),
    ("pa)", ["a"], False),
    ('"pa"', [], True),  # rule:"pa" is undefined
    ("role:a", ["z"], True),  # rule:role:a is undefined
    ("@@", ["z"], True),
    ("pa pb", ["a"], False),
    ("x:update", ["u"], True),  # another operation's own rule
    ("x:read", ["a"], False),  # refers to itself
    ("os_glance.*:read", ["z"], False),  # rule:@ is what os_glance has
]


@pytest.mark.parametrize(("value", "roles", "allowed"), BY_POLICY, ids=repr)
def test_policies_format(value: str, roles: list[str], allowed: bool) -> None:
    """A value is what follows `rule:` in a policy; each was answered by Glance 33.0.0."""
    protection = rules(section("x", "!", read=value, update="pu"), "policies", Policies.of({**POLICIES, "pu": "role:u", "@": "!"}))
    assert protection.allows("x", "read", who(*roles)) is allowed


def test_undefined_policy_is_the_default_policy() -> None:
    """A policy file that closes the default closes typos too."""
    assert not rules(section("x", "typo"), "policies", Policies.of({"default": "!"})).allows("x", "read", who("admin"))


def test_policy_file_wins_over_a_rule_of_the_same_name() -> None:
    """Glance reads its policy file after it has added the rules of the sections."""
    assert rules(section("x", "!", read="pa"), "policies", Policies.of({**POLICIES, "x:read": "role:b"})).allows("x", "read", who("b"))


REFUSED = [
    ("create = @\n", "line 1: 'create = @' stands before the first section"),
    ("# c\n\ncreate = @\n", "line 3: 'create = @' stands before the first section"),
    ("\ufeff" + section("x", "a"), "line 1: the file begins with a byte order mark"),
    (b"[x]\ncreate = \xff\n", "line 2: it is not UTF-8"),
    ("[]\n", "line 1: '[]' stands before the first section"),
    ("[x]\ncreate\n", "line 2: 'create' is neither a section nor OPERATION = VALUE"),
    ("[x]\r\ncreate = a\r\nread\r\n", "line 3: 'read' is neither a section nor OPERATION = VALUE"),
    ("[x]\n= a\n", "line 2: '= a' is neither a section nor OPERATION = VALUE"),
    (section("x", "a") + section("x", "a"), "line 6: section [x] is there already"),
    (section("x", "a") + "Read = b\n", "line 6: section [x] has 'read' already"),
    (section("^[0-9)", "a"), "section [^[0-9)]: the name is no regular expression (unterminated character set at position 1)"),
    (section("x] # (", "a"), "section [x] # (]: the name is no regular expression"),
    (section("(?<=a+)b", "a"), "section [(?<=a+)b]: the name is no regular expression (look-behind requires fixed-width pattern)"),
    (section("a{99999999999}", "a"), "section [a{99999999999}]: the name is no regular expression"),
    ("[x]\ncreate = a\nread = a\nupdate = a\n", "section [x], delete: it is missing: write 'delete = ' and a role"),
    ("[x]\ncreate = a\n  read = a\nupdate = a\ndelete = a\n", "section [x], read: it is missing"),
    (section("x", "a").replace("delete", "destroy"), "section [x], delete: it is missing"),
    (section("x", "a", update="@,!"), "section [x], update: '@,!' is both everybody (@) and nobody (!)"),
    (section("x", "a", read="100%"), "section [x], read: '%' cannot be replaced"),
    (section("x", "a", read="%(team)s"), "section [x], read: '%' cannot be replaced"),
    (section("x", "a", read="%(read)s"), "section [x], read: '%' cannot be replaced"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED, ids=repr)
def test_what_glance_refuses_is_refused(text: str | bytes, words: str) -> None:
    """With the line or the section and the operation, and what to do, in one line."""
    with pytest.raises(InvalidInput) as caught:
        rules(text)
    said = str(caught.value)
    assert said.startswith("property protection file rules.conf: ")
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("pa,pb", "section [x], update: 'pa,pb' has a comma, and an operation has one policy"),
        ("pa,", "'pa,' has a comma"),
        ("@,!", "'@,!' has a comma"),
        ("pa " + "not " * 5000 + "pb", "cannot be parsed: RecursionError"),
    ],
)
def test_what_glance_refuses_of_policies_is_refused(value: str, words: str) -> None:
    """One policy for an operation; what crashes the parser is refused, as it stops Glance's requests."""
    with pytest.raises(InvalidInput, match="property protection file rules") as caught:
        rules(section("x", "pa", update=value), "policies", Policies.of(POLICIES))
    assert words in str(caught.value)


def test_missing_operation_names_what_the_format_wants() -> None:
    """A policy, in the other format."""
    with pytest.raises(InvalidInput, match="write 'create = ' and a policy, @ for everybody or ! for nobody"):
        rules("[x]\n", "policies")


def test_formats_are_two() -> None:
    """In exactly that spelling."""
    with pytest.raises(InvalidInput, match="'Roles' is no format of rules: use roles or policies"):
        rules("", "Roles")


# --- what must not start a mount


def refusal(path: Path, rule_format: str = "roles") -> str:
    """Return what is said of a file at mount, which has to be one line that names it."""
    with pytest.raises(InvalidInput) as caught:
        Protection.load(path, rule_format, Policies.of(POLICIES))
    said = str(caught.value)
    assert said.startswith(f"property protection file {path}: ")
    assert "\n" not in said
    return said


def write(path: Path, text: str) -> Path:
    """Make a file and return its path."""
    path.write_text(text)
    return path


def test_file_is_loaded(tmp_path: Path) -> None:
    """In both formats, once: its later fate means nothing."""
    path = write(tmp_path / "rules.conf", section("^x_", "a"))
    protection = Protection.load(path, "roles", NONE)
    path.unlink()
    assert readers(protection, "x_1", "a", "b") == ["a"]
    path = write(tmp_path / "rules.conf", section("^x_", "pa or role:zed", delete="!", create="@", update="x_:read").replace("x_:read", "^x_:read"))
    protection = Protection.load(path, "policies", Policies.of(POLICIES))
    assert readers(protection, "x_1", "a", "b", "zed") == ["a", "zed"]
    assert protection.allows("x_1", "update", who("zed"))


def test_dangerous_but_legal_files_are_accepted(tmp_path: Path) -> None:
    """Nothing at all, everything for everybody, and a section that hides all others."""
    for text in ("", section(".*", "@"), section(".*", "") + section("x", "a")):
        assert Protection.load(write(tmp_path / "rules.conf", text), "roles", NONE).allows("os_glance", "read", who())


def test_two_loads_do_not_mix(tmp_path: Path) -> None:
    """Glance's parser keeps the sections of the first."""
    Protection.load(write(tmp_path / "one.conf", section("one", "@")), "roles", NONE)
    assert not Protection.load(write(tmp_path / "two.conf", section("two", "@")), "roles", NONE).allows("one", "read", who("a"))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Glance takes an unreadable file, and a directory, as an empty one."""
    assert "there is no such file" in refusal(tmp_path / "missing.conf")
    assert "it is a directory" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(tmp_path / "fifo")
    assert "more than 1048576 bytes" in refusal(write(tmp_path / "big.conf", "#" * (rules_file.SIZE_LIMIT + 1)))
    assert "section [x], read: it is missing" in refusal(write(tmp_path / "rules.conf", "[x]\ncreate = @\n"))

    def refuse(*_arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(rules_file, "_open", refuse)
    assert "cannot be read (Permission denied)" in refusal(tmp_path / "rules.conf")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("typo", "section [x], update: 'typo' refers to rule 'typo', which is not defined"),
        ("PA", "refers to rule 'PA', which is not defined"),
        ("role:a", "refers to rule 'role:a', which is not defined"),
        ("! or @", "refers to rule '!', which is not defined"),
        ("pa or rule:typo", "refers to rule 'typo', which is not defined"),
        ("pa and not rule:typo", "refers to rule 'typo', which is not defined"),
        ("x:list", "refers to rule 'x:list', which is not defined"),
        ("not pa", "'not pa' has no 'and' or 'or' before 'pa' in 'rule:not pa'"),
        ("pa pb", "has no 'and' or 'or' before 'pb'"),
        ("pa or pb", "has 'pb', which is no check: write KIND:VALUE, such as role:pb or rule:pb"),
        ("pa)", "has a ')' too many"),
        ("(pa)", "has a ')' too many"),
        ("pa or", "ends where a check is due"),
        ('"pa"', "refers to rule '\"pa\"', which is not defined"),
        ("x:update", "refers to itself (x:update -> x:update)"),
        ("x:read", "refers to itself"),
        ("pa or http://policy.example/", "asks a server"),
        ("pa or role:%%", "names no attribute"),
    ],
)
def test_policies_that_would_not_do_what_they_say_are_refused(tmp_path: Path, value: str, words: str) -> None:
    """A typo would let everybody pass, and what cannot be parsed is a rule in the log only."""
    said = refusal(write(tmp_path / "rules.conf", section("x", "@", read="x:update", update=value)), "policies")
    assert words in said or said.endswith(words)


def test_what_is_dropped_may_be_wrong(tmp_path: Path) -> None:
    """Sections of os_glance are not looked at, for Glance drops them."""
    text = section("os_glance_x", "typo") + section("x", "pa")
    assert Protection.load(write(tmp_path / "rules.conf", text), "policies", Policies.of(POLICIES)).allows("x", "read", who("a"))


# --- memory


def test_unprotected_allows_everything() -> None:
    """Without a rules file there are no rules."""
    assert all(UNPROTECTED.allows(name, operation, Identity()) for name in ("x", "", "y" * 1000) for operation in OPERATIONS)


def test_many_and_long_names_have_the_same_answers() -> None:
    """Whether an answer is remembered or not; none is forgotten wrongly."""
    protection = rules(section("^x.*y$", "a") + section("^x", "b"))
    for _ in range(2):
        for number in range(6000):
            assert readers(protection, f"x{number}y" if number % 2 else f"x{number}", "a", "b") == (["a"] if number % 2 else ["b"])
    assert readers(protection, "x" * 100_000 + "y", "a", "b") == ["a"]
    assert readers(protection, "x" * 100_000, "a", "b") == ["b"]


def test_threads_may_share_rules() -> None:
    """Many threads get the same answers."""
    protection = rules(section("^x_[0-4]", "pa") + section("^x", "pb"), "policies", Policies.of(POLICIES))
    wrong: list[str] = []

    def ask() -> None:
        for number in range(5000):
            name = f"x_{number % 10}{number % 97}"
            if readers(protection, name, "a", "b") != (["a"] if number % 10 < 5 else ["b"]):
                wrong.append(name)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
