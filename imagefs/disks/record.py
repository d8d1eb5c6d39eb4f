"""This module is the record of one disk, as it stands in the record of the instance or volume that it belongs to."""

from typing import Final, Literal

import msgspec

from imagefs.errors import InvalidInput, NameTooLong

DISK_MODE: Final = 0o600
NAME_LIMIT: Final = 255

Kind = Literal["root", "ephemeral", "swap", "config", "nvram", "volume"]


class DiskRecord(msgspec.Struct, frozen=True):
    """A disk as it was made: size in bytes, and owner, mode and root's attributes as they are now.

    `layers` names the overlay files that hold it, lowest first. With `merging` the topmost of them is being moved into the one below it,
    which takes the guest's writes meanwhile.
    """

    name: str
    size: int
    uid: int
    gid: int
    mode: int = DISK_MODE
    xattrs: dict[str, bytes] = {}
    kind: Kind = "root"
    encrypted: bool = False
    layers: tuple[str, ...] = ()
    merging: bool = False

    @property
    def stems(self) -> tuple[str, ...]:
        """The names of the sets of overlay files, lowest first."""
        return self.layers or (first_stem(self.name),)


def first_stem(name: str) -> str:
    """Return the name of a disk's first overlay files: what ends in .fd is called so for the guest's sake only."""
    return name.partition(".")[0]


def check_name(name: str, what: str) -> None:
    """Raise InvalidInput or NameTooLong unless `name` can name `what`: 1 to 255 bytes of printable UTF-8, no '/', not '.' or '..'."""
    try:
        length = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidInput(f"{name!r} cannot be the name of {what}: it is not UTF-8") from None
    if length > NAME_LIMIT:
        raise NameTooLong(f"'{name[:40]}...' cannot be the name of {what}: it has {length} bytes, and {NAME_LIMIT} is the most")
    if not length or name in {".", ".."} or "/" in name or not name.isprintable():
        raise InvalidInput(f"{name!r} cannot be the name of {what}: use 1 to {NAME_LIMIT} bytes of printable text without '/'")
