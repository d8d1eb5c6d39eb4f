"""This module evaluates policies, in the language of oslo.policy and under Glance's names.

oslo.policy parses; what it parsed is compiled into closures. Calling its checks takes 300 us for Glance's `get_image`, since it inspects the
signature of every check at every evaluation (6.0.1, measured in November 2026); a directory of a thousand images would take a third of a second.
A `Policies` never changes: a reload makes another one.
"""

import ast
import dataclasses
import difflib
import functools
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final, Self, cast

import yaml
from oslo_policy import policy

from imagefs.errors import InvalidInput
from imagefs.identity.map import Identity
from imagefs.properties.policy_defaults import DEFAULTS, FALLBACK
from imagefs.properties.policy_text import mistake, quoted
from imagefs.properties.rules_file import read_rules

_log = logging.getLogger(__name__)

Rule = str | list[str | list[str]]
"""A rule as a policy file has it: a text, or the list of lists of checks of old JSON files."""
_REMOTE: Final = frozenset({"http", "https", "remote"})
_IDENTITIES: Final = 4096
"""Identities whose credentials are kept; a node has a few dozen."""
_NO_SCOPE: Final = dict.fromkeys(
    (
        "system_scope",
        "domain_id",
        "user_domain_id",
        "project_domain_id",
        "service_user_id",
        "service_user_domain_id",
        "service_project_id",
        "service_project_domain_id",
    )
)
"""What else Glance's context has: a check may name it, and compares with the text None."""
_ATTRIBUTES: Final = frozenset({"roles", "service_roles", "project_id", "user_id", "is_admin_project", *_NO_SCOPE})


@dataclasses.dataclass(frozen=True, slots=True)
class _Credentials:
    """An identity as checks see it: `roles` in lower case for role:, `attributes` for all other kinds."""

    roles: frozenset[str]
    attributes: Mapping[str, object]


Verdict = Callable[[Mapping[str, object], _Credentials], bool]


