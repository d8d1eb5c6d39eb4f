"""This module decides which ephemeral disks an instance has, and makes what they and its swap disk begin with.

Filesystems are made by the host's own tools in a sparse file, from which `extents_of` gives what is not zeros. Options are chosen so
that this takes milliseconds and next to no room for a terabyte as well. Measured for 1 GiB, 100 GiB and 1 TiB in a file on ext4: ext4 takes
10, 25 and 80 ms and 0.7, 5 and 16 MiB; xfs 8 ms and 64 MiB, nearly all of it reserved and not written; vfat 12, 100 and 450 ms and 2, 25 and
128 MiB, nearly all of it zeros; swap 6 ms and 4 KiB.
"""

import contextlib
import dataclasses
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from imagefs.child import find_tool, run_tool
from imagefs.errors import ImagefsError, InvalidInput, NoSpace
from imagefs.holes import data_ranges
from imagefs.units import BLOCK, GIB, KIB, MIB, TIB, align_down, align_up, format_size

Filesystem = Literal["ext4", "xfs", "vfat", "swap"]

MAX_DISKS: Final = 23
"""Ephemeral disks of one instance: vdb to vdx; vdy is left for swap and vdz for a config drive."""
TIME_LIMIT: Final = 120.0
"""Seconds: hundreds of times what the slowest of them takes on a disk that has nothing else to do."""
PIECE: Final = MIB
"""Bytes that `extents_of` gives at most at once."""
_LARGE_CLUSTERS: Final = 128 * GIB
"""From here on vfat's clusters are 64 KiB, the largest that every system reads: its tables are written out, zeros and all."""
_LIST: Final = re.compile(r"\s*[0-9]{1,9}\s*(?:,\s*[0-9]{1,9}\s*)*")
_ZEROS: Final = bytes(PIECE)


@dataclasses.dataclass(frozen=True, slots=True)
class _Maker:
    """A tool, its package, its options before the label and before the file, and the bounds of what it can make, in bytes."""

    tool: str
    package: str
    options: tuple[str, ...]
    label_option: str
    label_limit: int
    smallest: int
    largest: int
    instead: str


