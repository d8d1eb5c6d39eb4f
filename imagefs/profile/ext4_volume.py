"""This module plans the reading of an ext2, ext3 or ext4 filesystem: from nodes to names and places, many at a time."""

from collections.abc import Mapping, Sequence
from typing import Final

from imagefs.profile import ext4
from imagefs.profile.ext4 import Geometry, Group, Inode
from imagefs.profile.rounds import Place, Plan, Round
from imagefs.profile.volume import Node
from imagefs.units import KIB, MIB, align_down

HEAD: Final = 64 * KIB
"""Bytes from a filesystem's start that hold its superblock and the descriptors of the first groups (of 100 GiB and more)."""

_INODE_AHEAD: Final = 32
"""Blocks of an inode table that the kernel reads around the one that it needs (inode_readahead_blks)."""

_MAX_DESCRIPTORS: Final = 2 * MIB
_MAX_DIRECTORY: Final = MIB
"""Bytes of one directory that are read: 25,000 names and more."""

_MAX_LISTINGS: Final = 4 * MIB
"""Bytes of directories that are read in one round: those of all units and rules of a system take 1 MiB."""

_MAX_MAP_BLOCKS: Final = 64
"""Blocks of extent trees that are read for one file: 20,000 extents and more."""


def open_volume(start: int, length: int, head: bytes) -> "Plan[Ext4Volume | None]":
    """Plan to open the filesystem at `start` that has room for `length` bytes and begins with `head` (HEAD bytes); None if it is none."""
    geometry = ext4.parse_superblock(head[ext4.SUPERBLOCK_AT : ext4.SUPERBLOCK_AT + ext4.SUPERBLOCK_SIZE], length)
    if geometry is None:
        return None
    blocks = ext4.descriptor_places(geometry)[: _MAX_DESCRIPTORS // geometry.block_size]
    places = tuple((start + block * geometry.block_size, geometry.block_size) for block in blocks)
    raw = yield Round(wanted=places, likely=places)
    whole = b"".join(raw[: next((index for index, each in enumerate(raw) if len(each) < geometry.block_size), len(raw))])
    groups = ext4.parse_descriptors(geometry, whole)
    return Ext4Volume(start, geometry, groups) if groups else None


class Ext4Volume:
    """A Volume. Every number that the filesystem's bytes give is checked against its geometry before it becomes a place."""

    def __init__(self, start: int, geometry: Geometry, groups: list[Group]) -> None:
        """Take where on the disk the filesystem begins, in bytes, and what `open_volume` read."""
        self._start = start
        self._geometry = geometry
        self._groups = groups

    @property
    def root(self) -> int:
        """As Volume says."""
        return ext4.ROOT_INODE

    @property
    def journal(self) -> int:
        """The number of the journal's node."""
        return ext4.JOURNAL_INODE

    @property
    def bitmaps(self) -> tuple[Place, ...]:
        """Where the block bitmaps are, all of which the kernel reads soon after it mounts, and the first groups' inode bitmaps."""
        blocks = [group.block_bitmap for group in self._groups]
        blocks += [group.inode_bitmap for group in self._groups[:64]]
        return tuple(self._place(block, 1) for block in blocks if block is not None)

    def nodes(self, numbers: Sequence[int]) -> Plan[Mapping[int, Node]]:
        """As Volume says; the kernel's own reading around inodes is likely."""
        places = {number: place for number in numbers if (place := ext4.inode_place(self._geometry, self._groups, number)) is not None}
        wanted = tuple((self._start + place, self._geometry.inode_size) for place in places.values())
        answers = yield Round(wanted=wanted, likely=self._around(places))
        found = {}
        for number, raw in zip(places, answers, strict=False):
            inode = ext4.parse_inode(raw)
            if inode is not None:
                found[number] = Node(number, _kind(inode), inode.size, inode.target, inode)
        return found

    def _around(self, numbers: Mapping[int, int]) -> tuple[Place, ...]:
        """Return the parts of inode tables that the kernel reads for these inodes: aligned spans and a block more, not past the last inode in use."""
        block_size, inode_size = self._geometry.block_size, self._geometry.inode_size
        spans = {}
        for number, place in numbers.items():
            group = self._groups[(number - 1) // self._geometry.inodes_per_group]
            stop = group.inode_table * block_size + group.used_inodes * inode_size
            first = max(align_down(place, _INODE_AHEAD * block_size), group.inode_table * block_size)
            last = min(align_down(place, _INODE_AHEAD * block_size) + (_INODE_AHEAD + 1) * block_size, max(stop, place + inode_size))
            spans[first] = (self._start + first, last - first)
        return tuple(spans.values())

    def listings(self, directories: Sequence[Node]) -> Plan[Mapping[int, Mapping[str, int]]]:
        """As Volume says; of each directory the first _MAX_DIRECTORY bytes."""
        spread = yield from self.spread(directories, _MAX_DIRECTORY)
        block_size = self._geometry.block_size
        wanted = [(number, offset + at) for number, places in spread.items() for offset, length in places for at in range(0, length, block_size)]
        del wanted[_MAX_LISTINGS // block_size :]
        places = tuple((offset, block_size) for _, offset in wanted)
        answers = yield Round(wanted=places, likely=places)
        found: dict[int, dict[str, int]] = {node.number: {} for node in directories}
        for (number, _), raw in zip(wanted, answers, strict=False):
            found[number].update((entry.name, entry.inode) for entry in ext4.entries(self._geometry, raw))
        return found

    def spread(self, files: Sequence[Node], limit: int | None = None) -> Plan[Mapping[int, Sequence[Place]]]:
        """As Volume says; of each the first `limit` bytes, by default all."""
        runs: dict[int, list[ext4.Run]] = {}
        pending: list[tuple[Node, int, int, int]] = []
        budget = dict.fromkeys((node.number for node in files), _MAX_MAP_BLOCKS)
        for node in files:
            if isinstance(node.inode, Inode):
                mapping = ext4.inode_mapping(self._geometry, node.inode)
                runs[node.number] = list(mapping.runs)
                pending += [(node, *below) for below in mapping.below]
        while pending:
            pending = [
                each for each in pending if _spend(budget, each[0].number) and each[2] * self._geometry.block_size < self._reach(each[0], limit)
            ]
            places = tuple(self._place(block, 1) for _, _, _, block in pending)
            answers = yield Round(wanted=places, likely=places)
            following = []
            for (node, level, logical, _), raw in zip(pending, answers, strict=False):
                if isinstance(node.inode, Inode):
                    mapping = ext4.deeper(self._geometry, node.inode, raw, level, logical)
                    runs[node.number] += mapping.runs
                    following += [(node, *below) for below in mapping.below]
            pending = following
        return {node.number: self._cut(runs.get(node.number, []), self._reach(node, limit)) for node in files}

    def _reach(self, node: Node, limit: int | None) -> int:
        return node.size if limit is None else min(node.size, limit)

    def _cut(self, runs: list[ext4.Run], size: int) -> list[Place]:
        """Return the places of the blocks below `size`, in the order of the file."""
        last = -(-size // self._geometry.block_size)
        return [
            self._place(run.physical, min(run.count, last - run.logical)) for run in sorted(runs, key=lambda run: run.logical) if run.logical < last
        ]

    def _place(self, block: int, count: int) -> Place:
        return self._start + block * self._geometry.block_size, count * self._geometry.block_size


def _spend(budget: dict[int, int], number: int) -> bool:
    budget[number] -= 1
    return budget[number] >= 0


def _kind(inode: Inode) -> str:
    if inode.is_directory:
        return "directory"
    if inode.is_file:
        return "file"
    return "link" if inode.is_symlink else "other"
