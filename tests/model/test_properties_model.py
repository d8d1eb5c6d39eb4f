"""Properties under random protections against a table of outcomes: what two callers do in turn, and what each of them may learn from it."""

import dataclasses

import hypothesis.strategies as st
from hypothesis import given, settings

from imagefs.errors import AlreadyExists, ImagefsError, NoAttribute, NotPermitted
from imagefs.identity.map import Identity
from imagefs.properties.access import Access
from imagefs.properties.change import Mode, remove_attribute, set_attribute
from imagefs.properties.policy import Policies
from imagefs.properties.protection import OPERATIONS, Protection
from imagefs.store.record import ImageRecord
from tests.support.access import image

NAMES = ("a", "b", "c", "a_b", "bc")
SECTIONS = ("a", "^b", "c$", "^a_", ".*")
ROLES = ("member", "auditor")
CALLERS = [Identity(frozenset({role}), "owner") for role in ROLES]
POLICIES = Policies.of({"get_image": "@", "modify_image": "@"})

rules = st.lists(
    st.tuples(st.sampled_from(SECTIONS), st.fixed_dictionaries({operation: st.sets(st.sampled_from(ROLES)) for operation in OPERATIONS})),
    max_size=4,
    unique_by=lambda section: section[0],
)
Rules = list[tuple[str, dict[str, set[str]]]]
properties = st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["1", "2"]))


@dataclasses.dataclass(frozen=True)
class Step:
    """What one caller does: a value of None removes."""

    caller: Identity
    name: str
    value: str | None
    mode: Mode


steps = st.builds(Step, st.sampled_from(CALLERS), st.sampled_from(NAMES), st.sampled_from(["1", "2", None]), st.sampled_from(Mode))


def access_of(found: Rules) -> Access:
    """Return the rules as a file has them."""
    lines = [f"[{section}]\n" + "".join(f"{operation} = {','.join(sorted(roles))}\n" for operation, roles in who.items()) for section, who in found]
    return Access(POLICIES, Protection.parse("\n".join(lines).encode(), "rules", "roles", POLICIES))


def may(found: Rules, caller: Identity, operation: str, name: str) -> bool:
    """Say what the rules mean: the first section that is found in the name decides, and no section denies."""
    means = {"a": "a" in name, "^b": name.startswith("b"), "c$": name.endswith("c"), "^a_": name.startswith("a_"), ".*": True}
    first = next((who for section, who in found if means[section]), None)
    return first is not None and bool(caller.roles & first[operation])


def expected(found: Rules, stored: dict[str, str], step: Step) -> dict[str, str] | type[ImagefsError]:
    """Return what is stored afterwards, or the refusal: the contract written as a table."""
    there = step.name in stored
    visible = there and may(found, step.caller, "read", step.name)
    without = {name: value for name, value in stored.items() if name != step.name}
    if step.value is None:
        if not visible:
            return NoAttribute
        return without if may(found, step.caller, "delete", step.name) else NotPermitted
    after = without | {step.name: step.value}
    if step.mode is Mode.REPLACE and not visible:
        return NoAttribute
    if step.mode is Mode.CREATE and visible:
        return AlreadyExists
    if visible:
        return after if may(found, step.caller, "update", step.name) else NotPermitted
    return after if not there and may(found, step.caller, "create", step.name) else NotPermitted


def done(access: Access, record: ImageRecord, step: Step) -> tuple[ImageRecord, type[ImagefsError] | None, str]:
    """Return the record afterwards, and the refusal with its words."""
    try:
        if step.value is None:
            return remove_attribute(record, step.name, step.caller, access), None, ""
        return set_attribute(record, step.name, step.value.encode(), step.mode, step.caller, access), None, ""
    except ImagefsError as error:
        return record, type(error), str(error)


@settings(max_examples=300, deadline=None)
@given(rules, properties, st.lists(steps, max_size=12))
def test_outcomes_are_those_of_the_table(found: Rules, stored: dict[str, str], wanted: list[Step]) -> None:
    """Each step changes its own name only, or nothing; what each caller reads is what the rules let it read."""
    access = access_of(found)
    record = image(stored)
    for step in wanted:
        outcome = expected(found, record.properties, step)
        changed, refusal, _ = done(access, record, step)
        if isinstance(outcome, dict):
            assert refusal is None
            assert changed.properties == outcome
        else:
            assert refusal is outcome
            assert changed is record
        assert {name for name in NAMES if record.properties.get(name) != changed.properties.get(name)} <= {step.name}
        record = changed
        for caller in CALLERS:
            assert access.readable(caller, record) == {name: value for name, value in record.properties.items() if may(found, caller, "read", name)}


@settings(max_examples=300, deadline=None)
@given(rules, properties, properties, st.sampled_from(CALLERS), st.lists(steps, max_size=12))
def test_what_cannot_be_read_is_not_revealed(
    found: Rules, stored: dict[str, str], hidden: dict[str, str], caller: Identity, wanted: list[Step]
) -> None:
    """Two images that differ in what a caller cannot read answer it in the same words.

    One exception is in the contract: what the caller could create is refused where something is there. No step tells its value.
    """
    access = access_of(found)
    readable = {name: value for name, value in stored.items() if may(found, caller, "read", name)}
    secret = {name: value for name, value in hidden.items() if not may(found, caller, "read", name)}
    bare, full = image(readable), image(readable | secret)
    for step in wanted:
        told = dataclasses.replace(step, caller=caller)
        if may(found, caller, "create", step.name) and not may(found, caller, "read", step.name):
            other = image(full.properties | {name: value * 2 for name, value in full.properties.items() if name in secret})
            assert done(access, full, told)[1:] == done(access, other, told)[1:]
            continue
        bare, *said_of_bare = done(access, bare, told)
        full, *said_of_full = done(access, full, told)
        assert said_of_bare == said_of_full
        assert access.readable(caller, bare) == access.readable(caller, full)
        assert {name: value for name, value in full.properties.items() if name in secret} == secret
