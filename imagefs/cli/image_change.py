"""This module changes an image through its extended attributes on a mount: each change by itself, by the rules that the mount applies."""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from imagefs.cli.listing import image_path
from imagefs.cli.mountpoint import explained
from imagefs.errors import ImagefsError, InvalidInput
from imagefs.properties.view import XATTR_NAME_LIMIT, XATTR_VALUE_LIMIT

_PREFIX = "user."


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One change of an image: the option that asks for it, an attribute without `user.`, and its new value; None removes it.

    The option is empty where the command asks for nothing else.
    """

    option: str
    attribute: str
    value: str | None

    def said(self, what: str) -> str:
        """Return what is being done, for messages: `what`, and the option."""
        return f"{what}: {self.option}" if self.option else what

    def check(self, what: str) -> None:
        """Raise InvalidInput if Linux has no extended attribute of such a name or value, and so no mount can be asked for the change."""
        name, limit = self.attribute.encode("utf-8", "surrogateescape"), XATTR_NAME_LIMIT - len(_PREFIX)
        cannot = f"{self.said(what)[:160]}: that cannot be changed through the mount"
        if not name or "\0" in self.attribute or len(name) > limit:
            raise InvalidInput(f"{cannot}: a name there has 1 to {limit} bytes and no NUL, and this one has {len(name)}: change it in the store")
        size = len((self.value or "").encode("utf-8", "surrogateescape"))
        if size > XATTR_VALUE_LIMIT:
            raise InvalidInput(f"{cannot}: a value there has at most {XATTR_VALUE_LIMIT} bytes, and this one has {size}: change it in the store")


def tags_change(tags: Iterable[str]) -> Change:
    """Return the change that gives an image these tags and no others."""
    return Change("--tag", "tags", json.dumps(list(tags), ensure_ascii=False))


def apply(mount: Path, image_id: str, what: str, changes: Sequence[Change]) -> None:
    """Make the changes in order; the first one that is refused ends it, and the error names those that were made before.

    Raises InvalidInput before anything is changed, and ImagefsError with the mount's reason.
    """
    for change in changes:
        change.check(what)
    path = image_path(mount, image_id)
    done: list[str] = []
    for change in changes:
        try:
            with explained(change.said(what), mount, path):
                _make(path, change)
        except ImagefsError as error:
            before = f"changed before: {', '.join(done)}" if done else "nothing was changed"
            raise type(error)(f"{error}: {before}") from error
        done.append(change.option)


def _make(path: Path, change: Change) -> None:
    if change.value is None:
        os.removexattr(path, _PREFIX + change.attribute)
    else:
        os.setxattr(path, _PREFIX + change.attribute, change.value.encode())
