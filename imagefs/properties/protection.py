"""This module applies property protections: who may create, read, update and delete which additional properties.

The rules file is Glance's, down to its corners: what Python's ConfigParser accepts, the first section whose regular expression is found anywhere
in the name decides, and no section means no. Where Glance starts with a file that does not do what it says, `Protection.load` refuses it.
A `Protection` never changes: a reload makes another one.
"""

import configparser
import dataclasses
import functools
import io
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

from imagefs.errors import InvalidInput
from imagefs.identity.map import Identity
from imagefs.properties.policy import Policies
from imagefs.properties.policy_text import mistake, quoted
from imagefs.properties.rules_file import read_rules

OPERATIONS: Final = ("create", "read", "update", "delete")
RULE_FORMATS: Final = ("roles", "policies")
EVERYBODY: Final = "@"
NOBODY: Final = "!"
OS_GLANCE: Final = "os_glance"
"""What the names of Glance's internal properties contain: they bypass all rules, and sections that begin with it are dropped (LP#2085321)."""
_NAMES: Final = 4096
"""Names of properties whose section is remembered."""
_DECISIONS: Final = 16384
_NAME_LIMIT: Final = 256
"""Characters; a longer name, which no database of Glance has, is looked up each time and not remembered."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Rule:
    """Who may do one operation: everybody, nobody (both false, no roles, no policy), any of `roles`, or whom `policy` allows."""

    everybody: bool = False
    roles: frozenset[str] = frozenset()
    policy: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Section:
    """One section: the text of its header, which is a regular expression, and its four values."""

    name: str
    pattern: re.Pattern[str]
    values: Mapping[str, str]

    def policy(self, operation: str) -> str:
        """Return the name under which Glance registers the policy of one operation."""
        return f"{self.name}:{operation}"


class Protection:
    """The rules of one file. Never changes after it is made, so any thread may ask it."""

    def __init__(self, sections: tuple[_Section, ...], rule_format: str, policies: Policies) -> None:
        """Take the sections in the order of the file; use `load` or `parse`. Raises InvalidInput if a policy crashes the parser."""
        if rule_format == "policies":
            policies = policies.extended({section.policy(operation): f"rule:{value}" for section, operation, value in _values(sections) if value})
        self._policies = policies
        self._sections = [
            (section.pattern, {operation: _compile(section, operation, rule_format) for operation in OPERATIONS}) for section in sections
        ]
        self._rules = functools.lru_cache(_NAMES)(self._first)
        self._decided = functools.lru_cache(_DECISIONS)(self._decide)

    @classmethod
    def load(cls, path: Path, rule_format: str, policies: Policies) -> Self:
        """Return the rules of the file; raises InvalidInput with file, section, operation and reason for what must not start a mount.

        That is all that Glance refuses or crashes on, a file that cannot be read whole (Glance takes an unreadable one as empty), and policies
        that are not defined (Glance lets everybody pass) or cannot be parsed. A file that opens more than is wise, but says so, is accepted.
        """
        body = read_rules(path, "property protection file")
        sections = _read_sections(body, str(path), rule_format)
        if rule_format == "policies":
            for section, operation, value in _values(sections):
                if value not in {"", EVERYBODY, NOBODY} and (wrong := mistake(f"rule:{value}")) is not None:
                    raise _refusal(str(path), section.name, operation, f"{quoted(value)} {wrong}")
        protection = cls(sections, rule_format, policies)
        for section, operation, value in _values(sections) if rule_format == "policies" else ():
            if value not in {"", EVERYBODY, NOBODY} and (wrong := protection._policies.flaw(section.policy(operation))) is not None:
                raise _refusal(str(path), section.name, operation, f"{quoted(value)} {wrong}")
        return protection

    @classmethod
    def parse(cls, body: bytes, origin: str, rule_format: str, policies: Policies) -> Self:
        """Return the rules that Glance makes of these bytes; raises InvalidInput for what it refuses or crashes on. `origin` names the file."""
        sections = _read_sections(body, origin, rule_format)
        try:
            return cls(sections, rule_format, policies)
        except InvalidInput as error:
            raise InvalidInput(f"property protection file {origin}: {error}") from None

    def allows(self, name: str, operation: str, identity: Identity) -> bool:
        """Tell whether this identity may do one of the four operations to the property of this name; never raises, reads no files."""
        if len(name) > _NAME_LIMIT:
            return self._may(self._first(name), operation, identity)
        return self._decided(name, operation, identity)

    def _decide(self, name: str, operation: str, identity: Identity) -> bool:
        return self._may(self._rules(name), operation, identity)

    def _first(self, name: str) -> Mapping[str, _Rule]:
        """Return the rules of the first section that the name matches; none without one, and for admin too none means denied."""
        return next((rules for pattern, rules in self._sections if pattern.search(name)), {})

    def _may(self, rules: Mapping[str, _Rule], operation: str, identity: Identity) -> bool:
        rule = rules.get(operation)
        if rule is None:
            return False
        if rule.policy:
            return self._policies.allows(rule.policy, {}, identity)
        return rule.everybody or not rule.roles.isdisjoint(identity.roles)


class _Unprotected(Protection):
    """What holds without a rules file: everybody may do everything."""

    def __init__(self) -> None:
        super().__init__((), "roles", Policies.of({}))

    def allows(self, name: str, operation: str, identity: Identity) -> bool:
        """Return True."""
        return True


UNPROTECTED: Final[Protection] = _Unprotected()
"""Stands for no rules file."""


def _values(sections: tuple[_Section, ...]) -> Iterator[tuple[_Section, str, str]]:
    return ((section, operation, section.values[operation]) for section in sections for operation in OPERATIONS)


def _compile(section: _Section, operation: str, rule_format: str) -> _Rule:
    value = section.values[operation]
    items = frozenset(item.strip() for item in value.split(",")) if rule_format == "roles" else {value}
    if not value or NOBODY in items:
        return _Rule()
    if EVERYBODY in items:
        return _Rule(everybody=True)
    if rule_format == "policies":
        return _Rule(policy=section.policy(operation))
    # an item may be empty ("admin,"): then it is the role "", which a caller can have. Callers' roles are taken as they are: Glance lowers
    # those of the token, but not those of a service
    return _Rule(roles=frozenset(item.lower() for item in items))


def _read_sections(body: bytes, origin: str, rule_format: str) -> tuple[_Section, ...]:
    """Return Glance's own section and then those of the file; raises InvalidInput."""
    if rule_format not in RULE_FORMATS:
        raise InvalidInput(f"property protection file {origin}: {quoted(rule_format)} is no format of rules: use {' or '.join(RULE_FORMATS)}")
    parser = _read(body, origin)
    internal = _Section(f"{OS_GLANCE}.*", re.compile(f"{OS_GLANCE}.*"), dict.fromkeys(OPERATIONS, EVERYBODY))
    return internal, *(_read_section(parser, name, origin, rule_format) for name in parser.sections() if not name.startswith(OS_GLANCE))


