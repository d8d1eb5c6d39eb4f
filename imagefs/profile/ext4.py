"""This module reads the structures of an ext2, ext3 or ext4 filesystem out of bytes that are at hand. Pure, and bounded by its input.

The format is described in the kernel's Documentation/filesystems/ext4. Only what leads from a path to the place of a file's bytes is here:
superblock, group descriptors, inodes, extent trees and the older block pointers, directories. Checksums are not checked: what is
found here decides what is fetched early, and a wrong guess costs bytes and nothing else. Every value is bounded before it is used, and what
makes no sense is None or left out, never an exception.
"""

import dataclasses
import stat
import struct
from collections.abc import Iterator
from typing import Final

from imagefs.units import KIB, align_up

SUPERBLOCK_AT: Final = 1024
"""Where the superblock is, in bytes from the filesystem's start, whatever the block size."""

SUPERBLOCK_SIZE: Final = 1024
ROOT_INODE: Final = 2
RESIZE_INODE: Final = 7
JOURNAL_INODE: Final = 8

MAX_GROUPS: Final = 1 << 17
"""Block groups that are looked at: of 128 MiB each, these are 16 TiB."""

MAX_EXTENT_DEPTH: Final = 5
"""Levels below the root of an extent tree; the kernel has no deeper ones."""

_MAGIC: Final = 0xEF53
_EXTENT_MAGIC: Final = 0xF30A
_META_BG: Final = 0x10
_64BIT: Final = 0x80
_FILETYPE: Final = 0x2
_EXTENTS_FLAG: Final = 0x80000
_INLINE_DATA_FLAG: Final = 0x10000000
_ENCRYPTED_FLAG: Final = 0x800
_BLOCK_UNINIT: Final = 0x2
_INODE_UNINIT: Final = 0x1
_UNWRITTEN: Final = 32768
"""Lengths above this in an extent are of blocks that are allocated and not written: they read as zeros."""


