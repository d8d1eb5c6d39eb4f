"""This module checks the properties and tags of images that a command line gives, before anything is asked to store them."""

from collections.abc import Iterable

from imagefs.errors import InvalidInput
from imagefs.properties.core import check_text, is_reserved, is_text


def parse_properties(assignments: Iterable[str]) -> dict[str, str]:
    """Return the properties of KEY=VALUE texts; the last one of a key counts. Raises InvalidInput."""
    properties: dict[str, str] = {}
    for assignment in assignments:
        key, value = split_assignment(assignment)
        if is_reserved(key):
            raise InvalidInput(f"--property '{key}': that cannot be a property: Glance or imagefs gives the name a meaning of its own")
        properties[check_text(key, "a property's name")] = check_value(value, f"--property '{key}'")
    return properties


def split_assignment(assignment: str) -> tuple[str, str]:
    """Return key and value of a KEY=VALUE text. Raises InvalidInput."""
    key, separator, value = assignment.partition("=")
    if not separator:
        raise InvalidInput(f"--property '{assignment[:80]}': write KEY=VALUE")
    return key, value


def check_value(value: str, option: str) -> str:
    """Return a text that can be the value of a property. Raises InvalidInput, naming the option that gave it."""
    if not is_text(value):
        raise InvalidInput(f"{option}: the value is not UTF-8, or has a NUL in it")
    return value


def parse_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Return the tags, each once. Raises InvalidInput."""
    return tuple(dict.fromkeys(check_text(tag, "a tag") for tag in tags))