def _read(body: bytes, origin: str) -> configparser.ConfigParser:
    """Return the file as ConfigParser reads it, in one go and into a new parser: Glance's keeps sections of earlier loads."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        raise InvalidInput(f"property protection file {origin}: line {line}: it is not UTF-8: save the file as UTF-8") from None
    parser = configparser.ConfigParser()
    try:
        parser.read_file(io.StringIO(text, newline=None), origin)
    except configparser.Error as error:
        raise InvalidInput(f"property protection file {origin}: {_where_and_why(error, text)}") from None
    return parser


def _where_and_why(error: configparser.Error, text: str) -> str:
    match error:
        case configparser.MissingSectionHeaderError() if text.startswith("\N{BYTE ORDER MARK}"):
            return "line 1: the file begins with a byte order mark: save it as UTF-8 without one"
        case configparser.MissingSectionHeaderError():
            return f"line {error.lineno}: {quoted(error.line.strip())} stands before the first section: begin with a header such as [^x_]"
        case configparser.ParsingError() if error.errors:
            number = error.errors[0][0]
            line = io.StringIO(text, newline=None).read().split("\n")[number - 1].strip()
            return f"line {number}: {quoted(line)} is neither a section nor OPERATION = VALUE: correct it, or begin it with # if it is a comment"
        case configparser.DuplicateSectionError():
            return f"line {error.lineno}: section [{_shown(error.section)}] is there already: join the two"
        case configparser.DuplicateOptionError():
            return f"line {error.lineno}: section [{_shown(error.section)}] has {quoted(error.option)} already: leave one of the two"
    return " ".join(str(error).split())


def _read_section(parser: configparser.ConfigParser, name: str, origin: str, rule_format: str) -> _Section:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a set that a later version of Python may read in another way
            pattern = re.compile(name)
    except Exception as error:  # re.error, and what else the compiler raises for numbers too large or text nested too deeply
        reason = f"the name is no regular expression ({error}): correct it, and write \\ before a character that stands for itself"
        raise _refusal(origin, name, "", reason) from None
    return _Section(name, pattern, {operation: _read_value(parser, name, operation, origin, rule_format) for operation in OPERATIONS})


def _read_value(parser: configparser.ConfigParser, name: str, operation: str, origin: str, rule_format: str) -> str:
    try:
        value = parser.get(name, operation)
    except configparser.NoOptionError:
        reason = f"it is missing: write '{operation} = ' and a {rule_format.removesuffix('s')}, @ for everybody or ! for nobody"
        raise _refusal(origin, name, operation, reason.replace("policie", "policy")) from None
    except configparser.Error as error:
        reason = f"'%' cannot be replaced ({' '.join(str(error).split())[:200]}): write %% for the sign itself, or %(KEY)s for the value of a key"
        raise _refusal(origin, name, operation, reason) from None
    items = [item.strip() for item in value.split(",")]
    if rule_format == "roles" and EVERYBODY in items and NOBODY in items:
        raise _refusal(origin, name, operation, f"{quoted(value)} is both everybody (@) and nobody (!): leave one of the two")
    if rule_format == "policies" and len(items) > 1:
        reason = f"{quoted(value)} has a comma, and an operation has one policy: combine several in the policy file, and name that one here"
        raise _refusal(origin, name, operation, reason)
    return value


def _refusal(origin: str, section: str, operation: str, reason: str) -> InvalidInput:
    return InvalidInput(f"property protection file {origin}: section [{_shown(section)}]{operation and f', {operation}'}: {reason}")


def _shown(name: str) -> str:
    return quoted(name)[1:-1]