@dataclasses.dataclass(frozen=True, slots=True)
class Geometry:
    """The numbers of a superblock; sizes in bytes, counts in blocks, inodes or groups."""

    block_size: int
    blocks: int
    inodes: int
    inodes_per_group: int
    blocks_per_group: int
    inode_size: int
    descriptor_size: int
    first_data_block: int
    groups: int
    first_meta_group: int
    """From this descriptor block on, each is in the groups that it describes (meta_bg); above all groups if there is none such."""

    typed_entries: bool
    """Whether directory entries tell the kind of what they name."""

    @property
    def descriptors_per_block(self) -> int:
        """How many group descriptors a block holds."""
        return self.block_size // self.descriptor_size

    @property
    def descriptor_blocks(self) -> int:
        """How many blocks the descriptors of all groups take."""
        return -(-self.groups // self.descriptors_per_block)


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """Where a block group's metadata is, in blocks; a bitmap that nobody has initialised yet is None, since nobody reads it."""

    block_bitmap: int | None
    inode_bitmap: int | None
    inode_table: int
    used_inodes: int
    """How many inodes from the group's first one on may be in use: the kernel reads no further."""


@dataclasses.dataclass(frozen=True, slots=True)
class Inode:
    """What an inode says: `mode` as in stat(2), `size` in bytes, `body` the 60 bytes that say where the file's bytes are."""

    mode: int
    size: int
    flags: int
    body: bytes

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory that can be read (neither encrypted nor kept inside the inode)."""
        return stat.S_ISDIR(self.mode) and not self.flags & (_ENCRYPTED_FLAG | _INLINE_DATA_FLAG)

    @property
    def is_file(self) -> bool:
        """Whether this is a regular file with blocks of its own."""
        return stat.S_ISREG(self.mode) and not self.flags & _INLINE_DATA_FLAG

    @property
    def is_symlink(self) -> bool:
        """Whether this is a symbolic link."""
        return stat.S_ISLNK(self.mode)

    @property
    def target(self) -> str | None:
        """What a symbolic link that is kept inside its inode points to; None for all others."""
        if not self.is_symlink or not 0 < self.size < len(self.body) or self.flags & _EXTENTS_FLAG:
            return None
        return self.body[: self.size].decode("utf-8", "surrogateescape")


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of a file: `logical` counts from the file's start, `physical` from the filesystem's."""

    logical: int
    physical: int
    count: int


@dataclasses.dataclass(frozen=True, slots=True)
class Mapping:
    """One block's worth of a file's map: runs that are known, and blocks with more of the map, each with its level (0: holds runs only)."""

    runs: tuple[Run, ...] = ()
    below: tuple[tuple[int, int, int], ...] = ()
    """(level, logical, physical block) of further parts of the map."""


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory."""

    name: str
    inode: int


def parse_superblock(raw: bytes, length: int) -> Geometry | None:
    """Return the geometry that the SUPERBLOCK_SIZE bytes at SUPERBLOCK_AT say, for a filesystem with room for `length` bytes; None if it is none."""
    if len(raw) < SUPERBLOCK_SIZE or struct.unpack_from("<H", raw, 56)[0] != _MAGIC:
        return None
    inodes, low_blocks = struct.unpack_from("<II", raw, 0)
    first_data_block, log_block_size = struct.unpack_from("<II", raw, 20)
    blocks_per_group, _, inodes_per_group = struct.unpack_from("<III", raw, 32)
    revision = struct.unpack_from("<I", raw, 76)[0]
    inode_size = struct.unpack_from("<H", raw, 88)[0] if revision else 128
    incompatible = struct.unpack_from("<I", raw, 96)[0] if revision else 0
    wide = bool(incompatible & _64BIT)
    blocks = low_blocks | (struct.unpack_from("<I", raw, 336)[0] << 32 if wide else 0)
    descriptor_size = struct.unpack_from("<H", raw, 254)[0] if wide else 32
    if log_block_size > 6:
        return None
    block_size = KIB << log_block_size
    if not (_sound_sizes(inode_size, descriptor_size, block_size) and first_data_block < 2 and first_data_block < blocks):
        return None
    if not (
        0 < blocks_per_group <= 8 * block_size and 0 < inodes_per_group <= 8 * block_size and blocks * block_size <= align_up(length, block_size)
    ):
        return None
    groups = min(-(-(blocks - first_data_block) // blocks_per_group), MAX_GROUPS)
    return Geometry(
        block_size, blocks, inodes, inodes_per_group, blocks_per_group, inode_size, descriptor_size, first_data_block, groups,
        struct.unpack_from("<I", raw, 260)[0] if incompatible & _META_BG else 1 << 32, bool(incompatible & _FILETYPE),
    )  # fmt: skip


def _sound_sizes(inode_size: int, descriptor_size: int, block_size: int) -> bool:
    return (
        128 <= inode_size <= block_size and inode_size & (inode_size - 1) == 0 and 32 <= descriptor_size <= KIB and block_size % descriptor_size == 0
    )


def descriptor_places(geometry: Geometry) -> list[int]:
    """Return the blocks that hold the group descriptors, in the order of the groups; at most what MAX_GROUPS take."""
    first = geometry.first_data_block + 1
    places = []
    for index in range(geometry.descriptor_blocks):
        if index < geometry.first_meta_group:
            places.append(first + index)
        else:
            group = index * geometry.descriptors_per_block  # the first of the groups that it describes, after a backup superblock if it has one
            places.append(geometry.first_data_block + group * geometry.blocks_per_group + (1 if _has_superblock(group) else 0))
    return [place for place in places if place < geometry.blocks]


def _has_superblock(group: int) -> bool:
    """Tell whether a group has a copy of the superblock (sparse_super, which every mke2fs since 1999 sets): 0, 1 and powers of 3, 5 and 7."""
    if group < 2:
        return True
    for base in (3, 5, 7):
        power = base
        while power < group:
            power *= base
        if power == group:
            return True
    return False


def parse_descriptors(geometry: Geometry, raw: bytes) -> list[Group]:
    """Return the groups that the blocks of `descriptor_places`, one after the other, describe. A group without sound places ends the list."""
    groups: list[Group] = []
    size = geometry.descriptor_size
    for at in range(0, min(len(raw) - size + 1, geometry.groups * size), size):
        block_bitmap, inode_bitmap, inode_table = struct.unpack_from("<III", raw, at)
        flags = struct.unpack_from("<H", raw, at + 18)[0]
        unused = struct.unpack_from("<H", raw, at + 28)[0]
        if size >= 64:
            high = struct.unpack_from("<III", raw, at + 32)
            block_bitmap, inode_bitmap, inode_table = (
                low | top << 32 for low, top in zip((block_bitmap, inode_bitmap, inode_table), high, strict=True)
            )
            unused |= struct.unpack_from("<H", raw, at + 50)[0] << 16
        if not 0 < inode_table < geometry.blocks:
            break
        groups.append(Group(
            block_bitmap if 0 < block_bitmap < geometry.blocks and not flags & _BLOCK_UNINIT else None,
            inode_bitmap if 0 < inode_bitmap < geometry.blocks and not flags & _INODE_UNINIT else None,
            inode_table,
            max(0, geometry.inodes_per_group - unused),
        ))  # fmt: skip
    return groups


def inode_place(geometry: Geometry, groups: list[Group], number: int) -> int | None:
    """Return where inode `number` is, in bytes from the filesystem's start; None if there is no such inode."""
    if not 0 < number <= geometry.inodes:
        return None
    group, index = divmod(number - 1, geometry.inodes_per_group)
    if group >= len(groups):
        return None
    place = groups[group].inode_table * geometry.block_size + index * geometry.inode_size
    return place if place + geometry.inode_size <= geometry.blocks * geometry.block_size else None


def parse_inode(raw: bytes) -> Inode | None:
    """Return the inode that these bytes (at least 128) hold; None if they are too few or it is not in use."""
    if len(raw) < 128:
        return None
    mode, _, low_size = struct.unpack_from("<HHI", raw, 0)
    links = struct.unpack_from("<H", raw, 26)[0]
    flags = struct.unpack_from("<I", raw, 32)[0]
    high_size = struct.unpack_from("<I", raw, 108)[0]
    return Inode(mode, low_size | high_size << 32, flags, bytes(raw[40:100])) if mode and links else None


def inode_mapping(geometry: Geometry, inode: Inode) -> Mapping:
    """Return what the inode itself says about where its bytes are."""
    if inode.flags & _EXTENTS_FLAG:
        return parse_extents(geometry, inode.body, MAX_EXTENT_DEPTH)
    per_block = geometry.block_size // 4
    pointers = struct.unpack("<15I", inode.body)
    below = []
    logical = 12
    for level, pointer in enumerate(pointers[12:]):  # one, two and three levels of blocks of pointers
        if 0 < pointer < geometry.blocks:
            below.append((level, logical, pointer))
        logical += per_block ** (level + 1)
    return Mapping(_pointed(geometry, pointers[:12], 0), tuple(below))


def parse_extents(geometry: Geometry, raw: bytes, deepest: int) -> Mapping:
    """Return what a node of an extent tree says; nothing if its level is above `deepest`, so that a tree of loops ends."""
    if len(raw) < 12:
        return Mapping()
    magic, entries, _, depth = struct.unpack_from("<HHHH", raw, 0)
    if magic != _EXTENT_MAGIC or depth > deepest:
        return Mapping()
    runs: list[Run] = []
    below: list[tuple[int, int, int]] = []
    for at in range(12, min(12 + entries * 12, len(raw) - 11), 12):
        logical, first, second, third = struct.unpack_from("<IHHI", raw, at)
        if depth:
            low, high = struct.unpack_from("<IH", raw, at + 4)
            if 0 < (low | high << 32) < geometry.blocks:
                below.append((depth - 1, logical, low | high << 32))
        elif 0 < first <= _UNWRITTEN and (start := second << 32 | third) > 0 and start + first <= geometry.blocks:
            runs.append(Run(logical, start, first))
    return Mapping(tuple(runs), tuple(below))


def parse_pointers(geometry: Geometry, raw: bytes, level: int, logical: int) -> Mapping:
    """Return what a block of pointers says that is `level` levels above the file's blocks and begins at its block `logical`."""
    pointers = struct.unpack_from(f"<{min(len(raw), geometry.block_size) // 4}I", raw)
    if not level:
        return Mapping(_pointed(geometry, pointers, logical))
    step = (geometry.block_size // 4) ** level
    return Mapping(
        below=tuple((level - 1, logical + index * step, pointer) for index, pointer in enumerate(pointers) if 0 < pointer < geometry.blocks)
    )


def deeper(geometry: Geometry, inode: Inode, raw: bytes, level: int, logical: int) -> Mapping:
    """Return what a block that `below` of a mapping of `inode` named says."""
    return parse_extents(geometry, raw, level) if inode.flags & _EXTENTS_FLAG else parse_pointers(geometry, raw, level, logical)


def _pointed(geometry: Geometry, pointers: tuple[int, ...], logical: int) -> tuple[Run, ...]:
    """Return the runs of single block pointers; 0 is a hole."""
    runs: list[Run] = []
    for index, pointer in enumerate(pointers):
        if not 0 < pointer < geometry.blocks:
            continue
        if runs and (runs[-1].logical + runs[-1].count, runs[-1].physical + runs[-1].count) == (logical + index, pointer):
            runs[-1] = Run(runs[-1].logical, runs[-1].physical, runs[-1].count + 1)
        else:
            runs.append(Run(logical + index, pointer, 1))
    return tuple(runs)


def entries(geometry: Geometry, block: bytes) -> Iterator[Entry]:
    """Yield the names of one block of a directory, up to a damaged entry. Index blocks of hashed directories look like blocks without names."""
    at = 0
    while at + 8 <= len(block):
        inode, length, name_length, high = struct.unpack_from("<IHBB", block, at)
        taken = name_length if geometry.typed_entries else name_length | high << 8
        if length < 8 or length % 4 or at + length > len(block) or taken > min(length - 8, 255):
            return
        if inode and taken:
            yield Entry(block[at + 8 : at + 8 + taken].decode("utf-8", "surrogateescape"), inode)
        at += length
