"""This module is how an attribute is written: setxattr(2)'s flags."""

import enum

from imagefs.errors import AlreadyExists, NoAttribute


class Mode(enum.Enum):
    """What must be there before. Whether something is, is what the caller can see."""

    SET = 0
    CREATE = 1
    """XATTR_CREATE: nothing."""
    REPLACE = 2
    """XATTR_REPLACE: an older value."""

    def check(self, subject: str, *, present: bool) -> None:
        """Raise AlreadyExists or NoAttribute about `subject` if what the caller can see of it is not as the mode wants it."""
        if present and self is Mode.CREATE:
            raise AlreadyExists(f"{subject} is already there")
        if not present and self is Mode.REPLACE:
            raise NoAttribute(f"{subject} is not there")
