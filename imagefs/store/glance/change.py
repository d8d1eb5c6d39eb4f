"""This module is the difference between two records of an image, in the requests that Glance has for it; it does no I/O.

Glance writes an image by reading all of it, changing it in memory and writing all of it back, without comparing versions, so
that a writer that comes between is undone without a word. A Difference can therefore be asked, with the record read again
later, which part of it is `lost`: what is as it was before. A third value is a later writer's, and stays.
"""

import dataclasses
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Final

from imagefs.errors import InvalidInput, NotPermitted
from imagefs.store.record import ImageRecord

PATCHED: Final = ("name", "visibility", "owner", "protected", "os_hidden", "min_disk", "min_ram", "disk_format", "container_format")
"""Core attributes that a PATCH may replace."""
_FIXED: Final = ("id", "created_at", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "tree")
_ACTIONS: Final = {("active", "deactivated"): "deactivate", ("deactivated", "active"): "reactivate"}

Touched = Mapping[str, tuple[Any, Any]]
"""From names to (before, wanted)."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """What one change touches, each name with the value before and the wanted one; None is a property or member that is absent."""

    image_id: str
    core: Touched
    properties: Touched
    members: Touched
    added_tags: frozenset[str] = frozenset()
    removed_tags: frozenset[str] = frozenset()
    action: str | None = None
    """deactivate or reactivate."""

    def __bool__(self) -> bool:
        """Tell whether there is anything to write."""
        return self.shared_write or bool(self.members)

    @property
    def shared_write(self) -> bool:
        """Tell whether Glance writes all of the image for it; memberships are written by themselves."""
        return bool(self.core or self.properties or self.added_tags or self.removed_tags or self.action)

    def lost(self, current: ImageRecord) -> "Difference":
        """Return the part that `current` shows as it was before."""
        states = {member.project_id: member.status for member in current.members}
        tags = frozenset(current.tags)
        return Difference(
            self.image_id,
            {name: touch for name, touch in self.core.items() if getattr(current, name) == touch[0]},
            {name: touch for name, touch in self.properties.items() if current.properties.get(name) == touch[0]},
            {
                project: (states.get(project), touch[1])
                for project, touch in self.members.items()
                if current.visibility == "shared" and _is_lost(states.get(project), *touch)
            },
            self.added_tags - tags,
            self.removed_tags & tags,
            self.action if (self.action, current.status) in (("deactivate", "active"), ("reactivate", "deactivated")) else None,
        )

    def patch(self, current: ImageRecord) -> list[dict[str, Any]]:
        """Return the operations of the JSON patch; the tags, which Glance replaces as a whole, are made from those of `current`."""
        operations: list[dict[str, Any]] = [{"op": "replace", "path": _pointer(name), "value": wanted} for name, (_, wanted) in self.core.items()]
        for name, (_, wanted) in self.properties.items():
            if wanted is not None:
                # `add` replaces a property that is there, also one that another writer has just added.
                operations.append({"op": "add", "path": _pointer(name), "value": wanted})
            elif name in current.properties:
                operations.append({"op": "remove", "path": _pointer(name)})
        if self.added_tags or self.removed_tags:
            operations.append({"op": "replace", "path": "/tags", "value": sorted(frozenset(current.tags) - self.removed_tags | self.added_tags)})
        return operations

    def described(self) -> str:
        """Return what is touched, in words for a message."""
        names = [*self.core, *self.properties, *(f"member {project}" for project in self.members)]
        names += ["tags"] if self.added_tags or self.removed_tags else []
        names += [self.action] if self.action else []
        return ", ".join(names)


def difference(before: ImageRecord, wanted: ImageRecord) -> Difference:
    """Return what turns `before` into `wanted`; updated_at is Glance's own.

    Raises NotPermitted for what Glance never changes, InvalidInput for a property whose name a JSON patch cannot carry.
    """
    fixed = [name for name in _FIXED if getattr(before, name) != getattr(wanted, name)]
    if fixed:
        raise NotPermitted(f"image {before.id}: {fixed[0]} cannot be changed: Glance sets it")
    action = _ACTIONS.get((before.status, wanted.status))
    if action is None and before.status != wanted.status:
        raise NotPermitted(f"image {before.id}: its status cannot be changed from {before.status} to {wanted.status}")
    properties = _touched(before.properties, wanted.properties)
    for name in properties:
        _check_name(before.id, name)
    members = _touched(*({member.project_id: member.status for member in record.members} for record in (before, wanted)))
    if wanted.visibility != "shared":
        if any(status is not None for _, status in members.values()):
            raise NotPermitted(f"image {before.id}: only shared images have members, and it is {wanted.visibility}: make it shared first")
        members = {}  # Glance keeps them, without effect
    return Difference(
        before.id,
        {name: (getattr(before, name), getattr(wanted, name)) for name in PATCHED if getattr(before, name) != getattr(wanted, name)},
        properties,
        members,
        frozenset(wanted.tags) - frozenset(before.tags),
        frozenset(before.tags) - frozenset(wanted.tags),
        action,
    )


def member_requests(project: str, touch: Sequence[str | None]) -> list[tuple[str, str, dict[str, str] | None]]:
    """Return the requests (method, path below the image, body) that bring one membership from touch[0] to touch[1]."""
    before, wanted = touch
    one = f"/members/{quoted_part(project)}"
    if wanted is None:
        return [("DELETE", one, None)]
    requests: list[tuple[str, str, dict[str, str] | None]] = [("POST", "/members", {"member": project})] if before is None else []
    # a new membership is pending
    return requests if before is None and wanted == "pending" else [*requests, ("PUT", one, {"status": wanted})]


def quoted_part(text: str) -> str:
    """Return a text as one part of a path. Raises InvalidInput for one that would lead elsewhere."""
    if text in ("", ".", "..") or "/" in text:
        raise InvalidInput(f"'{text}' cannot be a project: it cannot stand in Glance's path of a member")
    return urllib.parse.quote(text, safe="")


def _is_lost(present: str | None, before: str | None, wanted: str | None) -> bool:
    """Tell whether a membership still is as before, or was added but has its status still to get."""
    return present != wanted and (present == before or (before is None and present == "pending"))


def _touched(before: Mapping[str, str], wanted: Mapping[str, str]) -> Touched:
    names = sorted(before.keys() | wanted.keys())
    return {name: (before.get(name), wanted.get(name)) for name in names if before.get(name) != wanted.get(name)}


def _pointer(name: str) -> str:
    return "/" + name.replace("~", "~0").replace("/", "~1")


def _check_name(image_id: str, name: str) -> None:
    """Raise InvalidInput for a name that Glance would read differently from the path of a patch: it strips blanks."""
    if not name or name != name.strip():
        raise InvalidInput(f"image {image_id}: a property named '{name}' cannot be changed: Glance takes no blanks around a name")