class Policies:
    """All policies of a mount: Glance's defaults, and what a policy file says in their place.

    Never changes after it is made, so any thread may ask it.
    """

    def __init__(self, checks: Mapping[str, object]) -> None:
        """Take each policy's parsed check by name; use `load` or `of`."""
        self._checks = dict(checks)
        self._verdicts: dict[str, Verdict] = {}
        for name, check in self._checks.items():
            self._verdicts[name] = _compile(check, self._verdicts)
        self._crashed: set[str] = set()

    @classmethod
    def load(cls, policy_file: Path | None) -> Self:
        """Return Glance's defaults overridden by `policy_file` and the files of policy.d beside it; None means no file.

        Raises InvalidInput with the file, the policy and the reason for all that would not do what it says: a file that cannot be read
        whole, a rule that cannot be parsed or evaluated, refers to one that is not defined or to itself, or asks a server.
        """
        overrides: dict[str, Rule] = {}
        origins: dict[str, Path] = {}
        for path in _files(policy_file) if policy_file is not None else ():
            for name, rule in _read(path).items():
                if (wrong := mistake(rule)) is not None:
                    raise InvalidInput(f"policy file {path}: policy {quoted(name)} {wrong}")
                overrides[name] = rule
                origins[name] = path
        policies = cls({name: _parse(rule) for name, rule in {**DEFAULTS, **overrides}.items()})
        for name, path in origins.items():
            if (wrong := policies.flaw(name)) is not None:
                raise InvalidInput(f"policy file {path}: policy {quoted(name)} {wrong}")
        policies._warn_of_misspelt(origins)
        return policies

    @classmethod
    def of(cls, overrides: Mapping[str, Rule]) -> Self:
        """Return what Glance makes of a policy file with these rules, which is lenient: what cannot be parsed denies."""
        return cls({name: _parse_or_deny(rule) for name, rule in {**DEFAULTS, **overrides}.items()})

    def extended(self, rules: Mapping[str, str]) -> Self:
        """Return these policies and further ones; a name that is there already keeps its rule, as when Glance adds those of property protections.

        Raises InvalidInput if a rule crashes the parser.
        """
        return type(self)({name: _parse(rule) for name, rule in rules.items()} | self._checks)

    def defines(self, name: str) -> bool:
        """Tell whether there is a policy of this name: one of Glance's, or one that the policy file adds."""
        return name in self._checks

    def allows(self, name: str, target: Mapping[str, object], identity: Identity) -> bool:
        """Tell whether the policy lets this identity do it to `target`: an image's attributes and readable properties by name, or nothing.

        A check that needs an attribute which the target or the identity has not is false. A policy that is not defined denies, as it does in
        Glance where its own code asks; so does one whose evaluation fails, and the log says so once. Never raises, reads no files.
        """
        try:
            return bool(self._verdicts[name](target, _credentials(identity)))
        except Exception as error:
            # also RecursionError: rules that refer to each other in a circle, which only `of` lets in
            if name not in self._crashed:
                self._crashed.add(name)
                _log.error("policy cannot be evaluated and denies; correct it: policy=%r error=%r", name, error)
            return False

    def flaw(self, name: str) -> str | None:
        """Say why this policy cannot do what its text says, in words that follow its name; None if it is sound by itself.

        What it refers to has to be asked for separately, except that a circle through it is found.
        """
        found = filter(None, (_leaf_flaw(leaf, self._checks) for leaf in _leaves(self._checks[name])))
        return next(found, None) or self._circle(name)

    def _circle(self, name: str) -> str | None:
        came_from: dict[str, str] = {}
        ahead = [name]
        while ahead:
            here = ahead.pop()
            for there in _references(self._checks[here]):
                if there == name:
                    way = [here]
                    while way[-1] != name:
                        way.append(came_from[way[-1]])
                    circle = " -> ".join([*reversed(way), name])
                    return f"refers to itself ({circle}): take one of these references out"
                if there in self._checks and there not in came_from:
                    came_from[there] = here
                    ahead.append(there)
        return None

    def _warn_of_misspelt(self, origins: Mapping[str, Path]) -> None:
        """A name that is almost one of Glance's, and that no other rule uses, was probably to be that one."""
        used = {reference for check in self._checks.values() for reference in _references(check)}
        for name in origins.keys() - DEFAULTS.keys() - used:
            if meant := difflib.get_close_matches(name, DEFAULTS, n=1, cutoff=0.9):
                _log.warning("policy guards nothing, is its name misspelt? file=%s policy=%r similar=%s", origins[name], name, meant[0])


@functools.lru_cache(_IDENTITIES)
def _credentials(identity: Identity) -> _Credentials:
    """Return what Glance's context gives to checks, but no project and no user for an identity without them.

    Glance passes those as None too, and compares as text: there a caller without a project owns the images without an owner.
    """
    attributes: dict[str, object] = {"roles": sorted(identity.roles), "is_admin_project": True, "service_roles": [], **_NO_SCOPE}
    attributes |= {name: value for name in ("project_id", "user_id") if (value := getattr(identity, name)) is not None}
    return _Credentials(frozenset(role.lower() for role in identity.roles), attributes)


def _files(policy_file: Path) -> Iterator[Path]:
    """Return the policy file, then those of policy.d beside it in the order of their names; hidden ones and directories are passed over."""
    yield policy_file
    directory = policy_file.parent / "policy.d"
    try:
        yield from sorted(path for path in directory.iterdir() if not path.name.startswith(".") and not path.is_dir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidInput(
            f"policy directory {directory}: it cannot be read ({error.strerror}): make it a readable directory, or remove it"
        ) from None


def _read(path: Path) -> dict[str, Rule]:
    """Return a file's rules by name, not yet looked at; raises InvalidInput."""
    body = read_rules(path, "policy file")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"policy file {path}: byte {error.start} is not UTF-8: save the file as UTF-8") from None
    found = _parse_file(text, path)
    if not isinstance(found, dict):
        raise InvalidInput(f'policy file {path}: it is {quoted(found)} and no mapping: write lines such as  get_image: "role:reader"')
    for name in found:
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"policy file {path}: {quoted(name)} names no policy: write it in quotes")
    return found