_MAKERS: Final[dict[str, _Maker]] = {
    # The kernel completes inode tables and journal when the guest first mounts it; discarding a new sparse file frees nothing.
    "ext4": _Maker(
        "mkfs.ext4", "e2fsprogs", ("-q", "-F", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"), "-L", 16, MIB, 1024 * 1024 * TIB, "xfs"
    ),
    # By default the log grows with the disk to 2 GiB, and room for it is taken at once; 64 MiB is the least that mkfs.xfs agrees to.
    "xfs": _Maker("mkfs.xfs", "xfsprogs", ("-q", "-f", "-K", "-l", "size=64m"), "-L", 12, 300 * MIB, 1024 * 1024 * TIB, "ext4"),
    # 2^32 sectors is where its count of them ends; mkfs.vfat would leave the rest unused, without a word to the guest.
    "vfat": _Maker("mkfs.vfat", "dosfstools", (), "-n", 11, MIB, (2**32 - 1) * 512, "ext4 or xfs"),
    "swap": _Maker("mkswap", "util-linux", (), "-L", 16, 40 * KIB, 16 * TIB, "a smaller one"),
}


def plan_ephemerals(flavor_ephemeral_gib: int, asked: str | None) -> tuple[int, ...]:
    """Return the sizes in GiB of an instance's ephemeral disks, in order.

    `asked` is the text of user.ephemeral, such as "10,5"; without it there is one disk of all that the flavor has, or none. Raises InvalidInput.
    """
    if asked is None:
        return (flavor_ephemeral_gib,) if flavor_ephemeral_gib else ()
    if _LIST.fullmatch(asked) is None:
        raise InvalidInput(f"'{asked[:80]}' does not say the sizes of ephemeral disks: write them in GiB with commas between them, such as 10,5")
    sizes = tuple(int(size) for size in asked.split(","))
    if 0 in sizes:
        raise InvalidInput(f"ephemeral disks '{asked[:80]}': a disk of 0 GiB is none: leave it out")
    if len(sizes) > MAX_DISKS:
        raise InvalidInput(f"ephemeral disks '{asked[:80]}': {len(sizes)} are too many: ask for at most {MAX_DISKS}")
    if sum(sizes) > flavor_ephemeral_gib:
        raise InvalidInput(f"ephemeral disks '{asked[:80]}': {sum(sizes)} GiB in all, the flavor has {flavor_ephemeral_gib}: choose a larger flavor")
    return sizes


def check_filesystem(filesystem: Filesystem, label: str, size: int) -> None:
    """Raise InvalidInput, saying what to choose instead, unless this host can make `filesystem` with that label in `size` bytes."""
    maker = _MAKERS[filesystem]
    what = f"a {filesystem} disk '{label}' of {format_size(size)}"
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", label) or len(label) > maker.label_limit:
        raise InvalidInput(f"{what}: the label must be 1 to {maker.label_limit} letters, digits, '_', '.' or '-'")
    if size < maker.smallest:
        raise InvalidInput(f"{what}: too small for {filesystem}: make it {format_size(maker.smallest)} or more, or choose another filesystem")
    if size > maker.largest:
        raise InvalidInput(f"{what}: too large for {filesystem}, which ends at {format_size(maker.largest)}: choose {maker.instead}")
    find_tool([maker.tool], maker.package, what)


def make_filesystem(path: Path, filesystem: Filesystem, label: str, size: int) -> None:
    """Make a new sparse file at `path` of `size` bytes and mode 0600 with an empty filesystem (or swap space) in it. Blocks.

    Raises InvalidInput as `check_filesystem` does, NoSpace, ImagefsError if the tool fails; the file is not there then.
    FileExistsError if it was there before.
    """
    check_filesystem(filesystem, label, size)
    maker = _MAKERS[filesystem]
    what = f"a {filesystem} disk '{label}' of {format_size(size)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)
        clusters = ("-s", "128") if filesystem == "vfat" and size >= _LARGE_CLUSTERS else ()
        tool = find_tool([maker.tool], maker.package, what)
        run_tool([tool, *maker.options, *clusters, maker.label_option, label, str(path.absolute())], what, TIME_LIMIT)
        if path.stat().st_size != size:
            raise ImagefsError(f"{what}: {maker.tool} made it {path.stat().st_size} bytes large: use another version of {maker.package}")
    except OSError as error:
        _remove(path)
        if error.errno == errno.EFBIG:
            raise InvalidInput(f"{what}: too large for a file where the state directory is: choose a smaller one") from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"{what}: {error.strerror}: free some room in the state directory") from error
        raise
    except BaseException:
        _remove(path)
        raise


def extents_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, bytes) of all that is not zeros in the file, in order, at most PIECE bytes each, from and to whole blocks. Blocks.

    The last one may end with the file. Raises OSError, EIO if the file becomes shorter meanwhile.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        done = 0
        for first, end in data_ranges(descriptor, 0, size):  # in the units of the host's filesystem, which may be smaller than ours
            start, done = max(done, align_down(first, BLOCK)), min(size, align_up(end, BLOCK))
            for offset in range(start, done, PIECE):
                yield from _without_zeros(offset, _read(descriptor, offset, min(PIECE, done - offset), path))
    finally:
        os.close(descriptor)


def _read(descriptor: int, offset: int, length: int, path: Path) -> bytes:
    piece = b""
    while len(piece) < length:
        more = os.pread(descriptor, length - len(piece), offset + len(piece))
        if not more:
            raise OSError(errno.EIO, "the file became shorter while it was read", str(path))
        piece += more
    return piece


def _without_zeros(offset: int, piece: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the runs of blocks in a piece that are not all zeros."""
    if piece == _ZEROS[: len(piece)]:
        return
    begun: int | None = None
    for at in range(0, len(piece), BLOCK):
        zero = not piece[at : at + BLOCK].strip(b"\0")
        if zero and begun is not None:
            yield offset + begun, piece[begun:at]
            begun = None
        elif not zero and begun is None:
            begun = at
    if begun is not None:
        yield offset + begun, piece[begun:]


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # the directory it is in is removed with all that is in it
        path.unlink()
