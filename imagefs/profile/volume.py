"""This module says what a filesystem's plans answer, whatever filesystem it is: nodes, names in directories, and where files are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

from imagefs.profile.rounds import Place, Plan


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A file, a directory or a symbolic link: `kind` is "file", "directory", "link" or "other"; `size` in bytes, `target` of a link."""

    number: int
    kind: str
    size: int
    target: str | None
    inode: object
    """What the filesystem itself keeps about it."""


class Volume(Protocol):
    """A filesystem whose structure is read by plans. Places are in bytes of the disk, and what cannot be read is left out of the answers."""

    @property
    def root(self) -> int:
        """The number of the root directory."""
        ...

    def nodes(self, numbers: Sequence[int]) -> Plan[Mapping[int, Node]]:
        """Plan to look at these nodes, in one round."""
        ...

    def listings(self, directories: Sequence[Node]) -> Plan[Mapping[int, Mapping[str, int]]]:
        """Plan to read these directories: by the directory's number, its names and their nodes' numbers."""
        ...

    def spread(self, files: Sequence[Node]) -> Plan[Mapping[int, Sequence[Place]]]:
        """Plan to find where these files are: by number, their places in the order of the file, cut to its size in whole blocks."""
        ...