def _parse_file(text: str, path: Path) -> object:
    if path.suffix == ".json":
        # YAML forbids tabs where JSON has them
        try:
            return json.loads(text, object_pairs_hook=lambda pairs: _each_once(pairs, path))
        except (ValueError, RecursionError):
            pass
    try:
        found = policy.parse_file_contents(text)
        mapping = yaml.compose(text, Loader=yaml.SafeLoader)
    except Exception as error:  # YAML's, and what its constructors raise for dates that are none or for text nested too deeply
        cause = error.__context__
        mark = getattr(cause, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        reason = getattr(cause, "problem", None) or " ".join(str(error).split())
        raise InvalidInput(f"policy file {path}: {line}it is neither YAML nor JSON: {reason}") from None
    if isinstance(mapping, yaml.MappingNode):
        _each_once(((key.value, key.start_mark.line + 1) for key, _ in mapping.value), path, "line")
    return found


def _each_once(pairs: Iterable[tuple[str, object]], path: Path, where: str = "") -> dict[str, object]:
    """Return the pairs as a dict. Raises InvalidInput for a name that is there twice: of its rules the last one would count, and the others not.

    With `where` the values are what tells where the name stands, in that unit.
    """
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            place = f"{where} {value}: " if where else ""
            raise InvalidInput(f"policy file {path}: {place}policy {quoted(name)} is there already: leave one of the two")
        found[name] = value
    return found


def _parse(rule: Rule) -> object:
    """Return oslo.policy's check; raises InvalidInput if that crashes, which a rule nested a thousand deep or one that is a number does."""
    try:
        return policy.Rules.from_dict(cast("dict[str, str]", {"": rule}))[""]
    except Exception as error:
        raise InvalidInput(f"{quoted(rule)} cannot be parsed: {type(error).__name__}") from None


def _parse_or_deny(rule: Rule) -> object:
    try:
        return _parse(rule)
    except InvalidInput:
        return _DENY


_DENY: Final = _parse("!")
_ALLOW: Final = _parse("@")
_ROLE: Final = type(_parse("role:name"))
_GENERIC: Final = type(_parse("attribute:value"))
# oslo.policy names its operators in public, but not these


def _compile(check: object, verdicts: Mapping[str, Verdict]) -> Verdict:
    """Return a function that decides as oslo.policy's check does; rules are looked up in `verdicts` when it is called."""
    if isinstance(check, policy.NotCheck):
        negated = _compile(check.rule, verdicts)
        return lambda target, credentials: not negated(target, credentials)
    if isinstance(check, policy.AndCheck):
        return _all_of([_compile(part, verdicts) for part in check.rules])
    if isinstance(check, policy.OrCheck):
        return _any_of([_compile(part, verdicts) for part in check.rules])
    if isinstance(check, policy.RuleCheck):
        return _rule(check.match, verdicts)
    if isinstance(check, policy.Check) and type(check) is _ROLE:
        return _role(check.match)
    if isinstance(check, policy.Check) and type(check) is _GENERIC:
        return _attribute(check.kind, check.match)
    allowed = check == _ALLOW  # what is left is "@", "!" and the checks that ask a server, which deny
    return lambda _target, _credentials: allowed


def _all_of(parts: list[Verdict]) -> Verdict:
    def verdict(target: Mapping[str, object], credentials: _Credentials) -> bool:
        for part in parts:  # noqa: SIM110 - all() with a generator takes twice as long
            if not part(target, credentials):
                return False
        return True

    return verdict


def _any_of(parts: list[Verdict]) -> Verdict:
    def verdict(target: Mapping[str, object], credentials: _Credentials) -> bool:
        for part in parts:  # noqa: SIM110 - as above
            if part(target, credentials):
                return True
        return False

    return verdict


def _rule(name: str, verdicts: Mapping[str, Verdict]) -> Verdict:
    def verdict(target: Mapping[str, object], credentials: _Credentials) -> bool:
        return (verdicts.get(name) or verdicts[FALLBACK])(target, credentials)

    return verdict


def _role(match: str) -> Verdict:
    if "%" not in match:
        role = match.lower()
        return lambda _target, credentials: role in credentials.roles

    def verdict(target: Mapping[str, object], credentials: _Credentials) -> bool:
        try:
            wanted = match % target
        except KeyError:
            return False
        return wanted.lower() in credentials.roles

    return verdict


def _attribute(kind: str, match: str) -> Verdict:
    """Compare, as texts, `match` with what `kind` is: a Python literal, or the dotted way to an attribute of the caller."""
    try:
        literal = _literal(kind)
    except Exception as error:
        reason = f"{quoted(kind)} is neither a literal nor an attribute: {type(error).__name__}"
    else:
        reason = ""
    way = kind.split(".")

    def verdict(target: Mapping[str, object], credentials: _Credentials) -> bool:
        try:
            value = match % target
        except KeyError:
            return False
        if reason:
            raise ValueError(reason)
        return value == literal if literal is not None else _holds(credentials.attributes, way, value)

    return verdict


def _literal(kind: str) -> str | None:
    """Return the text of a literal, None for a name; raises, as Glance does when it evaluates, what the compiler raises for neither."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a strange escape in the literal
        try:
            return str(ast.literal_eval(kind))
        except ValueError:
            return None


def _holds(value: object, way: list[str], wanted: str) -> bool:
    """Tell whether the way from `value` leads to the text `wanted`; of a list, any element may."""
    if not way:
        return str(value) == wanted
    try:
        value = cast("Mapping[str, object]", value)[way[0]]
    except KeyError:
        return False
    if isinstance(value, list):
        return any(_holds(element, way[1:], wanted) for element in value)
    return _holds(value, way[1:], wanted)


def _leaves(check: object) -> Iterator[object]:
    if isinstance(check, policy.NotCheck):
        yield from _leaves(check.rule)
    elif isinstance(check, policy.AndCheck | policy.OrCheck):
        for part in check.rules:
            yield from _leaves(part)
    else:
        yield check


def _references(check: object) -> Iterator[str]:
    return (leaf.match for leaf in _leaves(check) if isinstance(leaf, policy.RuleCheck))


def _leaf_flaw(leaf: object, known: Mapping[str, object]) -> str | None:
    """Say why one check can never do what it says."""
    if not isinstance(leaf, policy.Check):
        return None
    if isinstance(leaf, policy.RuleCheck):
        return None if leaf.match in known else f"refers to rule {quoted(leaf.match)}, which is not defined: define it, or correct the name"
    shown = quoted(f"{leaf.kind}:{leaf.match}")
    if leaf.kind in _REMOTE or type(leaf) not in {_ROLE, _GENERIC}:
        return f"has the check {shown}, which asks a server at every access: imagefs does not, use roles and attributes"
    try:
        leaf.match % _AnyName()
    except (ValueError, TypeError):
        return f"has the check {shown} with a '%' that names no attribute: write %(NAME)s, or %% for the sign itself"
    if leaf.kind.partition(".")[0] in _ATTRIBUTES and "." in leaf.kind:
        return f"has the check {shown}, but that attribute of the caller has no parts: write what stands before the '.'"
    try:
        if type(leaf) is _GENERIC:
            _literal(leaf.kind)
    except Exception:
        return f"has the check {shown}, whose part before the ':' is neither an attribute of the caller nor a literal such as 'public' or True"
    return None


class _AnyName(dict[str, int]):
    """A target that has every attribute, as a number, which all conversions take."""

    def __missing__(self, name: str) -> int:
        return 0
