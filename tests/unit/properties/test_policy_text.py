"""Tests of what is said about policies' texts. That the same texts are refused by oslo.policy is tested along."""

import logging

import pytest

from imagefs.properties.policy import Policies
from imagefs.properties.policy_text import NESTING_LIMIT, mistake, quoted

UNDERSTOOD = [
    "",
    "@",
    "!",
    "role:admin",
    "role:admin or role:member and not role:reader",
    "NOT role:admin OR Role:x",
    "not not role:admin",
    "((role:a and (role:b)))",
    "not (role:a or role:b) and role:c",
    "role:a or (role:b and role:c) and role:d",
    "'public':%(visibility)s and True:%(x)s",
    "role:a\n  or\trole:b",
    "role:",
    "a:b)c",
    ":x",
    [],
    [[]],
    ["role:admin", ["role:member", "role:reader"]],
    [["role:two words"]],
]
MISTAKEN = [
    ("   ", "ends where a check is due"),
    ("role:admin and", "ends where a check is due"),
    ("not", "ends where a check is due"),
    ("! and", "ends where a check is due"),
    ("and role:admin", "has nothing before 'and'"),
    ("role:a or or role:b", "has nothing before 'or'"),
    ("()", "has a ')' too many or too early"),
    ("(role:a", "has a '(' without its ')'"),
    ("role:a)", "has a ')' too many or too early"),
    ("role:%(x)", "has a ')' too many or too early"),
    ("role:a role:b", "has no 'and' or 'or' before 'role:b'"),
    ("role:a not role:b", "has no 'and' or 'or' before 'not'"),
    ("role:a (role:b)", "has no 'and' or 'or' before '('"),
    ("admin", "write KIND:VALUE, such as role:admin"),
    ("not admin", "write KIND:VALUE, such as role:admin"),
    ("'role:admin'", "in quotes of its own"),
    ("'public':'x'", "in quotes of its own"),
    (["admin"], "has 'admin', which is no check"),
    ([["role:a", "b"]], "has 'b', which is no check"),
]


def oslo_complaints(rule: object, caplog: pytest.LogCaptureFixture) -> int:
    """Return how often oslo.policy says in its log that it does not understand a rule."""
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="oslo_policy"):
        Policies.of({"rule": rule})  # type: ignore[dict-item] # whatever it is
    return len(caplog.records)


@pytest.mark.parametrize("rule", UNDERSTOOD, ids=repr)
def test_what_oslo_policy_understands_passes(rule: object, caplog: pytest.LogCaptureFixture) -> None:
    """No rule is refused that means something."""
    assert mistake(rule) is None
    assert not oslo_complaints(rule, caplog)


@pytest.mark.parametrize(("rule", "words"), MISTAKEN, ids=repr)
def test_what_oslo_policy_would_read_as_deny_is_said(rule: object, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """The reason names the spot; oslo.policy would only have logged it."""
    assert words in str(mistake(rule))
    # a list's member in quotes is the one text that oslo.policy takes, and then fails to evaluate
    assert oslo_complaints(rule, caplog)


@pytest.mark.parametrize("rule", [None, 5, True, {"role": "admin"}, [5], [["role:a", None]], [[["role:a"]]]], ids=repr)
def test_what_is_no_text_is_refused(rule: object) -> None:
    """YAML's other values too: an empty value would let everybody pass."""
    assert "text" in str(mistake(rule))


def test_nesting_is_bounded() -> None:
    """A rule that would exhaust the stack is refused before it is parsed."""
    assert mistake("(" * NESTING_LIMIT + "role:a" + ")" * NESTING_LIMIT) is None
    assert "nested" in str(mistake("(" * (NESTING_LIMIT + 1) + "role:a" + ")" * (NESTING_LIMIT + 1)))
    assert "nested" in str(mistake("not " * 5000 + "role:a"))


def test_messages_stay_on_one_short_line() -> None:
    """What stands in a file may be long and have control characters."""
    assert "\n" not in quoted("a\nb\x1b[2J")
    assert "\x1b" not in quoted("a\nb\x1b[2J")
    assert len(quoted("x" * 10000)) < 100
