"""This module knows where filesystems whose structure is not followed keep what mounting them reads. Pure."""

import struct
from collections.abc import Iterator
from typing import Final

from imagefs.profile.rounds import Place
from imagefs.units import KIB, MIB

_MAX_ALLOCATION_GROUPS: Final = 32
"""Allocation groups of XFS whose headers are named."""


def known_places(start: int, length: int, head: bytes) -> Iterator[Place]:
    """Yield what is read to mount what begins with `head` (128 KiB) at `start` and has room for `length` bytes; nothing if it is unknown."""
    if head[:4] == b"XFSB" and len(head) >= 128:
        yield from _xfs(start, length, head)
    elif head[64 * KIB + 64 : 64 * KIB + 72] == b"_BHRfS_M":
        yield start + 64 * KIB, 4 * KIB
        if length > 64 * MIB + 4 * KIB:
            yield start + 64 * MIB, 4 * KIB  # the first copy of the superblock
    elif any(head[sector : sector + 8] == b"LABELONE" for sector in range(0, 2 * KIB, 512)):
        yield start, 64 * KIB  # LVM: label and metadata area; what is in its volumes is not followed


def _xfs(start: int, length: int, head: bytes) -> Iterator[Place]:
    """Yield the headers of the allocation groups, the root directory's inodes, and the log's beginning, where the block size is sound."""
    (block_size,) = struct.unpack_from(">I", head, 4)
    log, root = struct.unpack_from(">QQ", head, 48)
    group_blocks, groups = struct.unpack_from(">II", head, 84)
    block_shift, inodes_shift, group_shift = head[120], head[123], head[124]
    if (
        block_size not in (512, KIB, 2 * KIB, 4 * KIB, 8 * KIB, 16 * KIB, 32 * KIB, 64 * KIB)
        or 1 << block_shift != block_size
        or group_shift > 40
        or inodes_shift > 8
    ):
        return
    for group in range(min(groups, _MAX_ALLOCATION_GROUPS)):
        if group * group_blocks * block_size < length:
            yield start + group * group_blocks * block_size, 64 * KIB
    for number in (root >> inodes_shift, log):
        place = (number >> group_shift) * group_blocks * block_size + (number & ((1 << group_shift) - 1)) * block_size
        if place < length:
            yield start + place, 64 * KIB
