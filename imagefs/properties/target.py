"""This module is an image as policies see it: the target that `%(name)s` in a rule is looked up in.

The names are those of Glance's ImageTarget: core attributes, the aliases image_id, project_id (the owner) and member_id, and the
additional properties that the caller may read. A property that is not readable is not there, so a check on it fails.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from imagefs.properties.core import CORE, HIDDEN
from imagefs.store.record import ImageRecord

_ATTRIBUTES: Final = {**{name: name for name in CORE}, "image_id": "id", "project_id": "owner"}
_MEMBER: Final = ("member", "member_id")


class ImageTarget(Mapping[str, object]):
    """One image for one caller. Core attributes that the image does not have are None, as in Glance; no property covers one."""

    __slots__ = ("_project_id", "_readable", "_record")

    def __init__(self, record: ImageRecord, project_id: str | None, readable: Callable[[str], bool]) -> None:
        """Take the caller's project, and what tells whether the caller may read a property."""
        self._record = record
        self._project_id = project_id
        self._readable = readable

    def __getitem__(self, name: str) -> object:
        """Return an attribute or a readable property. Raises KeyError."""
        if name in _ATTRIBUTES:
            return getattr(self._record, _ATTRIBUTES[name])
        if name in _MEMBER:
            return self._member()
        value = self._record.properties[name]
        if name in HIDDEN or not self._readable(name):
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        yield from _ATTRIBUTES
        yield from _MEMBER
        for name in self._record.properties:
            if name not in _ATTRIBUTES and name not in _MEMBER and name not in HIDDEN and self._readable(name):
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _member(self) -> str | None:
        """Return the caller's project if the image is shared and another's.

        Glance takes for granted that the caller sees the image because it is a member; it says so to admins as well.
        """
        record = self._record
        return self._project_id if record.visibility == "shared" and record.owner != self._project_id else None
